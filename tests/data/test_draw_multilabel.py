"""Held-out shares and few-shot draws where images carry several labels."""

import numpy as np
import pytest

from bitfast.data import draw
from bitfast.data.source import Arrays


def numbered(n, copies=()):
    """n distinct one-pixel-row images; `copies` are (i, j): j becomes equal to i."""
    images = np.arange(n, dtype="<u4")
    for i, j in copies:
        images[j] = images[i]
    return Arrays(images.view(np.uint8).reshape(n, 1, 4, 1))


@pytest.mark.parametrize("seed", range(6))
def test_every_class_with_two_images_is_on_both_sides(seed):
    rng = np.random.default_rng(seed)
    labels = rng.random((400, 8)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005]
    labels[0, 7] = labels[1, 7] = True
    held = draw.hold_out(numbered(400), labels, 8, 0.1, seed)
    count, inside = labels.sum(0), labels[held].sum(0)
    assert (inside[count >= 2] >= 1).all() and (inside < np.maximum(count, 1)).all()
    assert (inside >= np.maximum(1, np.round(0.1 * count)) * (count > 1)).all()
    assert 32 <= held.sum() <= 60
    assert np.array_equal(held, draw.hold_out(numbered(400), labels, 8, 0.1, seed))
    assert not np.array_equal(held, draw.hold_out(numbered(400), labels, 8, 0.1, seed + 100))


def test_few_and_unlabelled_images():
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [0, 0], [0, 0]], dtype=bool)
    for seed in range(20):
        held = draw.hold_out(numbered(6), labels, 2, 0.1, seed)
        assert held[:3].sum() in (1, 2) and held[3:].sum() == 1
        assert (labels[held].sum(0) >= 1).all() and (labels[~held].sum(0) >= 1).all()
    single = draw.hold_out(numbered(3), np.eye(3, dtype=bool), 3, 0.5, 0)
    assert not single.any()


@pytest.mark.parametrize("seed", range(6))
def test_duplicates_stay_together_and_contradictions_in_training(seed):
    labels = np.zeros((60, 3), dtype=bool)
    labels[np.arange(60), np.arange(60) % 3] = True
    copies = [(i, i + 30) for i in range(20)]
    labels[50, 0] = labels[50, 1] = True  # a copy of 20, with other labels
    images = numbered(60, [*copies, (20, 50)])
    held = draw.hold_out(images, labels, 3, 0.6, seed)
    contents = [images.read(i).tobytes() for i in range(60)]
    assert not {c for c, h in zip(contents, held, strict=True) if h} & {
        c for c, h in zip(contents, held, strict=True) if not h
    }
    assert not held[20] and not held[50] and held.sum() >= 30


def test_few_shot_gives_every_class_its_images():
    rng = np.random.default_rng(0)
    labels = rng.random((100, 4)) < 0.4
    chosen = draw.few_shot(labels, tuple("abcd"), 5, 1)
    assert (labels[chosen].sum(0) >= 5).all() and 5 <= len(chosen) <= 20
    assert np.array_equal(chosen, np.unique(chosen))
    assert np.array_equal(chosen, draw.few_shot(labels, tuple("abcd"), 5, 1))
