"""Small datasets kept in memory as resized bytes: what every epoch would decode and resize again, done once."""

import time
from dataclasses import replace

import numpy as np
import torch

from bitfast.data.ahead import ahead
from bitfast.data.decode import Unreadable, pixels, read, unreadable
from bitfast.data.loader import Request, images, usable_cores
from bitfast.data.source import Arrays
from bitfast.errors import BadImages, OutOfMemory
from bitfast.runtime import available_memory_bytes, say

SHARE = 0.25  # of the free memory, that "auto" fills at most
_CHUNK = 32


class Kept(Arrays):
    """Pixels of another source's images, under their names.

    A file whose size is another than before is read again, and one that is gone is unreadable: a run goes as it would
    without a cache.
    """

    def __init__(self, arrays, source, sizes):
        super().__init__(arrays)
        self.source, self._sizes = source, sizes

    def name(self, i):
        return self.source.name(i)

    def size(self, i):
        return self.source.size(i)

    def read(self, i):
        return self.images[i] if self.size(i) == self._sizes[i] else self.source.read(i)


def keep(split, transform, mode, *, passes, engine="auto", left_out=(), what="training"):
    """(split, transform) to read from instead: from memory if `mode` says so, else as they are. What was done is said.

    The whole image is resized once, and windows are taken of that: to the bit what is read without a cache, because a
    pixel does not depend on the window it is part of. An Inception crop resizes anew in each step: there the decoded
    images are kept.

    mode      "ram"; "off"; "auto": if the images are seen more than once and fit into SHARE of the free memory
    passes    how often the run sees each image
    left_out  positions that are not needed
    Raises:   OutOfMemory if "ram" does not fit into what is free
    """
    if mode == "off" or (mode == "auto" and passes <= 1):
        say(f"cache: off for {what}" + (" (each image is seen once)" if mode == "auto" else ""))
        return split, transform
    free = available_memory_bytes(torch.device("cpu"))
    limit = free if mode == "ram" else SHARE * free
    began = time.perf_counter()
    try:
        sizes = _sizes(split.images, left_out)
        if transform.geometry == "inception":
            kept, form = _decoded(split, limit, left_out), "decoded"
        else:
            kept, form = _resized(split, transform, limit, engine, left_out), "resized"
    except BadImages as error:
        say(f"cache: off for {what} ({error})")
        return split, transform
    if isinstance(kept, int):
        if mode == "ram":
            raise OutOfMemory(
                f"--cache ram needs {_gb(kept)} for the {len(split):,} {what} images, {_gb(free)} are free:"
                " use --cache off"
            )
        say(f"cache: off for {what} ({_gb(kept)} or more, auto takes up to {SHARE:.0%} of the {_gb(free)} free)")
        return split, transform
    size = kept.nbytes if isinstance(kept, np.ndarray) else sum(array.nbytes for array in kept)
    where = f"{form} in memory, {_gb(size)} of {_gb(free)} free, made in {time.perf_counter() - began:.1f} s"
    say(f"cache: {len(split):,} {what} images {where}")
    if transform.geometry == "short_side":
        transform = replace(transform, geometry="square", resize=transform.crop)
    return replace(split, images=Kept(kept, split.images, sizes)), transform


def _sizes(source, left_out):
    """Bytes of each image, None where the source does not know or it is left out. BadImages if one is gone."""
    sizes = [None] * len(source)
    for i in set(range(len(source))).difference(left_out):
        try:
            sizes[i] = source.size(i)
        except OSError as error:
            raise unreadable(source, {i: error.strerror.lower()}) from error
    return sizes


def _resized(split, transform, limit, engine, left_out):
    """uint8 (n, edge, edge, 3), or how many bytes that would be if it is over the limit."""
    whole = transform
    if transform.geometry == "square":
        whole = replace(transform, crop=transform.resize, random_crop=False, flip=False)
    shape = (len(split), whole.crop, whole.crop, 3)
    needed = int(np.prod(shape, dtype=np.int64))
    if needed > limit:
        return needed
    kept = np.zeros(shape, dtype=np.uint8)
    positions = np.setdiff1d(np.arange(len(split)), np.fromiter(left_out, np.int64))
    parts = [positions[start : start + _CHUNK] for start in range(0, len(positions), _CHUNK)]
    zeros = [np.zeros(len(part), dtype=np.int64) for part in parts]
    requests = [Request(part, zero, zero, zero.astype(bool)) for part, zero in zip(parts, zeros, strict=True)]
    for part, batch in zip(parts, images(split, whole, requests, engine=engine, dtype=torch.uint8), strict=True):
        kept[part] = batch.permute(0, 2, 3, 1).numpy()
    return kept


def _decoded(split, limit, left_out):
    """The uint8 (H, W, 3) of each image, or how many bytes they had taken when they went over the limit."""
    skipped, kept, used = set(left_out), [], 0
    parts = [range(start, min(start + _CHUNK, len(split))) for start in range(0, len(split), _CHUNK)]

    def decoded(part, row):
        if part[row] in skipped:
            return np.zeros((1, 1, 3), np.uint8)
        try:
            return pixels(read(split.images, part[row]))
        except Unreadable as error:
            raise unreadable(split.images, {part[row]: str(error)}) from error

    for _, arrays in ahead(parts, decoded, threads=usable_cores()):
        kept += arrays
        used += sum(array.nbytes for array in arrays)
        if used > limit:
            return used
    return kept


def _gb(size):
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
