"""The model folder: weights and config.json in timm's local-dir layout, classes and preprocessing included.

Layout: model.safetensors (timm key names, raw weights), config.json (timm's fields, `label_names`, one extra key
`bitfast`), README.md. `timm.create_model("local-dir:FOLDER", pretrained=True)` loads the six official networks from it;
timm standardizes with 1e-8 there, the file holds the raw weights all the same.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from . import __version__
from .data.transform import Transform
from .errors import WeightsError
from .files import write_text
from .model import ResNetV2
from .variants import VARIANTS
from .weights import load_weights, save_weights

CARD = """---
library_name: timm
pipeline_tag: image-classification
tags: [timm, bitfast, big-transfer]
---
{name}: {classes} classes, images resized to {crop} x {crop} pixels, RGB scaled to [-1, 1].

Fine-tuned with bitfast {version}. {timm}

    bitfast predict {folder} IMAGE...
"""


@dataclass(frozen=True)
class SavedModel:
    """A network with what it needs to be used: class names in index order and the test transform.

    multilabel  its outputs are logits of independent classes
    """

    network: ResNetV2
    classes: tuple[str, ...]
    transform: Transform
    config: dict
    multilabel: bool = False


def save_model(folder, model, name, classes, transform, facts):
    """Write the model folder. `facts` (JSON-ready: metrics, rule) goes under config.json's "bitfast" key."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / "model.safetensors")
    architecture = f"resnetv2_{name.removeprefix('resnet')}_bit"
    in_timm = name != "resnet26x0_5"
    config = {
        "architecture": architecture,
        "num_classes": len(classes),
        "num_features": model.num_features,
        "global_pool": "avg",
        "label_names": list(classes),
        "pretrained_cfg": {
            "tag": "bitfast",
            "input_size": [model.in_chans, transform.crop, transform.crop],
            "fixed_input_size": False,
            "interpolation": transform.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "num_classes": len(classes),
            "pool_size": None,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
        },
        "bitfast": {
            "version": __version__,
            "model": name,
            "ws_eps": model.ws_eps,
            "transform": transform.to_dict(),
            **facts,
        },
    }
    write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    timm = (
        f'timm loads it too: timm.create_model("local-dir:{folder.name}", pretrained=True).'
        if in_timm
        else "timm has no such network."
    )
    card = CARD.format(
        name=name, classes=len(classes), crop=transform.crop, version=__version__, timm=timm, folder=folder.name
    )
    write_text(folder / "README.md", card)


def load_model(path):
    """The SavedModel of a model folder or of a run folder (its model/). WeightsError if it is neither or damaged."""
    folder = model_folder(path)
    if folder is None:
        raise WeightsError(f"{path} is neither a run nor a model folder (no model.safetensors and config.json there)")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = config["bitfast"]
        classes = tuple(config["label_names"])
        transform = Transform.from_dict(own["transform"])
        depths, width = VARIANTS[own["model"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder / 'config.json'} was not written by bitfast ({error!r}): fine-tune anew"
        ) from error
    model = ResNetV2(depths, width, len(classes), in_chans=config["pretrained_cfg"]["input_size"][0])
    load_weights(model, folder)
    return SavedModel(model, classes, transform, config, own.get("multilabel", False))


def model_folder(path):
    """The model folder that `path` is, or that the run folder `path` holds; None if there is none."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
            return folder
    return None
