"""export(): a trained network as a file that runs without bitfast, checked against it before it gets its name."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .. import __version__
from ..data.transform import Transform
from ..errors import BitfastError, UsageError
from ..features import FeatureNetwork
from ..files import write_text
from ..folder import config_json, load_model
from ..folding import fold
from ..model import ResNetV2
from ..numerics import EXPORT_BOUND
from ..runtime import say
from ..variants import variant_of
from . import hub
from .card import card
from .formats import FORMATS
from .plain import PlainNetwork


@dataclass(frozen=True)
class Exported:
    """What an export gave: the file, and its largest logit difference to bitfast, of at most `allowed`."""

    file: str
    format: str
    precision: str
    max_logit_difference: float
    allowed: float

    def to_json(self):
        return json.dumps(asdict(self))


def export(source, path, *, format=None, fp16=False, classes=None, transform=None, push_to_hub=None):
    """Write the folded network, plain convolutions and GroupNorm, as a file for other programs; returns an Exported.

    source       a run or model folder, a Classifier, or a ResNetV2, raw or folded, in float32
    path         folder to create: model.onnx (.pt2, .safetensors), config.json and a model card, README.md; or, with
                 one of these suffixes, the file alone
    format       "onnx": opset 21, batch, height and width dynamic; "pt2": torch.export, likewise (both sides from 33 px
                 on); "safetensors": weights under timm's names, for `bitfast.load`. Default by the suffix, else "onnx"
    fp16         weights and activations float16 (GroupNorm's statistics, pool and head float32); images and logits are
                 float32 all the same
    classes      class names and
    transform    test Transform of a ResNetV2; the others bring their own
    push_to_hub  "OWNER/NAME" on the Hugging Face Hub to upload the folder to

    Input "images" (N, C, H, W) float32, RGB, (v - mean) / std; output "logits" (N, classes) float32, or "features".
    Metadata of the file (ONNX properties, safetensors header, pt2 extra file): label_names, preprocessing,
    probabilities ("softmax"; "sigmoid" of a multi-label run), temperature, architecture, precision, bitfast. Logits are
    the network's own; a calibrated model's probabilities are those of logits / temperature, "1.0" for others.
    Check: the file is run, ONNX by onnxruntime, on two image sizes and two batch sizes; the largest logit difference
    to bitfast must be at most 1e-4, for fp16 2e-2 of the largest logit. Until then the file has no name.
    Raises UsageError if a value cannot be, the path is taken or a package is missing; WeightsError without a model
    there; BitfastError if the check fails.
    """
    path = Path(path)
    format, alone = _format(path, format)
    FORMATS[format].require()
    if push_to_hub:
        if alone:
            raise UsageError(f"--push-to-hub uploads a folder: write {path.with_suffix('')} instead of {path}")
        hub.require(push_to_hub)
    network, classes, transform, facts = _source(source, classes, transform)
    if transform.random_crop or transform.flip or transform.geometry == "inception":
        raise UsageError(f"the transform draws at random ({transform}): give one of test images, Transform.test(crop)")
    if transform.crop < FORMATS[format].smallest:
        least = FORMATS[format].smallest
        raise UsageError(f"{format} takes images from {least} px on, this network's have {transform.crop}: use onnx")
    config = config_json(network, variant_of(network.depths, network.width), classes, transform, facts)
    config["architecture"] += "_folded"
    config["bitfast"] |= {"folded": True, "precision": "float16" if fp16 else "float32"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as aside:
            exported = _write(Path(aside) / "export", network, config, format, path, alone)
    except OSError as error:
        raise BitfastError(f"{path} cannot be written ({error}): check the folder and the free space") from error
    difference, allowed = exported.max_logit_difference, exported.allowed
    say(f"{exported.file}: max logit difference to bitfast {difference:.2g}, allowed {allowed:.2g}")
    if push_to_hub:
        say(hub.push(path, push_to_hub))
    return exported


def _format(path, format):
    """(format, whether `path` is one file of it). UsageError if they do not go together or the path is taken."""
    suffixes = {f".{name}": name for name in FORMATS}
    alone = path.suffix in suffixes
    format = format or suffixes.get(path.suffix, "onnx")
    if format not in FORMATS:
        raise UsageError(f"unknown export format {format!r}: it must be one of {', '.join(FORMATS)}")
    if alone and suffixes[path.suffix] != format:
        raise UsageError(f"{path} does not name a file of format {format}: write {path.with_suffix('.' + format)}")
    if alone or not path.is_dir() or any(path.iterdir()):
        for taken in (path, path.with_name(path.name + ".data")):
            if taken.exists():
                raise UsageError(f"{taken} is there already and is not overwritten: choose another path, or delete it")
    return format, alone


def _write(folder, network, config, format, path, alone):
    """Write the export into the new `folder`, check it there, and only then move it to `path`."""
    folder.mkdir()
    precision = config["bitfast"]["precision"]
    folded = fold(network).eval()
    plain = PlainNetwork(folded, getattr(torch, precision))
    file = folder / (path.name if alone else FORMATS[format].file)
    FORMATS[format].write(plain, file, _metadata(config), _images(network.in_chans, 2, 128, 96))
    run = FORMATS[format].open(file, plain)
    difference, allowed = _check(run, folded, config["bitfast"]["transform"]["crop"], precision)
    exported = Exported(str(path if alone else path / file.name), format, precision, difference, allowed)
    if alone:
        for written in folder.iterdir():
            os.replace(written, path.parent / written.name)
    else:
        write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        write_text(folder / "README.md", card(config, exported))
        os.replace(folder, path)
    return exported


def _source(source, classes, transform):
    if isinstance(source, (str, Path)):
        saved = load_model(source)
        kept = ("metrics", "rule", "weights", "multilabel", "temperature", "calibration")
        own = {key: value for key, value in saved.config["bitfast"].items() if key in kept}
        return saved.network, classes or saved.classes, transform or saved.transform, own
    facts = {}
    if hasattr(source, "classes_"):
        facts = {"multilabel": source.multilabel} | ({"temperature": source.temperature} if source.calibrated else {})
        classes, transform, source = classes or source.classes_, transform or source.transform, source.network
    if not isinstance(source, ResNetV2) or isinstance(source, FeatureNetwork):
        raise UsageError(
            f"export takes a run, a model folder, a Classifier or a ResNetV2, not a {type(source).__name__}"
        )
    if source.stem.conv.weight.dtype != torch.float32:
        raise UsageError(f"export starts from float32, this network is {source.stem.conv.weight.dtype}: model.float()")
    if classes is not None and len(classes) != source.num_classes:
        raise UsageError(f"there are {len(classes)} class names and {source.num_classes} outputs; give one for each")
    size = source.pretrained_cfg["input_size"][1]
    return source, tuple(classes or ()), transform or Transform.test(size), facts


def _metadata(config):
    """The strings that travel inside the file."""
    transform = config["bitfast"]["transform"]
    spec = {name: transform[name] for name in ("geometry", "resize", "crop", "interpolation", "mean", "std")}
    preprocessing = {**spec, "antialias": True, "channels": "RGB", "layout": "NCHW"}
    return {
        "label_names": json.dumps(config["label_names"], ensure_ascii=False),
        "preprocessing": json.dumps(preprocessing),
        "probabilities": "sigmoid" if config["bitfast"].get("multilabel") else "softmax",
        "temperature": str(config["bitfast"].get("temperature", 1.0)),
        "architecture": config["architecture"],
        "precision": config["bitfast"]["precision"],
        "bitfast": __version__,
    }


def _images(channels, n, height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.rand((n, channels, height, width), generator=generator) * 2 - 1


def _check(run, folded, crop, precision):
    """(largest logit difference, what is allowed) of the file to the folded network; BitfastError if it is more."""
    differences, logits = [], []
    device = folded.stem.conv.weight.device
    with torch.inference_mode():
        for height, width in ((96, 64), (crop, crop)):
            for n in (1, 2):
                images = _images(folded.in_chans, n, height, width)
                expected = folded(images.to(device)).cpu()
                differences.append((run(images) - expected).abs().max())
                logits.append(expected.abs().max())
    difference, largest = float(torch.stack(differences).max()), float(torch.stack(logits).max())
    allowed = EXPORT_BOUND[precision] * (1 if precision == "float32" else max(1.0, largest))
    if not difference <= allowed:
        raise BitfastError(
            f"the export gives other logits than bitfast (largest difference {difference:.2g}, allowed {allowed:.2g}): "
            "nothing was written; check the weights for values that are not finite, or export without fp16"
        )
    return difference, allowed
