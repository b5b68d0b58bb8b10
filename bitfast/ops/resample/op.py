"""The function that turns decoded images into a batch, and its two implementations."""

import numpy as np
import torch
from torch import Tensor

from bitfast.ops import _dispatch
from bitfast.ops._library import native_missing
from bitfast.ops.resample import reference

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
DTYPES = (torch.uint8, torch.float32, torch.bfloat16)


def resample(images, windows, out: Tensor, *, interpolation: str, mean: float, std: float) -> Tensor:
    """Resize a box of each image, take a window of the result, mirror it, normalise; into `out`, which is returned.

        r = resize of image[top : top + box_height, left : left + box_width] to (height, width), rounded to 0..255
        out[n, i, j] = (r[y + i, x + j] - mean) / std,   or r[y + i, x + W - 1 - j] where flip

    Separable filters, antialiased: where the image gets smaller, the filter gets as much wider. Beyond the box its
    edge is repeated, as DALI does it. A pixel does not depend on the window it is part of. uint8 is not normalised.

    Shapes:  images: n uint8 arrays or tensors (H, W, 3); windows (n, 9) int64: top, left, box_height, box_width,
             height, width, y, x, flip, in px; out (n, H', W', 3) dense
    Dtypes:  out uint8 | fp32 | bf16; native sums in fp32
    Raises:  ValueError on shapes or a window outside; TypeError on dtypes
    Source:  Keys 1981 for bicubic, a = -1/2; Lanczos with three lobes
    """
    windows = np.ascontiguousarray(windows, dtype=np.int64)
    images = [image if isinstance(image, Tensor) else torch.from_numpy(_writeable(image)) for image in images]
    _check(images, windows, out, interpolation)
    if out.numel():
        _dispatch.select("resample", out)(images, windows, out, interpolation, mean, std)
    return out


def _writeable(array):
    """The array as torch wants to see it, although nothing is written: contiguous and writeable."""
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else array.copy()


def _check(images, windows, out, interpolation):
    if interpolation not in FILTERS:
        raise ValueError(f"unknown interpolation {interpolation!r}; it must be one of {', '.join(FILTERS)}")
    if out.dtype not in DTYPES:
        raise TypeError(f"out is {out.dtype}; it must be one of {', '.join(map(str, DTYPES))}")
    if out.dim() != 4 or out.shape[0] != len(images) or out.shape[3] != 3 or not out.is_contiguous():
        raise ValueError(f"out has shape {tuple(out.shape)}; it must be dense ({len(images)}, H, W, 3)")
    if windows.shape != (len(images), 9):
        raise ValueError(f"windows has shape {windows.shape}; it must be ({len(images)}, 9)")
    for image, (top, left, box_height, box_width, height, width, y, x, _) in zip(images, windows, strict=True):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is {image.dtype} {tuple(image.shape)}; it must be uint8 (H, W, 3)")
        rows = 0 <= top < top + box_height <= image.shape[0] and 0 <= y <= height - out.shape[1]
        columns = 0 <= left < left + box_width <= image.shape[1] and 0 <= x <= width - out.shape[2]
        if not (rows and columns):
            raise ValueError(f"window {(top, left, box_height, box_width, height, width, y, x)} is not in its image")


def _native(images, windows, out, interpolation, mean, std):
    torch.ops.bitfast_native.resample.default(
        images, torch.from_numpy(windows), out, FILTERS.index(interpolation), mean, std
    )


def _native_supports(out: Tensor) -> str:
    return native_missing()


_dispatch.register(
    "resample",
    _dispatch.Impl("native", _native, _native_supports, devices=("cpu",)),
    _dispatch.Impl("pillow", reference.resample, _dispatch.anything, devices=("cpu",)),
)
