"""The three modules a BiT network is made of, each a few parameters and a call to ops."""

import torch
from torch import nn
from torch.nn import functional as F

from .numerics import GN_EPS, GN_GROUPS, WS_EPS
from .ops import group_norm_act, norm_conv, stem_conv, stem_pool, weight_standardize
from .ops._dtypes import accumulate_dtype


class StdConv2d(nn.Conv2d):
    """Conv2d whose weight is standardized per output filter on every forward (Weight Standardization).

        w_hat = (w - mean) / sqrt(var + ws_eps),  mean and biased var over (I, KH, KW)

    Shapes:  x (N, I, H, W), weight (O, I, KH, KW) raw; statistics in float32 (float64 for float64)
    Source:  Qiao et al. 2019 (1903.10520); eps inside the root as in bit_pytorch/models.py
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, *, ws_eps=WS_EPS):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.ws_eps = ws_eps

    def forward(self, x):
        return self._conv_forward(x, self.standardized(x.dtype), None)

    def standardized(self, dtype):
        """w_hat in the dtype, with its graph."""
        return weight_standardize([self.weight], self.ws_eps, dtype)[0]

    def extra_repr(self):
        return f"{super().extra_repr()}, ws_eps={self.ws_eps:g}"


class GroupNormAct(nn.Module):
    """GroupNorm then ReLU, of x or of x + residual; with a residual returns (y, x + residual)."""

    def __init__(self, channels, groups=GN_GROUPS, eps=GN_EPS):
        super().__init__()
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups; width must be a multiple of 0.5")
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x, residual=None):
        return group_norm_act(x, *self.parameters_for(x), residual=residual, groups=self.groups, eps=self.eps)

    def parameters_for(self, x):
        """weight and bias in the dtype that the operators want with x."""
        weight, bias, dtype = self.weight, self.bias, accumulate_dtype(x.dtype)
        if weight.dtype != dtype or bias.dtype != dtype:
            weight, bias = weight.to(dtype), bias.to(dtype)
        return weight, bias

    def extra_repr(self):
        return f"{self.weight.numel()}, groups={self.groups}, eps={self.eps:g}"


class Stem(nn.Module):
    """7x7/2 StdConv, then zero padding of 1 and an unpadded 3x3/2 max-pool: zeros take part in the maximum, and the
    stem's output is signed, so this is not MaxPool2d(padding=1). Source: bit_pytorch/models.py, `root`."""

    def __init__(self, in_chans, channels, *, ws_eps=WS_EPS):
        super().__init__()
        self.conv = StdConv2d(in_chans, channels, 7, stride=2, padding=3, ws_eps=ws_eps)

    def forward(self, x):
        return stem_pool(self.convolved(x))

    def convolved(self, x):
        """conv(x) by the operator, or by the module where a hook, a subclass, a parametrization or autocast would
        otherwise be passed over."""
        conv = self.conv
        if not (_is_plain(conv, StdConv2d, nn.Conv2d) and _is_bit(conv) and conv.kernel_size == (7, 7)):
            return conv(x)
        if conv.stride != (2, 2) or _is_autocast(x.device.type):
            return conv(x)
        return stem_conv(x, _kernel(conv, x.dtype))


def norm_convs(norm, convs, x, residual=None, *, save_memory=False):
    """([conv(norm(s)) for conv in convs], s) of s = x + residual, or x: one operator, or the modules one by one where
    a hook, a subclass or a parametrization would otherwise be passed over. save_memory as in `ops.norm_conv`."""
    if _is_plain(norm, GroupNormAct) and all(_is_plain(conv, StdConv2d, nn.Conv2d) and _is_bit(conv) for conv in convs):
        kernels = [_kernel(conv, x.dtype) for conv in convs]
        settings = dict(groups=norm.groups, eps=norm.eps, save_memory=save_memory)
        strides = [conv.stride[0] for conv in convs]
        out = norm_conv(x, *norm.parameters_for(x), kernels, strides, residual=residual, **settings)
        return (out, x) if residual is None else out
    y, s = (norm(x), x) if residual is None else norm(x, residual)
    return [conv(y) for conv in convs], s


def one_pixel(conv, x):
    """conv(x) of an image of one pixel (N, C, 1, 1) as (N, O): a 1x1 convolution as the matrix product that it is, two
    to three times as fast as torch's convolution in training, or the module where it is anything else."""
    if _is_plain(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1:
        return F.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)
    return conv(x).flatten(1)


def _is_plain(module, *types):
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) in types and not hooks and "forward" not in vars(module)


def _is_autocast(device_type):
    """Whether autocast is on; torch raises where a kind of device, such as meta, has none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _kernel(conv, dtype):
    return conv.standardized(dtype) if isinstance(conv, StdConv2d) else conv.weight


def _is_bit(conv):
    """Whether it is a convolution as BiT has them: what `norm_conv` computes from kernel and stride alone."""
    same = tuple(k // 2 for k in conv.kernel_size)
    square = conv.stride[0] == conv.stride[1] and conv.padding == same and conv.padding_mode == "zeros"
    return square and conv.bias is None and conv.groups == 1 and conv.dilation == (1, 1)
