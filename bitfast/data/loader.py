"""Batches of images for the trainer: which engine reads them, and the requests it reads."""

import os
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
import torch

from bitfast.data import decode
from bitfast.data.mixup import mix
from bitfast.data.rows import Rows
from bitfast.data.source import Arrays, Chosen
from bitfast.errors import UsageError
from bitfast.runtime import local_processes, say

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
    attempts: np.ndarray | None = None
    partner: np.ndarray | None = None
    lam: float = 1.0

    def __len__(self):
        return len(self.indices)


def in_order(n, size):
    """Requests for images 0..n-1 once each, in order, `size` at a time (the last may be smaller); no crop, no flip."""
    for start in range(0, n, size):
        indices = np.arange(start, min(start + size, n))
        zeros = np.zeros(len(indices), dtype=np.int64)
        yield Request(indices, zeros, zeros, zeros.astype(bool))


def images(
    split,
    transform,
    requests,
    *,
    engine="auto",
    device="cpu",
    dtype=torch.float32,
    threads=None,
    largest=None,
    on_bad=None,
):
    """Iterate over the images of each request, in request order.

        r = round(resize of the decoded RGB image), its EXIF orientation applied, alpha over white
        y = (flip of crop of r - mean) / std, then lam * y + (1 - lam) * y[partner]

    split      anything with `.images`, a Source
    requests   iterable of Request or Batch; pulled a few ahead of what is yielded
    engine     "dali", "pillow", or "auto": `chosen_engine` says which
    dtype      of what is yielded, fp32 | bf16 | fp16; mixed in fp32. uint8: r as it is, not normalised, not mixed
    threads    decoding threads; default: the cores this process may use
    largest    images in the largest request; default: the first is the largest
    on_bad     called with {index: reason} of the images of a request that cannot be read, before what is left of it is
               yielded, perhaps nothing; None raises. Without MixUp only, which needs whole batches

    Shapes:  yields (B, 3, crop, crop) in channels_last memory, on `device`
    Raises:  UsageError on an unknown engine, or a request larger than the largest;
             BadImages naming the first of a batch that cannot be read, with all of the batch, unless on_bad is given
    """
    if chosen_engine(engine) == "dali" and not is_decoded(split.images):
        from bitfast.data.dali import read
    else:
        from bitfast.data.pillow import read
    requests = iter(requests)
    first = next(requests, None)
    if first is None:
        return (x for x in ())  # a generator too, so that it can be closed
    device, largest = torch.device(device), largest or len(first)
    batches = (
        Rows(request, transform, _row_dtype(request, device, dtype))
        for request in _bounded(chain([first], requests), largest)
    )
    threads = threads or usable_cores()
    return _finished(
        split.images,
        read(split.images, transform, batches, largest=largest, device=device, threads=threads),
        device,
        dtype,
        on_bad,
    )


def _finished(source, filled, device, dtype, on_bad):
    with closing(filled):
        for batch in filled:
            if batch.bad:
                found = {batch.index(row): why for row, why in sorted(batch.bad.items())}
                if on_bad is None:
                    raise decode.unreadable(source, found)
                on_bad(found)
            x = batch.finish(device, normalise=dtype != torch.uint8)
            if batch.bad:
                x = x[[row for row in range(len(batch)) if row not in batch.bad]]
            x = x.permute(0, 3, 1, 2)
            if batch.request.lam != 1 and dtype != torch.uint8:
                x = mix(x, batch.request.partner, batch.request.lam)
            yield x.to(dtype)


def _row_dtype(request, device, dtype):
    """What images are resampled to in host memory: bytes for a GPU, which are fewer to copy; fp32 for MixUp."""
    if device.type != "cpu" or dtype == torch.uint8:
        return torch.uint8
    return dtype if request.lam == 1 and dtype == torch.bfloat16 else torch.float32


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


def is_decoded(source):
    """Whether a Source holds nothing but pixels, so that nothing is left for DALI to decode."""
    while isinstance(source, Chosen):
        source = source.source
    return isinstance(source, Arrays)


def usable_cores():
    """The cores this process may run on, less what the run's other processes on this machine need."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // local_processes())


def _bounded(requests, largest):
    for request in requests:
        if len(request) > largest:
            raise UsageError(
                f"a request of {len(request)} images, but the largest was to be {largest}: send the largest first"
            )
        yield request
