"""Images kept in memory: the same pixels to the bit, only when they fit, and gone files are noticed all the same."""

import os

import numpy as np
import pytest
import torch

import bitfast.data.cache as cache
from bitfast.data.dataset import Split
from bitfast.data.loader import images, in_order
from bitfast.data.sampler import Sampler
from bitfast.data.source import Files
from bitfast.data.transform import Transform
from bitfast.errors import BadImages, OutOfMemory

TRAIN = Transform.train(24, 16)


@pytest.fixture
def split(save, tmp_path):
    paths = [
        save(tmp_path / f"{i}.{'png' if i % 3 else 'jpg'}", seed=i, height=20 + i, width=30 + 3 * i) for i in range(9)
    ]
    return Split(Files(paths), np.arange(9) % 2, ("a", "b"))


def batches(split, transform, **options):
    sampler = Sampler(len(split), 8, transform, 0.2, seed=3)
    return list(images(split, transform, (part for t in range(3) for part in sampler.batch(t).micro(4)), **options))


@pytest.mark.parametrize("transform", [TRAIN, Transform.test(16), Transform.pretrain(16)], ids=lambda t: t.geometry)
def test_same_to_the_bit(split, engine, transform, capsys):
    kept, spec = cache.keep(split, transform, "auto", passes=2, engine=engine)
    assert kept is not split and spec == transform and "9 training images" in capsys.readouterr().err
    assert all(map(torch.equal, batches(split, transform, engine=engine), batches(kept, spec, engine=engine)))
    assert [kept.images.name(i) for i in range(9)] == [split.images.name(i) for i in range(9)]


def test_central_crop_is_kept_as_it_is(split):
    transform = Transform.short_side(20, 16)
    kept, spec = cache.keep(split, transform, "ram", passes=1, engine="pillow")
    plain, again = (next(images(s, t, in_order(9, 9))) for s, t in ((split, transform), (kept, spec)))
    assert torch.equal(plain, again)


@pytest.mark.parametrize(
    "mode, passes, free, words",
    [
        ("off", 9, 1e9, "off for training\n"),
        ("auto", 1, 1e9, "each image is seen once"),
        ("auto", 9, 4 * 9 * 24 * 24 * 3 - 4, "auto takes up to 25% of"),
    ],
)
def test_off(split, monkeypatch, capsys, mode, passes, free, words):
    monkeypatch.setattr(cache, "available_memory_bytes", lambda device: free)
    assert cache.keep(split, TRAIN, mode, passes=passes) == (split, TRAIN)
    assert words in capsys.readouterr().err


def test_ram_that_does_not_fit_is_an_error(split, monkeypatch):
    monkeypatch.setattr(cache, "available_memory_bytes", lambda device: 100)
    for transform in (TRAIN, Transform.pretrain(16)):
        with pytest.raises(OutOfMemory, match="--cache ram needs .* use --cache off") as caught:
            cache.keep(split, transform, "ram", passes=9)
        assert caught.value.exit_code == 4


def test_a_file_that_goes_is_noticed(split):
    kept, spec = cache.keep(split, TRAIN, "auto", passes=2, engine="pillow")
    os.remove(split.images.path(4))
    with pytest.raises(BadImages, match="4.png: no such file") as caught:
        batches(kept, spec)
    assert list(caught.value.found) == [4]


def test_left_out_images_are_not_read(split, tmp_path):
    os.remove(split.images.path(4))
    for transform in (TRAIN, Transform.pretrain(16)):
        kept, spec = cache.keep(split, transform, "auto", passes=2, left_out={4: 7})
        others = [i for i in range(9) if i != 4]
        pixels = [next(images(s.take(others), Transform.test(24), in_order(8, 8))) for s in (split, kept)]
        assert torch.equal(*pixels) if transform is TRAIN else kept is not split


def test_an_unreadable_file_leaves_it_off(split, capsys):
    os.remove(split.images.path(4))
    for transform in (TRAIN, Transform.pretrain(16)):
        assert cache.keep(split, transform, "auto", passes=2)[0] is split
        assert "cache: off for training (" in capsys.readouterr().err
