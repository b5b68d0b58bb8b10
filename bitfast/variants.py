"""The table of named networks, and how they use memory; no torch, so that a wrong name is told at once."""

import difflib
from typing import Literal, get_args

from .errors import UsageError

# name -> (depths, width); the official networks, and a small one for laptops and tests.
VARIANTS = {
    "resnet26x0_5": ((2, 2, 2, 2), 0.5),
    "resnet50x1": ((3, 4, 6, 3), 1),
    "resnet101x1": ((3, 4, 23, 3), 1),
    "resnet50x3": ((3, 4, 6, 3), 3),
    "resnet101x3": ((3, 4, 23, 3), 3),
    "resnet152x2": ((3, 8, 36, 3), 2),
    "resnet152x4": ((3, 8, 36, 3), 4),
}


# What training keeps for backward: "fast" whatever is fastest, "save" as little as it can be computed from.
Memory = Literal["fast", "save"]


def memory_mode(name):
    """The name of a Memory mode, as it is; UsageError for an unknown one."""
    if name not in get_args(Memory):
        raise UsageError(f"unknown memory {name!r}: it must be one of {', '.join(get_args(Memory))}")
    return name


def variant(name):
    """(depths, width) of a named network; UsageError with a did-you-mean for an unknown name."""
    if name not in VARIANTS:
        close = [known for known in VARIANTS if known.startswith(str(name))]
        close = close or difflib.get_close_matches(str(name), VARIANTS, 1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"unknown model {name!r}: {hint}There are: {', '.join(VARIANTS)}")
    return VARIANTS[name]


def variant_of(depths, width):
    """The first name whose network, or its first stages, have these depths and width; "custom" for none."""
    for name, (whole, wide) in VARIANTS.items():
        if whole[: len(depths)] == tuple(depths) and wide == width:
            return name
    return "custom"
