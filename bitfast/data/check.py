"""Decoding every file once before training, so that a bad one is found in seconds and by name."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from bitfast.data import decode

_CHUNK = 64
_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)


@dataclass(frozen=True, eq=False)
class Scan:
    """What was found.

    sizes  (n, 2) int64: height, width as displayed, EXIF orientation applied, (0, 0) if unreadable
    bad    name and reason of each unreadable image
    """

    sizes: np.ndarray
    bad: list[tuple[str, str]]

    @classmethod
    def joined(cls, scans):
        """One Scan of several sources, in their order."""
        return cls(np.concatenate([scan.sizes for scan in scans]), [item for scan in scans for item in scan.bad])


def scan(images, workers=None):
    """Decode every image of a Source in full (a header check passes truncated ones) and return the Scan.

    Threads: Pillow decodes outside the GIL (measured on 2 cores: 2.2x for 350 px JPEGs, nothing gained nor lost on
    28 px PNGs), and they are safe with torch loaded and in a script without a main guard, unlike processes.
    """
    chunks = [range(start, min(start + _CHUNK, len(images))) for start in range(0, len(images), _CHUNK)]
    with warnings.catch_warnings(), ThreadPoolExecutor(workers, thread_name_prefix="bitfast-scan") as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode.load makes it an error
        found = [item for chunk in pool.map(partial(_look_at_all, images), chunks) for item in chunk]
    sizes = np.array([(0, 0) if isinstance(item, str) else item for item in found], dtype=np.int64).reshape(-1, 2)
    bad = [(images.name(i), item) for i, item in enumerate(found) if isinstance(item, str)]
    return Scan(sizes, bad)


def require_readable(scanned):
    """Raise the DataError naming the first bad file, its reason and how many there are; return if there is none."""
    if scanned.bad:
        name, why = scanned.bad[0]
        count = len(scanned.bad)
        note = f" ({count} of {len(scanned.sizes)} files cannot be read)" if count > 1 else ""
        raise decode.unreadable(name, why, note)


def median_size(sizes):
    """(height, width) of the readable image with the median area (the lower one of two), for HyperRule."""
    sizes = sizes[sizes[:, 0] > 0]
    by_area = np.argsort(sizes[:, 0] * sizes[:, 1], kind="stable")
    height, width = sizes[by_area[(len(sizes) - 1) // 2]]
    return int(height), int(width)


def _look_at_all(images, chunk):
    return [_look_at(images, i) for i in chunk]


def _look_at(images, i):
    """(height, width), or the reason why there is none."""
    try:
        image = decode.load(images, i)
        transposed = image.getexif().get(_ORIENTATION) in _TRANSPOSED
    except decode.Unreadable as error:
        return str(error)
    return (image.width, image.height) if transposed else (image.height, image.width)
