"""fold(): the same network with plain convolutions whose weights are the standardized ones."""

import copy

import torch
from torch import nn

from .model import set_memory
from .nn import StdConv2d
from .ops import weight_standardize


def std_convs(model):
    """The model's StdConv2d modules by qualified name, in definition order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, StdConv2d)}


@torch.inference_mode(False)  # ordinary parameters also when called inside inference_mode
@torch.no_grad()
def fold(model, dtype=None, memory=None):
    """The folded twin of `model`: each StdConv2d becomes an nn.Conv2d that holds w_hat.

    model  any module with StdConv2d inside; it is not changed
    dtype  of the folded convolution weights, and so of the activations; default: the raw weights' own
    memory "fast" or "save", as `ResNetV2.memory`; default: the model's own

    The twin's convolution weights are new leaf Parameters in channels_last memory, a snapshot of the raw ones as they
    are now; norms, head and biases are the very same Parameters as the model's. Same outputs as the model up to the
    rounding of w_hat to `dtype`; same state-dict names. `StandardizedSGD` trains such a twin. Outside training what the
    CPU kernels make of a weight is kept until it changes; a change through `.data` is not seen: fold anew after one.
    Raises ValueError on another memory.
    """
    convs = list(std_convs(model).values())
    groups = {}
    for conv in convs:
        groups.setdefault(conv.ws_eps, []).append(conv)
    folded = {}
    for eps, members in groups.items():
        w_hats = weight_standardize([conv.weight for conv in members], eps, dtype)
        folded.update((id(conv), w_hat) for conv, w_hat in zip(members, w_hats, strict=True))
    twin = _twin(model, folded)
    if memory is not None:
        set_memory(twin, memory)
    return twin


def _twin(module, folded):
    if id(module) in folded:
        return _plain(module, folded[id(module)])
    twin = copy.copy(module)
    twin._parameters, twin._buffers = module._parameters.copy(), module._buffers.copy()
    twin._modules = {name: _twin(child, folded) for name, child in module._modules.items() if child is not None}
    twin._modules.update({name: None for name, child in module._modules.items() if child is None})
    return twin


def _plain(conv, w_hat):
    shape = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
    plain = nn.Conv2d(*shape, conv.dilation, conv.groups, bias=False, device="meta")
    plain.weight = nn.Parameter(
        w_hat.contiguous(memory_format=torch.channels_last), requires_grad=conv.weight.requires_grad
    )
    return plain.train(conv.training)
