"""The model folder: weights and config.json in timm's local-dir layout, classes and preprocessing included.

Layout: model.safetensors (timm key names, raw weights), config.json (timm's fields, `label_names`, one extra key
`bitfast`), README.md. `timm.create_model("local-dir:FOLDER", pretrained=True)` loads the six official networks from it;
timm standardizes with 1e-8 there, the file holds the raw weights all the same.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from . import __version__
from .create import create_model
from .data.transform import Transform
from .errors import WeightsError
from .files import write_text
from .folding import fold
from .model import ResNetV2
from .timm_config import architecture, pretrained_cfg
from .variants import VARIANTS
from .weights import identify, load_weights, resolve, save_weights
from .weights.hub import PREFIX as HUB_PREFIX

CARD = """---
library_name: timm
pipeline_tag: image-classification
tags: [timm, bitfast, big-transfer]
---
{name}: {classes} classes{kind}. Images: {transform}, RGB.

Trained with bitfast {version}. {timm}

    bitfast predict {folder} IMAGE...
"""


@dataclass(frozen=True)
class SavedModel:
    """A network with what it needs to be used: class names in index order and the test transform.

    multilabel   its outputs are logits of independent classes
    temperature  what the logits are divided by before they become probabilities; None if it was never calibrated
    """

    network: ResNetV2
    classes: tuple[str, ...]
    transform: Transform
    config: dict
    multilabel: bool = False
    temperature: float | None = None


def save_model(folder, model, name, classes, transform, facts):
    """Write the model folder. `facts` (JSON-ready: metrics, rule) goes under config.json's "bitfast" key."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / "model.safetensors")
    config = config_json(model, name, classes, transform, facts)
    in_timm = name != "resnet26x0_5"
    write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    timm = (
        f'timm loads it too: timm.create_model("local-dir:{folder.name}", pretrained=True).'
        if in_timm
        else "timm has no such network."
    )
    card = CARD.format(
        name=name,
        classes=len(classes),
        kind=", any number of them per image (sigmoid)" if facts.get("multilabel") else "",
        transform=transform,
        version=__version__,
        timm=timm,
        folder=folder.name,
    )
    write_text(folder / "README.md", card)


def config_json(model, name, classes, transform, facts):
    """Content of config.json: timm's layout, and what timm does not ask for under "bitfast"."""
    outputs = model.num_classes
    # timm resizes the short side to crop / crop_pct, rounded down: the half keeps it from one pixel less.
    crop_pct = transform.crop / (transform.resize + 0.5) if transform.geometry == "short_side" else 1.0
    options = {"size": transform.crop, "crop_pct": crop_pct, "interpolation": transform.interpolation}
    cfg = pretrained_cfg(outputs, in_chans=model.in_chans, tag="bitfast", **options)
    config = {
        "architecture": architecture(name),
        "num_classes": outputs,
        "num_features": model.num_features,
        "global_pool": model.head.global_pool,
        "label_names": list(classes),
        "pretrained_cfg": cfg,
        "bitfast": {
            "version": __version__,
            "model": name,
            "depths": list(model.depths),
            "width": model.width,
            "ws_eps": model.ws_eps,
            "transform": transform.to_dict(),
            **facts,
        },
    }
    if len(model.depths) < 4:  # as many channels as stages: so timm builds no more of them
        config["model_args"] = {"channels": [256 * 2**i for i in range(len(model.depths))]}
    return config


def load_model(path):
    """The SavedModel of a model folder, of a run folder (its model/), or of "hf-hub:OWNER/NAME".

    A folder exported as safetensors gives a folded network. One that timm wrote is read too; without `label_names` its
    classes are numbers. WeightsError if there is none, or it is damaged.
    """
    name = str(path)
    folder = model_folder(resolve(name) if name.startswith(HUB_PREFIX) else path)
    if folder is None:
        raise WeightsError(f"{path} is neither a run nor a model folder (no model.safetensors and config.json there)")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = config.get("bitfast") or _from_timm(config)
        classes = tuple(config.get("label_names") or numbered(config["num_classes"]))
        transform = Transform.from_dict(own["transform"])
        depths, width = (own["depths"], own["width"]) if "depths" in own else VARIANTS[own["model"]]
        channels, pool = config["pretrained_cfg"]["input_size"][0], config.get("global_pool", "avg")
        model = ResNetV2(depths, width, config["num_classes"], in_chans=channels, global_pool=pool)
        temperature = own.get("temperature")
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"temperature {temperature}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder / 'config.json'} is not as bitfast or timm writes it ({error!r}): fine-tune anew"
        ) from error
    if own.get("folded"):
        model = fold(model)
        _load_folded(model, folder / "model.safetensors")
    else:
        load_weights(model, folder)
    model.pretrained_cfg = config["pretrained_cfg"]
    return SavedModel(model, classes, transform, config, own.get("multilabel", False), temperature)


def released_model(name):
    """The SavedModel of a network's or a released name, with its released weights; its classes are numbers.

    Raises UsageError on an unknown name, WeightsError if the weights cannot be had.
    """
    model = create_model(name, pretrained=True)
    cfg = model.pretrained_cfg
    return SavedModel(model, numbered(model.num_classes), transform_of(cfg), {"pretrained_cfg": cfg, "bitfast": {}})


def numbered(count):
    """Class names where there are none: the indices, written with equally many digits."""
    return tuple(f"{i:0{len(str(count - 1))}d}" for i in range(count))


def transform_of(cfg):
    """The test Transform that timm's `pretrained_cfg` describes."""
    crop, share = cfg["input_size"][1], cfg.get("crop_pct", 0.875)
    how = {"interpolation": cfg.get("interpolation", "bilinear")}
    squashed = cfg.get("crop_mode", "center") == "squash"
    size = math.floor(crop / share)
    transform = Transform.test(size, **how) if squashed else Transform.short_side(size, crop, **how)
    if squashed and size != crop:
        raise ValueError(f"crop_pct {share} with crop_mode squash")
    mean, std = (255 * cfg.get(name, (0.5,))[0] for name in ("mean", "std"))
    return replace(transform, mean=mean, std=std)


def save_temperature(folder, temperature, calibration):
    """Put the temperature and the facts of its fit into the config.json of a model folder, atomically."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    own = config.get("bitfast") or _from_timm(config)
    config["bitfast"] = {**own, "temperature": temperature, "calibration": calibration}
    write_text(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _from_timm(config):
    """What a config.json of timm says of the things that ours has under "bitfast"."""
    network, _ = identify(config["architecture"])
    return {"model": network, "transform": transform_of(config["pretrained_cfg"]).to_dict()}


def _load_folded(model, path):
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        why = " ".join(str(error).split())[:120]
        raise WeightsError(f"{path} does not fit its config.json ({why}): export it again") from error


def model_folder(path):
    """The model folder that `path` is, or that the run folder `path` holds; None if there is none."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
            return folder
    return None
