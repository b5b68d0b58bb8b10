"""The same by Pillow's resize and torch: the reference, and what runs where there is no native library."""

import math

import numpy as np
import torch
from PIL import Image

# the Pillow filter, and how far it reaches in px of the smaller image
_FILTERS = {
    "nearest": (Image.Resampling.NEAREST, 0),
    "bilinear": (Image.Resampling.BILINEAR, 1),
    "bicubic": (Image.Resampling.BICUBIC, 2),
    "lanczos": (Image.Resampling.LANCZOS, 3),
}


def resample(images, windows, out, interpolation, mean, std):
    """`op.resample` with Pillow's rounding: to 1/255 after each of its two passes."""
    for image, row, window in zip(images, out, windows.tolist(), strict=True):
        top, left, box_height, box_width, height, width, y, x, flip = window
        box = image[top : top + box_height, left : left + box_width].numpy()
        resized = _resized(box, (height, width), interpolation)[y : y + row.shape[0], x : x + row.shape[1]]
        levels = torch.from_numpy((resized[:, ::-1] if flip else resized).copy())
        row.copy_(levels if row.dtype == torch.uint8 else levels.float().sub_(mean).mul_(1 / std))


def _resized(box, size, interpolation):
    """Pillow alone drops what lies outside, up to 18/255 apart in the outer rows of white noise (measured); with the
    border added it is 1/255 everywhere.
    """
    resample, radius = _FILTERS[interpolation]
    reach = [math.ceil(radius * max(1, old / new)) for old, new in zip(box.shape[:2], size, strict=True)]
    framed = Image.fromarray(np.pad(box, (*((r, r) for r in reach), (0, 0)), mode="edge"))
    (high, wide), (box_height, box_width) = reach, box.shape[:2]
    return np.asarray(framed.resize(size[::-1], resample, box=(wide, high, wide + box_width, high + box_height)))
