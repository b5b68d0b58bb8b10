"""Decoding every image once before training, so that a bad one is found in seconds and by name."""

import hashlib
import io
import time
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from bitfast.data import decode
from bitfast.data.scan_cache import scan_cache
from bitfast.errors import DataError
from bitfast.progress import live

_CHUNK = 64
_KEEP_EVERY_SECONDS = 5
_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)
_MAY_HAVE_FRAMES = ("GIF", "MPO", "PNG", "TIFF", "WEBP")
_BITS_PER_SAMPLE = 258

TRAITS = ("EXIF-rotated", "16-bit", "alpha", "CMYK", "grayscale", "animated")


class Look(NamedTuple):
    """What one image is.

    height, width   as displayed, EXIF orientation applied; 0 if unreadable
    format          "JPEG", "PNG", ...; "pixels" where nothing is encoded; "" if unreadable
    traits          what is worth knowing of it: TRAITS
    digest          hex digest of the encoded bytes (or of shape and pixels): equal for exact duplicates
    why             the reason if it is unreadable, else ""
    """

    height: int = 0
    width: int = 0
    format: str = ""
    traits: tuple[str, ...] = ()
    digest: str = ""
    why: str = ""


@dataclass(frozen=True, eq=False)
class Scan:
    """What was found, in the order of the images.

    names, looks   one each per image
    recalled       how many looks came from the cache
    """

    names: list[str]
    looks: list[Look]
    recalled: int = 0

    def __len__(self):
        return len(self.looks)

    def __add__(self, other):
        return Scan(self.names + other.names, self.looks + other.looks, self.recalled + other.recalled)

    @property
    def sizes(self):
        """(n, 2) int64: height, width as displayed, (0, 0) if unreadable."""
        return np.array([(look.height, look.width) for look in self.looks], dtype=np.int64).reshape(-1, 2)

    @property
    def readable(self):
        """(n,) bool."""
        return np.array([not look.why for look in self.looks], dtype=bool)

    @property
    def bad(self):
        """(name, reason) of each unreadable image."""
        return [(name, look.why) for name, look in zip(self.names, self.looks, strict=True) if look.why]


def scan(images, workers=None, *, cache=True):
    """Decode every image of a Source in full (a header check passes truncated ones) and return the Scan.

    cache   take what is known of unchanged files from the user's cache, and keep what is found there

    Threads: Pillow decodes outside the GIL (measured on 2 cores: 2.2x for 350 px JPEGs, nothing gained nor lost on
    28 px PNGs), and they are safe with torch loaded and in a script without a main guard, unlike processes.
    """
    names = [images.name(i) for i in range(len(images))]
    with (
        warnings.catch_warnings(),
        scan_cache(cache) as known,
        ThreadPoolExecutor(workers, thread_name_prefix="bitfast-scan") as pool,
    ):
        warnings.simplefilter("ignore")  # what Pillow warns of is a reason or a trait here
        stamps = [stamp for part in pool.map(partial(_stamps, images), _parts(range(len(images)))) for stamp in part]
        recalled = known.recall([stamp for stamp in stamps if stamp])
        looks = [_recalled(recalled.get(stamp)) for stamp in stamps]
        missing = [i for i, look in enumerate(looks) if look is None]
        parts = _parts(missing)
        fresh, kept, done = {}, time.monotonic(), 0
        try:
            with live(len(missing), "checked", "images") as show:
                for part, found in zip(parts, pool.map(partial(_look_at, images, stamps), parts), strict=True):
                    for i, (look, unchanged) in zip(part, found, strict=True):
                        looks[i] = look
                        if unchanged and not look.why:
                            fresh[stamps[i]] = look
                    done += len(part)
                    show(done)
                    if time.monotonic() - kept > _KEEP_EVERY_SECONDS:
                        known.keep(fresh)
                        fresh, kept = {}, time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            known.keep(fresh)
    return Scan(names, looks, len(images) - len(missing))


def require_readable(scanned):
    """Raise the DataError naming the first bad image, its reason and how many there are; return if there is none."""
    if scanned.bad:
        name, why = scanned.bad[0]
        count, advice = len(scanned.bad), "--bad-images skip goes on without"
        if count > 1:
            advice = f"bitfast check DATA lists them, {advice} them"
            why = f"{why} ({count:,} of {len(scanned):,} images cannot be read)"
        else:
            advice = f"replace or delete it, or {advice} it"
        raise DataError(f"{decode.shown(name)}: {why}: {advice}")


def duplicates(scans):
    """Groups of two or more (part, position) of images with equal content; scans: {part: Scan}."""
    groups = defaultdict(list)
    for part, scanned in scans.items():
        for i, look in enumerate(scanned.looks):
            if not look.why:
                groups[look.digest].append((part, i))
    return [group for group in groups.values() if len(group) > 1]


def median_size(sizes):
    """(height, width) of the readable image with the median area (the lower one of two), for HyperRule."""
    sizes = sizes[sizes[:, 0] > 0]
    by_area = np.argsort(sizes[:, 0] * sizes[:, 1], kind="stable")
    height, width = sizes[by_area[(len(sizes) - 1) // 2]]
    return int(height), int(width)


def _parts(indices):
    return [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]


def _stamps(images, part):
    return [_stamp(images, i) for i in part]


def _stamp(images, i):
    try:
        return images.stamp(i)
    except OSError:
        return None


def _recalled(facts):
    """The Look that was kept; None if there is none, it is not one, or it is over the limit of today."""
    try:
        height, width, form, traits, digest, why = facts
    except (TypeError, ValueError):
        return None
    limit = Image.MAX_IMAGE_PIXELS
    return Look(height, width, form, tuple(traits), digest, why) if limit is None or height * width <= limit else None


def _look_at(images, stamps, part):
    """For each image its Look, and whether its stamp is known and the same afterwards."""
    return [(_look(images, i), stamps[i] is not None and stamps[i] == _stamp(images, i)) for i in part]


def _look(images, i):
    try:
        content = decode.read(images, i)
        image = decode.decoded(content)
    except decode.Unreadable as error:
        return Look(why=str(error))
    height, width = image.height, image.width
    if image.getexif().get(_ORIENTATION) in _TRANSPOSED:
        height, width = width, height
    return Look(height, width, image.format or "pixels", _traits(image, content), _digest(content))


def _digest(content):
    shape = b"" if isinstance(content, bytes) else repr(content.shape).encode()
    return hashlib.blake2b(shape + memoryview(content).tobytes(), digest_size=16).hexdigest()


def _traits(image, content):
    """Which of TRAITS an image has, as a tuple; `content` is what it was decoded from."""
    png_bits = content[24] if image.format == "PNG" else 8  # of its header; Pillow has 8 bits of each colour
    has = (
        image.getexif().get(_ORIENTATION, 1) in range(2, 9),
        image.mode.startswith(("I", "F")) or png_bits == 16 or 16 in _tiff_bits(image),
        image.has_transparency_data,
        image.mode == "CMYK",
        image.mode.startswith(("L", "I", "F", "1")),
        image.format in _MAY_HAVE_FRAMES and _has_more_frames(content),
    )
    return tuple(name for name, true in zip(TRAITS, has, strict=True) if true)


def _tiff_bits(image):
    return image.tag_v2.get(_BITS_PER_SAMPLE, ()) if image.format == "TIFF" else ()


def _has_more_frames(content):
    with Image.open(io.BytesIO(content), formats=decode.FORMATS) as image:
        return getattr(image, "is_animated", False)
