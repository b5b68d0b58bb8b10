"""models(): the networks by name, their size, and which released weights there are and are here."""

import json
from dataclasses import dataclass
from fnmatch import fnmatch

import torch

from .. import cost
from ..errors import UsageError
from ..model import ResNetV2
from ..released import architecture_of, canonical, cfg_of, released_names, timm_names
from ..tables import Table
from ..variants import VARIANTS
from ..weights import cached

CLASSES, CROP = 1000, 224


@dataclass(frozen=True)
class Models:
    """One dict per network: name, parameters (1000 classes), gmacs (at 224 px), features, weights. Prints itself.

    weights  dicts: name, classes, timm (its names there), path (in the cache), present
    """

    networks: tuple[dict, ...]

    def table(self):
        """The Table that it prints."""
        rows = tuple(row for network in self.networks for row in _rows(network))
        columns = ("model", "parameters", "GMACs", "features", "released weights", "classes", "here")
        notes = (f"parameters with {CLASSES} classes, GMACs of one image of {CROP} px",)
        return Table("models", rows, columns, notes)

    def to_dict(self):
        """JSON-ready."""
        return {"models": list(self.networks)}

    def to_json(self):
        """One line."""
        return json.dumps(self.to_dict())

    def __str__(self):
        return str(self.table())

    def _repr_html_(self):
        return self.table()._repr_html_()


def models(pattern="*"):
    """The Models whose name, or the name of whose weights (the release's or timm's), matches a pattern with * and ?.

    Case does not count. Where weights alone match, the others are left out. Raises UsageError if nothing matches.
    """
    found = tuple(filter(None, (_network(name, pattern) for name in VARIANTS)))
    if not found:
        raise UsageError(f"no model matches {pattern!r}: bitfast models lists all of them, '*50x1*' those with 50x1")
    return Models(found)


def _network(name, pattern):
    all_weights = [_weights(released) for released in released_names() if architecture_of(released) == name]
    weights = [entry for entry in all_weights if any(_matches(n, pattern) for n in (entry["name"], *entry["timm"]))]
    if _matches(name, pattern):
        weights = all_weights
    elif not weights:
        return None
    with torch.device("meta"):
        model = ResNetV2(*VARIANTS[name], num_classes=CLASSES)
    gmacs = cost.macs(model, CROP).total() / 1e9
    return {
        "name": name,
        "parameters": cost.parameters(model),
        "gmacs": round(gmacs, 3),
        "features": model.num_features,
        "weights": weights,
    }


def _weights(released):
    path = cached(released)
    return {
        "name": released,
        "classes": cfg_of(released)["num_classes"],
        "timm": [name for name in timm_names() if canonical(name) == released],
        "path": str(path),
        "present": path.is_file(),
    }


def _matches(name, pattern):
    return fnmatch(name.lower(), pattern.lower())


def _rows(network):
    size = f"{network['parameters'] / 1e6:.2f} M", f"{network['gmacs']:.1f}", str(network["features"])
    first = (network["name"], *size)
    if not network["weights"]:
        yield (*first, "none", "", "")
    for entry in network["weights"]:
        yield (*first, entry["name"], f"{entry['classes']:,}", "yes" if entry["present"] else "no")
        first = ("",) * 4
