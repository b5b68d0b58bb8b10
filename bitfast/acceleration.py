"""accelerate(): our modules inside a BiT network that timm or HF transformers built."""

from torch import nn

from .errors import UsageError
from .model import Bottleneck
from .nn import GroupNormAct, StdConv2d

# Their classes by name, so that neither library is imported: timm's, then transformers'.
_CONVS = ("StdConv2d", "WeightStandardizedConv2d")
_NORMS = ("GroupNormAct", "BitGroupNormActivation")
_BLOCKS = ("PreActBottleneck", "BitPreActivationBottleneckLayer")
_PROJECTIONS = ("DownsampleConv", "BitDownsampleConv")
_OTHERS = ("StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")


class SummedBottleneck(Bottleneck):
    """A Bottleneck made of another one's modules that takes and returns one tensor, as timm's and transformers' do."""

    def __init__(self, block):
        nn.Module.__init__(self)
        self.downsample = None
        for name, child in block.named_children():
            setattr(self, name, child)
        self.training = block.training

    def forward(self, x):
        out, shortcut = super().forward(x)
        return self.drop_path(out) + shortcut


def accelerate(model):
    """`model` with our StdConv2d, GroupNormAct and block forward in place of those of timm or HF transformers.

    model  a BiT network of timm (`resnetv2_*_bit`), of transformers (`BitModel`, `BitForImageClassification`,
           `BitBackbone`), or a module that holds one; it is changed in place and returned

    The same outputs up to rounding, the same state-dict names, and the very same Parameter objects, so optimizers and
    checkpoints stay valid; the rest of the network is not touched. `fold`, `StandardizedSGD` and `set_memory` take it.
    A model that has our modules alone is returned as it is.
    Raises UsageError, with the model unchanged, if a module is not as in BiT (SAME padding, another activation, hooks
    that a swap would lose), or if there is nothing to swap.
    """
    found = {name: module for name, module in model.named_modules() if _kind(module)}
    for name, module in found.items():
        reason = _objection(module)
        if reason:
            raise UsageError(f"{name or 'the model'} ({type(module).__name__}) cannot be swapped: {reason}")
    if not found and not any(isinstance(module, StdConv2d) for module in model.modules()):
        raise UsageError(
            f"{type(model).__name__} holds nothing to swap: give a resnetv2_*_bit of timm or a Bit of transformers"
        )
    if "" in found:
        raise UsageError(f"a single {type(model).__name__} cannot be swapped in place: pass the network that holds it")
    inside_first = sorted(found, key=lambda name: -name.count("."))
    for name in inside_first:
        parent, _, leaf = name.rpartition(".")
        module = found[name]
        setattr(model.get_submodule(parent), leaf, _SWAPS[_kind(module)](module))
    return model


def _kind(module):
    """Which of the swaps is for the module; "other" if none is for a standardized convolution, "" for the rest."""
    name = type(module).__name__
    if isinstance(module, nn.Conv2d) and not isinstance(module, StdConv2d):
        return "conv" if name in _CONVS else "other" if name in _OTHERS else ""
    if isinstance(module, nn.GroupNorm) and name in _NORMS:
        return "norm"
    return "block" if name in _BLOCKS else ""


def _objection(module):
    """Why the module cannot be swapped, or ""."""
    kind = _kind(module)
    if kind == "other":
        return "its padding or its scaled weights are not BiT's"
    if _hooked(module) or _hooked(getattr(module, "downsample", None)):
        return "it has hooks, which a swap would lose: accelerate first, then register them"
    if kind == "conv" and (module.bias is not None or module.padding_mode != "zeros" or getattr(module, "pad", None)):
        return "it has a bias, or a padding that depends on the image; BiT's has neither"
    if kind == "norm":
        act = getattr(module, "act", getattr(module, "activation", None))
        if not isinstance(act, nn.ReLU):
            return f"its activation is {type(act).__name__}, BiT's is ReLU"
        if not isinstance(getattr(module, "drop", nn.Identity()), nn.Identity) or not module.affine:
            return "it has dropout or no weight and bias; BiT's has weight and bias alone"
    if kind == "block":
        projection = module.downsample
        if projection is not None and type(projection).__name__ not in _PROJECTIONS:
            return f"its shortcut is a {type(projection).__name__}, BiT's is a convolution"
    return ""


def _hooked(module):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in hooks)


def _conv(theirs):
    ours = StdConv2d(1, 1, theirs.kernel_size, theirs.stride, theirs.padding, ws_eps=theirs.eps)
    for setting in ("in_channels", "out_channels", "dilation", "groups", "weight", "training"):
        setattr(ours, setting, getattr(theirs, setting))
    return ours


def _norm(theirs):
    ours = GroupNormAct(theirs.num_groups, theirs.num_groups, theirs.eps)
    for setting in ("weight", "bias", "training"):
        setattr(ours, setting, getattr(theirs, setting))
    return ours


_SWAPS = {"conv": _conv, "norm": _norm, "block": SummedBottleneck}
