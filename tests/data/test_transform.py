"""The transform spec: what it says, what it refuses, and that it survives a config file."""

import json

import pytest

from bitfast.data.transform import Transform
from bitfast.errors import UsageError


def test_prints_itself():
    assert str(Transform.train(160, 128)) == (
        "resize 160x160 (bilinear, antialias) -> random crop 128 -> horizontal flip -> (v - 127.5) / 127.5"
    )
    assert str(Transform.test(128)) == "resize 128x128 (bilinear, antialias) -> (v - 127.5) / 127.5"


def test_margin_and_vetoes():
    assert Transform.train(160, 128).margin == 32
    assert Transform.train(160, 128, no_crop=True) == Transform(128, 128, random_crop=False, flip=True)
    assert Transform.train(160, 128, no_crop=True, no_flip=True) == Transform.test(128)


@pytest.mark.parametrize(
    "spec", [Transform.train(160, 128), Transform.test(480), Transform.train(32, 28, no_flip=True)]
)
def test_round_trip(spec):
    assert Transform.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Transform.train(128, 160), "crop 160 is larger than resize 128"),
        (lambda: Transform.train(128, 0), "crop 0"),
        (lambda: Transform(160, 128, random_crop=False, flip=True), "resize 160 differs from crop 128"),
        (lambda: Transform(160, 128, True, True, interpolation="sinc"), "unknown interpolation 'sinc'"),
        (lambda: Transform(160, 128, True, True, std=0), "std 0"),
    ],
)
def test_refuses(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
