"""Decoding every file once before training, so that a bad one is found in seconds and by name."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bitfast.data import decode

_CHUNK = 64
_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)


@dataclass(frozen=True, eq=False)
class Scan:
    """sizes (n, 2) int64: height, width as displayed, EXIF orientation applied, (0, 0) if unreadable; bad files."""

    sizes: np.ndarray
    bad: list[tuple[str, str]]


def scan(paths, workers=None):
    """Decode every file in full (a header check passes truncated files) and return the Scan.

    Threads: Pillow decodes outside the GIL (measured on 2 cores: 2.2x for 350 px JPEGs, nothing gained nor lost on
    28 px PNGs), and they are safe with torch loaded and in a script without a main guard, unlike processes.
    """
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with warnings.catch_warnings(), ThreadPoolExecutor(workers, thread_name_prefix="bitfast-scan") as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode.load makes it an error
        found = [item for chunk in pool.map(_look_at_all, chunks) for item in chunk]
    sizes = np.array([(0, 0) if isinstance(item, str) else item for item in found], dtype=np.int64).reshape(-1, 2)
    bad = [(path, item) for path, item in zip(paths, found, strict=True) if isinstance(item, str)]
    return Scan(sizes, bad)


def require_readable(scanned):
    """Raise the DataError naming the first bad file, its reason and how many there are; return if there is none."""
    if scanned.bad:
        path, why = scanned.bad[0]
        count = len(scanned.bad)
        note = f" ({count} of {len(scanned.sizes)} files cannot be read)" if count > 1 else ""
        raise decode.unreadable(path, why, note)


def median_size(sizes):
    """(height, width) of the readable image with the median area (the lower one of two), for HyperRule."""
    sizes = sizes[sizes[:, 0] > 0]
    by_area = np.argsort(sizes[:, 0] * sizes[:, 1], kind="stable")
    height, width = sizes[by_area[(len(sizes) - 1) // 2]]
    return int(height), int(width)


def _look_at_all(paths):
    return [_look_at(path) for path in paths]


def _look_at(path):
    """(height, width), or the reason why there is none."""
    try:
        image = decode.load(path)
        transposed = image.getexif().get(_ORIENTATION) in _TRANSPOSED
    except Exception as error:  # Pillow's decoders raise many types; each becomes a reason
        return decode.reason(path, error)
    return (image.width, image.height) if transposed else (image.height, image.width)
