"""Weights files hold raw weights: the check that a model still has them."""

from torch import nn

from ..errors import UsageError
from ..nn import StdConv2d


def require_raw(model):
    """Raise UsageError if a convolution of `model` other than head.fc is a plain one, as in a folded network."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, StdConv2d) and name != "head.fc":
            raise UsageError(
                f"{name} is a plain convolution: this network is folded, and weights files hold raw weights; "
                "pass the raw model it was folded from"
            )
