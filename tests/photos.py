"""Small class-folder trees of generated photos: each class has its own colour, which a network can learn."""

import numpy as np
import torch
from PIL import Image

import bitfast
from bitfast.data.transform import Transform
from bitfast.folder import save_model

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


def write_model(folder, classes=tuple(COLOURS), crop=32, **facts):
    """A run folder that holds a model folder alone: a resnet26x0_5 with a random head, logits of the order of one.

    Returns the raw network.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = bitfast.resnet26x0_5(num_classes=len(classes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or parameter is model.head.fc.weight:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.head.fc.weight.mul_(0.5)
    save_model(folder / "model", model, "resnet26x0_5", classes, Transform.test(crop), facts)
    return model.eval()
