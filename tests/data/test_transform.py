"""The transform spec: what it says, what it refuses, and that it survives a config file."""

import json

import numpy as np
import pytest

from bitfast.data.transform import Transform
from bitfast.errors import UsageError


def test_prints_itself():
    assert str(Transform.train(160, 128)) == (
        "resize 160x160 (bilinear, antialias) -> random crop 128 -> horizontal flip -> (v - 127.5) / 127.5"
    )
    assert str(Transform.test(128)) == "resize 128x128 (bilinear, antialias) -> (v - 127.5) / 127.5"

    assert str(Transform.pretrain(224)) == (
        "Inception crop (area 0.08-1, ratio 0.75-1.33) -> resize 224x224 (bilinear, antialias) -> horizontal flip"
        " -> (v - 127.5) / 127.5"
    )
    assert str(Transform.short_side(256, 224, "nearest")) == (
        "short side to 256 (nearest) -> central crop 224 -> (v - 127.5) / 127.5"
    )


def test_windows():
    assert Transform.train(160, 128).window(300, 500, 7, 9) == (0, 0, 300, 500, 160, 160, 7, 9)
    assert Transform.short_side(256, 224).window(300, 500) == (0, 0, 300, 500, 256, 426, 16, 101)
    assert Transform.short_side(256, 224).window(500, 300) == (0, 0, 500, 300, 426, 256, 101, 16)
    assert Transform.short_side(20, 20).window(7, 7) == (0, 0, 7, 7, 20, 20, 0, 0)
    spec = Transform.pretrain(64, area=(0.25, 0.25), ratio=(1, 1))
    assert spec.window(40, 100, attempts=np.full((10, 4), 0.5)) == (4, 34, 32, 32, 64, 64, 0, 0)


@pytest.mark.parametrize("size, box", [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))])
def test_inception_crop_of_a_strip_is_its_middle(size, box):
    """No attempt fits: the widest allowed box in the centre."""
    draws = np.full((10, 4), 0.999)
    assert Transform.pretrain(64).window(*size, attempts=draws)[:4] == box


def test_margin_and_vetoes():
    assert Transform.train(160, 128).margin == 32
    assert Transform.train(160, 128, no_crop=True) == Transform(128, 128, random_crop=False, flip=True)
    assert Transform.train(160, 128, no_crop=True, no_flip=True) == Transform.test(128)


@pytest.mark.parametrize(
    "spec",
    [
        Transform.train(160, 128),
        Transform.test(480),
        Transform.train(32, 28, no_flip=True),
        Transform.pretrain(224, (0.2, 0.9), (0.5, 2.0), interpolation="lanczos"),
        Transform.short_side(256, 224),
    ],
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
        (lambda: Transform(160, 128, True, True, geometry="round"), "unknown geometry 'round'"),
        (lambda: Transform.pretrain(128, area=(0, 1)), "area .* is not a range"),
        (lambda: Transform.pretrain(128, area=(0.5, 1.5)), "area .* is not a range"),
        (lambda: Transform.pretrain(128, ratio=(2, 1)), "ratio .* is not a range"),
        (lambda: Transform.short_side(100, 128), "crop 128 is larger"),
    ],
)
def test_refuses(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
