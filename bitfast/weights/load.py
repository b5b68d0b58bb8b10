"""load_weights(): any BiT weights file into a model, checked whole before a single value changes."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UsageError, WeightsError
from ..runtime import say
from ..variants import VARIANTS
from .adapt import adapted
from .files import read
from .raw import require_raw

_HEAD = ("head.fc.weight", "head.fc.bias")


@dataclass(frozen=True)
class LoadReport:
    """What load_weights did.

    path             the file or folder read
    format           its layout: "official", "timm", "transformers" or "big_transfer"
    head             "loaded"; "zeroed": the file's head is of another size, or missing; "none": the model has no head
    classes_in_file  outputs of the file's head, None without one
    ws_eps           weight-standardization epsilon now set on the model
    """

    path: Path
    format: str
    head: str
    classes_in_file: int | None
    ws_eps: float


def classes_in(path):
    """Outputs of the head in a weights file or model folder; 0 if it has none. Raises WeightsError as load_weights."""
    bias = read(Path(path).expanduser()).tensors.get(_HEAD[1])
    return 0 if bias is None else len(bias)


def load_weights(model, path, adapt=False):
    """Copy a weights file into `model` (a raw ResNetV2) and set its epsilon; returns a LoadReport.

    path  official .npz (HWIO, `resnet/...`); .safetensors or .pth/.pt/.bin/.ckpt/.tar state dicts under timm's, HF
          transformers' or bit_pytorch's names, wrapper prefixes ignored, head 2-D or 4-D; a model or run folder
    adapt fit weights of more stages or of other input channels, as `adapt.adapted` has it, and say so

    A head with another number of classes, or none, leaves a zero head and says so in one line. Values are cast to the
    parameters' dtype and device. The epsilon is the one stated in safetensors metadata or config.json, else that of
    the layout: 1e-10 for the BiT release, 1e-8 for timm and transformers.
    Raises WeightsError, with the model untouched, if the file cannot be read or any other name or shape differs;
    UsageError for a folded model or one on the meta device.
    """
    require_raw(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError('the model is on the meta device: give it memory first, model.to_empty(device="cpu")')
    path = Path(path).expanduser()
    content = read(path)
    tensors, own = dict(content.tensors), model.state_dict()
    if adapt:
        tensors, changes = adapted(tensors, own)
        for change in changes:
            say(f"{path.absolute().name}: {change}")
    head, classes = _fit_head(tensors, own)
    _check(tensors, own, head, path)
    with torch.no_grad():
        for name, parameter in own.items():
            if name in tensors:
                parameter.copy_(tensors[name])
            else:
                parameter.zero_()
    model.ws_eps = content.ws_eps
    if head == "zeroed":
        found = "none" if classes is None else f"{classes} classes"
        say(f"head: {found} in {path.absolute().name}, {len(own[_HEAD[1]])} here: new head, zero-initialized")
    return LoadReport(path, content.layout, head, classes, content.ws_eps)


def _fit_head(tensors, own):
    """Make the file's head 4-D, or drop it if its classes are not the model's: (head, classes in file)."""
    weight = tensors.get(_HEAD[0])
    classes = None if weight is None or weight.ndim == 0 else weight.shape[0]
    if _HEAD[0] in own and classes == own[_HEAD[0]].shape[0]:
        if weight.ndim == 2:
            tensors[_HEAD[0]] = weight[:, :, None, None]
        return "loaded", classes
    for name in _HEAD:
        tensors.pop(name, None)
    return "zeroed" if _HEAD[0] in own else "none", classes


def _check(tensors, own, head, path):
    stem, own_stem = tensors.get("stem.conv.weight"), own["stem.conv.weight"]
    if stem is not None and stem.ndim == 4 and stem.shape[1] != own_stem.shape[1]:
        raise WeightsError(
            f"{path}: its network takes {stem.shape[1]} input channels (in_chans), this model {own_stem.shape[1]}; "
            f"build the model with in_chans={stem.shape[1]}, or load with adapt=True"
        )
    wanted = {name for name in own if head != "zeroed" or name not in _HEAD}
    missing = [name for name in own if name in wanted and name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    kinds = {name: (_kind(tensors[name]), _kind(own[name])) for name in own if name in tensors}
    others = [f"{name} {theirs} in the file, {ours} here" for name, (theirs, ours) in kinds.items() if theirs != ours]
    problems = [
        _listing(*problem)
        for problem in (("missing", missing), ("unexpected", unexpected), ("of another shape", others))
        if problem[1]
    ]
    if problems:
        raise WeightsError(f"{path} does not fit this model: {', '.join(problems)}; {_advice(tensors, own)}")


def _kind(tensor):
    """Shape, and the dtype if it is no float: what has to agree."""
    shape = tuple(tensor.shape)
    return f"{shape}" if tensor.is_floating_point() else f"{shape} {tensor.dtype}"


def _listing(what, entries, shown=3):
    more = ", ..." if len(entries) > shown else ""
    return f"{len(entries)} {what} ({', '.join(entries[:shown])}{more})"


def _advice(tensors, own):
    """The next step, from what network the file seems to hold."""
    held = _architecture(tensors)
    if held is None:
        return "it is not a BiT network; see bitfast.released_names() for the published ones"
    if held == _architecture(own):
        return "it is of the same depths and width, so incomplete or of another family: fetch or save it again"
    for name, (depths, width) in VARIANTS.items():
        if held == (tuple(depths), width):
            return f'it holds a {name}: create_model("{name}"), or --model {name}'
    for name, (depths, width) in VARIANTS.items():
        if held == (tuple(depths)[: len(held[0])], width):
            return f'it holds the first stages of a {name}: create_model("{name}", stages={len(held[0])})'
    return f"it holds a network of depths {held[0]} and width {held[1]:g}: ResNetV2({held[0]}, {held[1]:g})"


def _architecture(tensors):
    """(depths, width) by names and stem shape, or None."""
    stem, depths = tensors.get("stem.conv.weight"), {}
    for name in tensors:
        if block := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
            stage, index = int(block[1]), int(block[2])
            depths[stage] = max(depths.get(stage, 0), index + 1)
    if stem is None or stem.ndim != 4 or not depths:
        return None
    return tuple(depths[stage] for stage in sorted(depths)), stem.shape[0] / 64
