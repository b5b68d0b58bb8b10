"""The published BiT checkpoints by name, and where each one is on this machine.

Names are the files' paths in the public bucket without `.npz`. Source: README and colabs of the BiT release; the
`distill/` ones are of 2106.05237. BiT-L (JFT) was never released. timm's names of the same files are known too.
"""

import difflib
import os
import re
from pathlib import Path

from ..errors import UsageError, WeightsError
from ..files import cache_folder
from ..timm_config import architecture, pretrained_cfg
from ..variants import variant
from . import hub
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

# Classes, and what timm tells of the test images where it is not 224 px, the whole image: by the end of a name.
_CLASSES = {"CIFAR10": 10, "flowers128": 102, "pet128": 37, "food128": 101, "sun128": 397}
_TEST_IMAGES = {
    "R152x4-ILSVRC2012": {"size": 480},
    "-ILSVRC2012": {"size": 448},
    "-CIFAR10": {"size": 128},
    "128": {"size": 128},
    "_160": {"size": 160},
    "_T_384": {"size": 384, "interpolation": "bicubic"},
    "_224": {"interpolation": "bicubic", "crop_pct": 0.875},
}

# timm's tags and its older names: pattern of the name -> what was released, R for the network.
_IN_TIMM = {
    "resnetv2_{}_bit.goog_in21k": "BiT-M-{}",
    "resnetv2_{}_bit.goog_in21k_ft_in1k": "BiT-M-{}-ILSVRC2012",
    "resnetv2_{}_bitm_in21k": "BiT-M-{}",
    "resnetv2_{}_bitm": "BiT-M-{}-ILSVRC2012",
}
_TIMM = {
    there.format(network.removeprefix("R")): here.format(network)
    for there, here in _IN_TIMM.items()
    for network in _NETWORKS
}
_TIMM |= {
    "resnetv2_50x1_bit.goog_distilled_in1k": "distill/R50x1_224",
    "resnetv2_50x1_bit_distilled": "distill/R50x1_224",
    "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k": "distill/R152x2_T_224",
    "resnetv2_152x2_bit_teacher": "distill/R152x2_T_224",
    "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384": "distill/R152x2_T_384",
    "resnetv2_152x2_bit_teacher_384": "distill/R152x2_T_384",
}
_UNTAGGED = {architecture("resnet" + network.removeprefix("R")): network for network in _NETWORKS}


def released_names():
    """Names that `resolve` and `pretrained=` take, as a tuple."""
    return _RELEASED


def timm_names():
    """timm's names of released weights, tags before the older ones, as a tuple."""
    return tuple(sorted(_TIMM, key=lambda name: "." not in name))


def architecture_of(name):
    """Model name of a released checkpoint: "BiT-M-R50x1" -> "resnet50x1". Raises UsageError for an unknown name."""
    name = _TIMM.get(name, name)
    if name not in _RELEASED:
        raise UsageError(_unknown(name))
    return "resnet" + re.search(r"R(\d+x\d+)", name)[1]


def identify(name):
    """(model name, released name or None) of a network's name, a released name, or timm's name of either.

    Raises UsageError with a did-you-mean for an unknown name.
    """
    if name in _RELEASED or name in _TIMM:
        return architecture_of(name), _TIMM.get(name, name)
    if name in _UNTAGGED:
        return "resnet" + _UNTAGGED[name].removeprefix("R"), None
    if str(name).lower().startswith(("bit-", "distill", "resnetv2")):
        hint = _nearest(name, (*_RELEASED, *_UNTAGGED, *_TIMM)) or "see bitfast.list_models(pretrained=True)"
        raise UsageError(f"unknown model {name!r}: {hint}")
    variant(name)
    return name, None


def cfg_of(name, in_chans=3):
    """timm's `pretrained_cfg` of a released name: classes and test images of those weights."""
    ends = [classes for end, classes in _CLASSES.items() if name.endswith(end)]
    classes = ends[0] if ends else 21843 if re.fullmatch(r"BiT-M-R\d+x\d+", name) else 1000
    options = next((options for end, options in _TEST_IMAGES.items() if name.endswith(end)), {})
    return pretrained_cfg(classes, in_chans=in_chans, tag=name, **options)


def default_for(model_name):
    """The ImageNet-21k checkpoint of a model: "resnet50x1" -> "BiT-M-R50x1". Raises UsageError if none was released."""
    name = "BiT-M-" + model_name.replace("resnet", "R", 1)
    if name not in _RELEASED:
        having = ", ".join(network.replace("R", "resnet") for network in _NETWORKS)
        raise UsageError(f"no weights were released for {model_name}; there are some for {having}")
    return name


def resolve(name_or_path):
    """Path of weights: an existing path is itself, a released name (or timm's name of it) is in the cache or gets
    downloaded to it, "hf-hub:OWNER/NAME" likewise through huggingface_hub and its cache.

    Cache:   files.cache_folder()
    Network: only for a name that is not in the cache; $BITFAST_WEIGHTS_URL names a mirror of the bucket
    Raises WeightsError for a path that does not exist, a failed download (the line says where to put the file), or a
    cached file whose size changed; UsageError for an unknown name.
    """
    text = str(name_or_path)
    if text.startswith(hub.PREFIX):
        return hub.download(text)
    path = Path(text).expanduser()
    if path.exists():
        return path
    text = _TIMM.get(text, text)
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
    hint = _nearest(name, _RELEASED) or "see bitfast.released_names()"
    return f"unknown weights {name!r}, neither a file here nor a released name; {hint}"


def _nearest(name, known):
    by_lower = {entry.lower(): entry for entry in known}
    close = [entry for entry in by_lower if entry.startswith(name.lower())]
    close = close or difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"did you mean {by_lower[close[0]]}?" if close else ""
