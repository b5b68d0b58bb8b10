"""Names of released checkpoints, and where a name or path leads."""

from pathlib import Path

import pytest

from bitfast.errors import UsageError, WeightsError
from bitfast.files import cache_folder
from bitfast.released import canonical
from bitfast.variants import VARIANTS
from bitfast.weights import architecture_of, default_for, identify, released_names, resolve


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("BITFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITFAST_WEIGHTS_URL", "http://127.0.0.1:9/never")
    monkeypatch.chdir(tmp_path)


def test_names():
    names = released_names()
    assert len(names) == len(set(names)) == 27
    expected = {"BiT-S-R50x1", "BiT-M-R152x2", "BiT-M-R101x3-ILSVRC2012", "BiT-M-R50x1-CIFAR10", "distill/R50x1_224"}
    assert expected < set(names)
    assert {architecture_of(name) for name in names} == set(VARIANTS) - {"resnet26x0_5"}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("BiT-M-R50x1", "resnet50x1"),
        ("BiT-S-R152x4", "resnet152x4"),
        ("BiT-M-R101x3-ILSVRC2012", "resnet101x3"),
        ("distill/R152x2_T_224", "resnet152x2"),
    ],
)
def test_architecture_of(name, model):
    assert architecture_of(name) == model


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("R50x1", ("resnet50x1", None)),
        ("r152x4", ("resnet152x4", None)),
        ("ResNet101x3", ("resnet101x3", None)),
        ("resnetv2_50x3_bit", ("resnet50x3", None)),
        ("bit-m-r152x4", ("resnet152x4", "BiT-M-R152x4")),
        ("resnetv2_50x1_bit.goog_in21k", ("resnet50x1", "BiT-M-R50x1")),
        ("resnetv2_50x1_bit_distilled", ("resnet50x1", "distill/R50x1_224")),
    ],
)
def test_every_name_of_a_network(name, meant):
    assert identify(name) == meant
    assert canonical(name) == meant[1]


@pytest.mark.parametrize(("name", "hint"), [("R50x2", "R50x"), ("r15x4", "R152x4"), ("resnet152x", "resnet152x2")])
def test_unknown_networks(name, hint):
    with pytest.raises(UsageError, match=f"unknown model '{name}': did you mean {hint}"):
        identify(name)


def test_default_for():
    for model in set(VARIANTS) - {"resnet26x0_5"}:
        assert architecture_of(default_for(model)) == model
    assert default_for("resnet50x1") == "BiT-M-R50x1"
    with pytest.raises(UsageError, match="no weights were released for resnet26x0_5; there are some for resnet50x1, "):
        default_for("resnet26x0_5")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BiT-M-R50x1-CIFAR", "BiT-M-R50x1-CIFAR10"),
        ("bit-m-r152x", "BiT-M-R152x2"),
        ("BiT-M-R50x1-ILSVRC", "BiT-M-R50x1-ILSVRC2012"),
    ],
)
def test_unknown_name(name, meant):
    for ask in (resolve, architecture_of):
        with pytest.raises(UsageError) as caught:
            ask(name)
        assert str(caught.value).endswith(f"did you mean {meant}?")
    with pytest.raises(UsageError, match="released_names"):
        resolve("zzz")


def test_an_existing_path_is_itself(tmp_path):
    (tmp_path / "w.npz").write_bytes(b"")
    assert resolve("w.npz") == Path("w.npz")
    assert resolve(tmp_path) == tmp_path


def test_a_path_that_does_not_exist(tmp_path):
    for path in ("no.npz", tmp_path / "folder", "runs/x"):
        with pytest.raises(WeightsError, match=f"{path}: no such weights file; check the path"):
            resolve(path)
    with pytest.raises(WeightsError, match='no such weights file; "BiT-M-R50x1" without .npz downloads it'):
        resolve("BiT-M-R50x1.npz")


def test_cache_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("BITFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/bitfast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/bitfast")
