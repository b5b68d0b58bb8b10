"""Every name of a network or of its published weights, and what it means; no torch: a wrong one is told at once.

Names of weights are the files' paths in the public bucket without `.npz`. Source: README and colabs of the BiT release;
the `distill/` ones are of 2106.05237. BiT-L (JFT) was never released. timm's names of the same files are known too.
"""

import difflib
import re

from .errors import UsageError
from .timm_config import architecture, pretrained_cfg
from .variants import VARIANTS, variant

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


def _network(released):
    return "resnet" + re.search(r"R(\d+x\d+)", released)[1]


# Every name in lower case -> (model name, released name or None).
_KNOWN = {name.lower(): (name, None) for name in VARIANTS}
_KNOWN |= {name.lower(): ("resnet" + network[1:], None) for name, network in _UNTAGGED.items()}
_KNOWN |= {network.lower(): ("resnet" + network[1:], None) for network in _NETWORKS}
_KNOWN |= {name.lower(): (_network(name), name) for name in _RELEASED}
_KNOWN |= {name.lower(): (_network(released), released) for name, released in _TIMM.items()}


def released_names():
    """Names that `resolve` and `pretrained=` take, as a tuple."""
    return _RELEASED


def timm_names():
    """timm's names of released weights, tags before the older ones, as a tuple."""
    return tuple(sorted(_TIMM, key=lambda name: "." not in name))


def architecture_of(name):
    """Model name of a released checkpoint: "BiT-M-R50x1" -> "resnet50x1". Raises UsageError for an unknown name."""
    if canonical(name) is None:
        raise UsageError(unknown_weights(name))
    return identify(name)[0]


def identify(name):
    """(model name, released name or None) of a network's name, a released name, or timm's name of either.

    Also the paper's short names ("R50x1"); case does not count. Raises UsageError with a did-you-mean for an unknown
    name.
    """
    known = _KNOWN.get(str(name).lower())
    if known:
        return known
    if str(name).lower().startswith(("bit-", "distill", "resnetv2")):
        hint = _nearest(name, (*_RELEASED, *_UNTAGGED, *_TIMM)) or "see bitfast.list_models(pretrained=True)"
        raise UsageError(f"unknown model {name!r}: {hint}")
    if re.match(r"r\d", str(name).lower()):
        hint = _nearest(name, _NETWORKS) or f"there are {', '.join(_NETWORKS)}"
        raise UsageError(f"unknown model {name!r}: {hint}")
    variant(name)
    return name, None


def canonical(name):
    """The released name that `name` means, of the release or of timm, in any case; None if it is none of them."""
    return _KNOWN.get(str(name).lower(), (None, None))[1]


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


def unknown_weights(name):
    """The line that says so, with a did-you-mean."""
    hint = _nearest(name, _RELEASED) or "see bitfast.released_names()"
    return f"unknown weights {name!r}, neither a file here nor a released name; {hint}"


def _nearest(name, known):
    by_lower = {entry.lower(): entry for entry in known}
    close = [entry for entry in by_lower if entry.startswith(name.lower())]
    close = close or difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"did you mean {by_lower[close[0]]}?" if close else ""
