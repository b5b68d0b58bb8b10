"""The three modules a BiT network is made of, each a few parameters and a call to ops."""

import torch
from torch import nn
from torch.nn import functional as F

from .numerics import GN_EPS, GN_GROUPS, WS_EPS
from .ops import group_norm_act, weight_standardize
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
        (w_hat,) = weight_standardize([self.weight], self.ws_eps, x.dtype)
        return self._conv_forward(x, w_hat, None)

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
        weight, bias, dtype = self.weight, self.bias, accumulate_dtype(x.dtype)
        if weight.dtype != dtype or bias.dtype != dtype:
            weight, bias = weight.to(dtype), bias.to(dtype)
        return group_norm_act(x, weight, bias, residual=residual, groups=self.groups, eps=self.eps)

    def extra_repr(self):
        return f"{self.weight.numel()}, groups={self.groups}, eps={self.eps:g}"


class Stem(nn.Module):
    """7x7/2 StdConv, then zero padding of 1 and an unpadded 3x3/2 max-pool: zeros take part in the maximum, and the
    stem's output is signed, so this is not MaxPool2d(padding=1). Source: bit_pytorch/models.py, `root`."""

    def __init__(self, in_chans, channels, *, ws_eps=WS_EPS):
        super().__init__()
        self.conv = StdConv2d(in_chans, channels, 7, stride=2, padding=3, ws_eps=ws_eps)

    def forward(self, x):
        return F.max_pool2d(F.pad(self.conv(x), (1, 1, 1, 1)), 3, 2)
