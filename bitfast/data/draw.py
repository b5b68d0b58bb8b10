"""Drawing from a labelled list: the held-out validation share and K examples per class, both seeded."""

import hashlib
from collections import Counter, defaultdict

import numpy as np

from bitfast.data import streams
from bitfast.data.decode import Unreadable, shown
from bitfast.errors import DataError, UsageError

_GONE = -1


def hold_out(images, labels, n_classes, share, seed):
    """(n,) bool: the images held out for validation. labels (n,) positions, or (n, n_classes) bool.

    Of each class with two images or more, max(1, round(share * count)) are held out, but never all. Images with equal
    bytes stay on one side: images without a duplicate are drawn first, then whole groups of duplicates; a group whose
    images carry different labels stays in the training part.

    Multi-label: the rarest class is drawn first, and what it leaves stays in the training part, so that a class can
    hold out more than its share, where its images carry rarer labels, but never all; images without a label count as
    one more class, drawn last. (After Sechidis et al. 2011, "On the stratification of multi-label data".)
    """
    group = same_bytes(images)
    if labels.ndim == 2:
        return _hold_out_multilabel(group, labels, share, seed)
    held = np.zeros(len(images), dtype=bool)
    mixed = _groups_with_several_labels(group, labels[:, None])
    for label in range(n_classes):
        members, copies = _drawn(np.flatnonzero(labels == label), group, label, seed)
        want = max(1, round(share * len(members)))
        count, chosen = 0, []
        for block in sorted((block for block in copies if block not in mixed), key=copies.get):
            if count >= want or count + copies[block] >= len(members):
                break
            chosen.append(block)
            count += copies[block]
        held[members[np.isin(group[members], chosen)]] = True
    return held


def _hold_out_multilabel(group, labels, share, seed):
    held, open_ = np.zeros(len(labels), dtype=bool), np.ones(len(labels), dtype=bool)
    mixed = _groups_with_several_labels(group, labels)
    belongs = np.column_stack([labels, ~labels.any(1)])
    left = belongs.sum(0)
    indices_of = defaultdict(list)
    for index, block in enumerate(group.tolist()):
        indices_of[block].append(index)
    for label in np.argsort([*left[:-1], len(labels)], kind="stable"):
        members, copies = _drawn(np.flatnonzero(belongs[:, label]), group, int(label), seed)
        if len(members) > 1:
            want = max(1, round(share * len(members))) - held[members].sum()
            free = set(group[members[open_[members]]].tolist()) - mixed
            for block in sorted((block for block in copies if block in free), key=copies.get):
                if want < 1:
                    break
                its = indices_of[block]
                if (left - belongs[its].sum(0) < 1)[belongs[its].any(0)].any():
                    continue
                held[its] = True
                left = left - belongs[its].sum(0)
                want -= copies[block]
        open_[members] = False
    return held


def _drawn(members, group, label, seed):
    """(members in the seeded order of their class, Counter of their groups in that order)."""
    members = members[streams.order(seed, streams.HOLD_OUT, len(members), index=label)]
    return members, Counter(group[members].tolist())


def few_shot(labels, classes, per_class, seed):
    """Indices, ascending, of `per_class` images of each class. labels (n,) positions, or (n, C) bool.

    Multi-label: the union of what is drawn for each class, so that a class can have more.

    Raises:  UsageError if per_class < 1; DataError if a class has fewer
    """
    if per_class < 1:
        raise UsageError(f"examples per class {per_class} is not a number of images: use 1 or more")
    chosen = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels[:, label] if labels.ndim == 2 else labels == label)
        if len(members) < per_class:
            raise DataError(
                f"class {shown(name)} has {len(members)} training images, but {per_class} examples per class are "
                f"asked for: use --examples-per-class {max(len(members), 1)} or less, or add images"
            )
        chosen.append(members[streams.order(seed, streams.FEW_SHOT, len(members), index=label)[:per_class]])
    return np.unique(np.concatenate(chosen))


def same_bytes(images):
    """(n,) int64 group numbers, equal for images with the same content (size, then md5; of pixels with the shape).

    An image that cannot be read is a group of its own: the scan names it.
    """
    by_size = defaultdict(list)
    for index in range(len(images)):
        by_size[_size(images, index)].append(index)
    group = np.arange(len(images))
    for size, same_size in by_size.items():
        if size == _GONE or len(same_size) == 1:
            continue
        first = {}
        for index in same_size:
            digest = _md5(images, index)
            group[index] = first.setdefault(digest, index) if digest else index
    return group


def _size(images, index):
    try:
        return images.size(index)
    except OSError:
        return _GONE


def _md5(images, index):
    try:
        content = images.read(index)
    except (OSError, Unreadable):
        return None
    shape = b"" if isinstance(content, bytes) else repr(content.shape).encode()
    return hashlib.md5(shape + memoryview(content).tobytes(), usedforsecurity=False).digest()


def _groups_with_several_labels(group, labels):
    """Groups whose images differ in their rows of labels (n, any)."""
    copied = np.bincount(group, minlength=1)[group] > 1
    rows = np.unique(np.column_stack([group[copied], labels[copied].astype(np.int64)]), axis=0)
    groups, counts = np.unique(rows[:, 0], return_counts=True)
    return set(groups[counts > 1].tolist())
