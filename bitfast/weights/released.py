"""The published BiT checkpoints by name, and where each one is on this machine.

Names are the files' paths in the public bucket without `.npz`. Source: README and colabs of the BiT release; the
`distill/` ones are of 2106.05237. BiT-L (JFT) was never released.
"""

import difflib
import os
import re
from pathlib import Path

from ..errors import UsageError, WeightsError
from ..files import cache_folder
from .download import download

BASE_URL = "https://storage.googleapis.com/bit_models/"

_NETWORKS = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")
_RELEASED = tuple(
    [f"BiT-S-{network}" for network in _NETWORKS]
    + [f"BiT-M-{network}" for network in _NETWORKS]
    + [f"BiT-M-{network}-ILSVRC2012" for network in _NETWORKS]
    + ["BiT-M-R50x1-CIFAR10", "distill/R50x1_224", "distill/R50x1_160"]
    + ["distill/R152x2_T_224", "distill/R152x2_T_384"]
    + [f"distill/R152x2_T_{task}" for task in ("flowers128", "pet128", "food128", "sun128")]
)


def released_names():
    """Names that `resolve` and `pretrained=` take, as a tuple."""
    return _RELEASED


def architecture_of(name):
    """Model name of a released checkpoint: "BiT-M-R50x1" -> "resnet50x1". Raises UsageError for an unknown name."""
    if name not in _RELEASED:
        raise UsageError(_unknown(name))
    return "resnet" + re.search(r"R(\d+x\d+)", name)[1]


def default_for(model_name):
    """The ImageNet-21k checkpoint of a model: "resnet50x1" -> "BiT-M-R50x1". Raises UsageError if none was released."""
    name = "BiT-M-" + model_name.replace("resnet", "R", 1)
    if name not in _RELEASED:
        having = ", ".join(network.replace("R", "resnet") for network in _NETWORKS)
        raise UsageError(f"no weights were released for {model_name}; there are some for {having}")
    return name


def resolve(name_or_path):
    """Path of a weights file: an existing path is itself, a released name is in the cache or gets downloaded to it.

    Cache:   files.cache_folder()
    Network: only for a released name that is not in the cache; $BITFAST_WEIGHTS_URL names a mirror of the bucket
    Raises WeightsError for a path that does not exist, a failed download (the line says where to put the file), or a
    cached file whose size changed; UsageError for an unknown name.
    """
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.exists():
        return path
    if text in _RELEASED:
        target = cache_folder() / f"{text}.npz"
        base = os.environ.get("BITFAST_WEIGHTS_URL", BASE_URL).rstrip("/")
        return download(text, f"{base}/{text}.npz", target)
    if path.suffix or (isinstance(name_or_path, Path) or os.sep in text):
        stem = text.removesuffix(".npz")
        hint = f'"{stem}" without .npz downloads it' if stem in _RELEASED else "check the path"
        raise WeightsError(f"{text}: no such weights file; {hint}")
    raise UsageError(_unknown(text))


def _unknown(name):
    by_lower = {known.lower(): known for known in _RELEASED}
    close = [known for known in by_lower if known.startswith(name.lower())]
    close = close or difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[close[0]]}?" if close else "see bitfast.released_names()"
    return f"unknown weights {name!r}, neither a file here nor a released name; {hint}"
