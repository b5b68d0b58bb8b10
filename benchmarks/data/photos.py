"""Photo-like JPEGs to measure input with: blurred fields of several scales and some noise, seeded."""

import numpy as np
from PIL import Image

_SCALES = ((64, 60.0), (16, 25.0), (5, 14.0))  # cell in px, amplitude in levels
_NOISE = 7.0


def write_photos(folder, count, height=400, width=500, quality=90):
    """folder/000.jpg, ... of 70 to 80 KB at the default size; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        _photo(i, height, width).save(path, quality=quality)
    return [str(path) for path in paths]


def _photo(seed, height, width):
    rng = np.random.default_rng(seed)
    levels = 128 + rng.normal(0, _NOISE, (height, width, 1)).astype(np.float32).repeat(3, 2)
    for cell, amplitude in _SCALES:
        field = rng.normal(0, 1, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        field = 0.4 * field + field.mean(2, keepdims=True)
        for channel in range(3):
            smooth = Image.fromarray(field[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            levels[..., channel] += amplitude * np.asarray(smooth)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
