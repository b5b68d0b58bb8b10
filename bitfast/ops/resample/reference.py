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
    """`op.resample`; nearest and bilinear with Pillow's rounding, after each of its two passes."""
    for image, row, window in zip(images, out, windows.tolist(), strict=True):
        top, left, box_height, box_width, height, width, y, x, flip = window
        box = image[top : top + box_height, left : left + box_width].numpy()
        resized = _resized(box, (height, width), interpolation)[y : y + row.shape[0], x : x + row.shape[1]]
        levels = torch.from_numpy((resized[:, ::-1] if flip else resized).copy())
        row.copy_(levels if row.dtype == torch.uint8 else levels.float().sub_(mean).mul_(1 / std))


def _resized(box, size, interpolation):
    """Pillow alone drops what lies outside, up to 18/255 apart in the outer rows of white noise (measured); with the
    border added it is 1/255 everywhere. A filter with negative lobes goes over floats, channel by channel: on bytes
    Pillow clips what overshoots between its two passes, up to 44/255 apart on black and white dots (measured).
    """
    resample, radius = _FILTERS[interpolation]
    reach = [math.ceil(radius * max(1, old / new)) for old, new in zip(box.shape[:2], size, strict=True)]
    framed = np.pad(box, (*((r, r) for r in reach), (0, 0)), mode="edge")
    (high, wide), (box_height, box_width) = reach, box.shape[:2]
    where = (wide, high, wide + box_width, high + box_height)
    if radius <= 1:
        return np.asarray(Image.fromarray(framed).resize(size[::-1], resample, box=where))
    channels = [
        Image.fromarray(framed[..., c].astype(np.float32)).resize(size[::-1], resample, box=where) for c in range(3)
    ]
    return (np.stack(channels, axis=2).clip(0, 255) + 0.5).astype(np.uint8)
