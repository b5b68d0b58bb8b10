"""Folds for cross-validation: every class in as many of them as it can be, the same for the same seed."""

import numpy as np

from ..data import streams

FOLDS = 5
ALWAYS_TRAINED = -1


def stratified(labels, seed, folds=FOLDS):
    """(n,) int64: the fold that holds each image out, 0 to folds - 1.

    labels  (n,) positions, or (n, C) bool for multi-label
    The images of a class are dealt out in a seeded order, and the next class goes on where it stopped, so that classes
    and folds differ by at most one image. The only image of a class is ALWAYS_TRAINED: held out, it would be of a class
    that nothing was learned of. Multi-label: an image belongs to the rarest of its labels; images without one are one
    more class.
    """
    own = labels if labels.ndim == 1 else _rarest(labels)
    fold, dealt = np.full(len(own), ALWAYS_TRAINED), 0
    for label in np.unique(own):
        members = np.flatnonzero(own == label)
        if len(members) > 1:
            members = members[streams.order(seed, streams.FOLDS, len(members), index=int(label))]
            fold[members] = (dealt + np.arange(len(members))) % folds
            dealt += len(members)
    return fold


def parts(fold):
    """Yield (training, held-out) positions of each fold that holds something out."""
    for number in np.unique(fold[fold != ALWAYS_TRAINED]):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def _rarest(labels):
    counts = labels.sum(0)
    return np.where(labels.any(1), np.where(labels, counts, len(labels) + 1).argmin(1), labels.shape[1])
