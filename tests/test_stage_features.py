"""Pooled features of every stage: those of the networks cut there, kept on disk, never out of date."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import write_class_folders

from bitfast.create import create_model
from bitfast.data.dataset import open_dataset
from bitfast.data.transform import Transform
from bitfast.errors import BadImages
from bitfast.features import pooled_stages
from bitfast.files import cache_folder
from bitfast.folding import fold
from bitfast.stage_features import StageFeatures
from bitfast.weights import save_weights

MODEL = "resnet26x0_5"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITFAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def split(tmp_path):
    return open_dataset(write_class_folders(tmp_path / "data", per_class=4), val_split=0).train


@pytest.fixture
def model():
    model = create_model(MODEL, num_classes=0)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # so that each norm is seen to be the right one
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def features(model, split, crop=32, stages=(1, 2, 3, 4), **options):
    return StageFeatures(model, Transform.test(crop), device=CPU, engine="pillow").of(split, stages, **options)


def files():
    return sorted(cache_folder().rglob("*.safetensors"))


@pytest.mark.parametrize("folded", [False, True])
def test_are_those_of_the_network_cut_after_each_stage(model, tmp_path, folded):
    save_weights(model, tmp_path / "whole.safetensors")
    images = torch.rand(2, 3, 40, 33) * 2 - 1
    with torch.inference_mode():
        pooled = pooled_stages(fold(model) if folded else model, images)
        for stages in (1, 2, 3, 4):
            cut = create_model(MODEL, str(tmp_path / "whole.safetensors"), stages=stages, num_classes=0)
            torch.testing.assert_close(pooled[stages - 1], cut(images), rtol=1e-5, atol=1e-6)


def test_second_time_from_disk_to_the_bit(model, split, capsys):
    first, positions, contents = features(model, split)
    assert [x.shape for x in first.values()] == [(12, c) for c in (128, 256, 512, 1024)] and len(files()) == 1
    assert positions.tolist() == list(range(12)) and len(set(contents)) == 12
    capsys.readouterr()
    again, *_ = features(model, split, stages=(2,))
    assert "all of them from" in capsys.readouterr().err
    np.testing.assert_array_equal(again[2], first[2])


def test_anything_that_changes_them_makes_them_anew(model, split):
    before, *_ = features(model, split)
    other = features(model, split, crop=40)[0]
    assert len(files()) == 2 and np.abs(other[4] - before[4]).max() > 0
    with torch.no_grad():
        model.stages[3].blocks[1].norm3.bias[0] += 0.5
    changed = features(model, split)[0]
    assert len(files()) == 3 and np.abs(changed[4] - before[4]).max() > 0
    path = split.images.path(0)
    status = split.images.stamp(0)
    Path(path).write_bytes(Path(split.images.path(1)).read_bytes())
    os.utime(path, ns=(status[2], status[2]))  # with the mtime of before: the content is what counts
    after = features(model, split)[0]
    assert len(files()) == 4
    np.testing.assert_array_equal(after[1][0], changed[1][1])


def test_damaged_file_is_made_anew(model, split, capsys):
    before, *_ = features(model, split)
    (path,) = files()
    path.write_bytes(path.read_bytes()[:-100])
    again, *_ = features(model, split)
    assert "are damaged" in capsys.readouterr().err and files() == [path]
    np.testing.assert_array_equal(again[3], before[3])
    features(model, split)
    assert "are damaged" not in capsys.readouterr().err


def test_parts_are_kept_one_by_one(model, split, monkeypatch):
    """A run killed after the first part has that part."""
    whole, *_ = features(model, split)
    for path in files():
        path.unlink()
    monkeypatch.setattr("bitfast.stage_features.PART", 5)
    features(model, split.take(np.arange(5)))
    parts, *_ = features(model, split)
    assert len(files()) == 3
    for stage in whole:
        np.testing.assert_allclose(parts[stage], whole[stage], rtol=1e-4, atol=1e-5)


def test_unreadable_image_is_left_out_or_an_error(model, split):
    Path(split.images.path(3)).write_bytes(b"no image")
    with pytest.raises(BadImages, match=split.images.path(3)):
        features(model, split)
    found = {}
    x, positions, contents = features(model, split, on_bad=found.update)
    assert list(found) == [3] and positions.tolist() == [i for i in range(12) if i != 3]
    assert len(x[1]) == len(contents) == 11


def test_a_cache_that_cannot_be_written_is_said(model, split, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BITFAST_CACHE", str(tmp_path / "file"))
    x, *_ = features(model, split)
    assert len(x[4]) == 12 and "not kept" in capsys.readouterr().err
