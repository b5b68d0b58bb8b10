"""Batches of images for the trainer: which engine reads them, and the requests it reads."""

import os
import sys
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from bitfast.errors import UsageError
from bitfast.runtime import say

ENGINES = ("auto", "dali", "pillow")


@dataclass(frozen=True, eq=False)
class Request:
    """The images of one micro-batch: indices (B,) into the split, crop offsets (B,) in px, flip (B,) bool.

    A sampler's `Batch` has the same fields and serves as a request too.
    """

    indices: np.ndarray
    crop_y: np.ndarray
    crop_x: np.ndarray
    flip: np.ndarray

    def __len__(self):
        return len(self.indices)


def in_order(n, size):
    """Requests for images 0..n-1 once each, in order, `size` at a time (the last may be smaller); no crop, no flip."""
    for start in range(0, n, size):
        indices = np.arange(start, min(start + size, n))
        zeros = np.zeros(len(indices), dtype=np.int64)
        yield Request(indices, zeros, zeros, zeros.astype(bool))


def images(split, transform, requests, *, engine="auto", device="cpu", threads=None, largest=None):
    """Iterate over the images of each request, in request order.

        y = (crop(flip) of resize(decoded RGB, EXIF orientation applied) - mean) / std

    split      anything with `.images`, a Source
    requests   iterable of Request or Batch; pulled a few ahead of what is yielded
    engine     "dali", "pillow", or "auto": `chosen_engine` says which
    threads    decoding threads; default: the cores this process may use
    largest    images in the largest request; default: the first is the largest

    Shapes:  yields fp32 (B, 3, crop, crop) in channels_last memory, on `device`
    Raises:  UsageError on an unknown engine, or a request larger than the largest;
             BadImages naming the first of those that cannot be read, with all that are known
    """
    if chosen_engine(engine) == "dali":
        from bitfast.data.dali import read
    else:
        from bitfast.data.pillow import read
    threads = threads or usable_cores()
    return read(
        split.images,
        transform,
        _bounded(requests, largest),
        largest=largest,
        device=torch.device(device),
        threads=threads,
    )


@cache
def chosen_engine(engine="auto"):
    """The engine that will run: "dali" or "pillow". "auto" is DALI on Linux when it imports, else Pillow."""
    if engine not in ENGINES:
        raise UsageError(f"unknown input engine {engine!r}: use one of {', '.join(ENGINES)}")
    if engine == "pillow" or (engine == "auto" and not sys.platform.startswith("linux")):
        return "pillow"
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        advice = "pip install nvidia-dali-cuda130"
        if engine == "dali":
            raise UsageError(f"input engine dali does not import ({error}): {advice}, or use pillow") from error
        say(f"input: DALI does not import ({error}), so Pillow reads the images; for DALI: {advice}")
        return "pillow"
    return "dali"


def usable_cores():
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _bounded(requests, largest):
    for request in requests:
        largest = largest or len(request)
        if len(request) > largest:
            raise UsageError(
                f"a request of {len(request)} images, but the largest was to be {largest}: send the largest first"
            )
        yield request
