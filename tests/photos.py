"""Small class-folder trees of generated photos: each class has its own colour, which a network can learn."""

import numpy as np
from PIL import Image

COLOURS = {"apple": (200, 40, 40), "lime": (60, 190, 60), "plum": (90, 50, 170)}


def write_class_folders(root, per_class=12, size=(40, 48), seed=0, classes=COLOURS):
    """root/<class>/<i>.png for each class; returns root."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            noise = rng.normal(0, 40, (*size, 3))
            pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root
