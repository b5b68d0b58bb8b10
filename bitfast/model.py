"""The BiT network: a pre-activation ResNet-v2 with GroupNorm and weight standardization, under timm's parameter names.

Source: BiT paper 1912.11370 and bit_pytorch/models.py for the numerics; timm `resnetv2_*_bit` for state-dict names.
"""

import torch
from torch import nn

from .nn import GroupNormAct, StdConv2d, Stem, norm_convs, one_pixel
from .numerics import WS_EPS
from .variants import memory_mode


class Projection(nn.Module):
    """The 1x1 StdConv of a shortcut that changes shape, on the pre-activated tensor; the block's stride is on it."""

    def __init__(self, in_channels, out_channels, stride, ws_eps):
        super().__init__()
        self.conv = StdConv2d(in_channels, out_channels, 1, stride, ws_eps=ws_eps)

    def forward(self, x):
        return self.conv(x)


class Bottleneck(nn.Module):
    """Pre-activation bottleneck: three times norm -> ReLU -> conv (1x1, 3x3 with the stride, 1x1), plus a shortcut.

    The sum of branch and shortcut is not taken here but by the next norm, in one pass with its statistics: forward
    takes and returns the pair (x, residual) whose sum is the residual stream; residual is None at the stem.
    With memory "save" normalized images are made again in backward instead of kept.
    """

    memory = "fast"

    def __init__(self, in_channels, out_channels, stride, ws_eps):
        super().__init__()
        mid = out_channels // 4
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = Projection(in_channels, out_channels, stride, ws_eps)
        self.norm1 = GroupNormAct(in_channels)
        self.conv1 = StdConv2d(in_channels, mid, 1, ws_eps=ws_eps)
        self.norm2 = GroupNormAct(mid)
        self.conv2 = StdConv2d(mid, mid, 3, stride, 1, ws_eps=ws_eps)
        self.norm3 = GroupNormAct(mid)
        self.conv3 = StdConv2d(mid, out_channels, 1, ws_eps=ws_eps)

    def forward(self, x, residual=None):
        first = [self.conv1] if self.downsample is None else [self.conv1, self.downsample.conv]
        (out, *shortcut), stream = self._norm_convs(self.norm1, first, x, residual)
        (out,), _ = self._norm_convs(self.norm2, [self.conv2], out)
        (out,), _ = self._norm_convs(self.norm3, [self.conv3], out)
        return out, (shortcut[0] if shortcut else stream)

    def _norm_convs(self, norm, convs, x, residual=None):
        return norm_convs(norm, convs, x, residual, save_memory=self.memory == "save")


class Stage(nn.Module):
    """Blocks of one resolution; the first carries stride and projection."""

    def __init__(self, in_channels, out_channels, depth, stride, ws_eps):
        super().__init__()
        self.blocks = nn.ModuleList(
            Bottleneck(out_channels if i else in_channels, out_channels, 1 if i else stride, ws_eps)
            for i in range(depth)
        )

    def forward(self, x, residual=None):
        for block in self.blocks:
            x, residual = block(x, residual)
        return x, residual


class Head(nn.Module):
    """Global average pool and a linear classifier kept as a 1x1 convolution (`head.fc`), zero-initialized as in BiT.

    num_classes=0 leaves the pooled features. The pool accumulates in float32 at least; fc runs in its own dtype.
    """

    def __init__(self, features, num_classes):
        super().__init__()
        self.fc = nn.Conv2d(features, num_classes, 1) if num_classes else nn.Identity()

    def forward(self, x):
        pooled = x.mean((2, 3), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        if isinstance(self.fc, nn.Conv2d):
            pooled = pooled.to(self.fc.weight.dtype)
        return one_pixel(self.fc, pooled)


class ResNetV2(nn.Module):
    """BiT network of any depth and width (multiples of 0.5).

    depths       blocks per stage, e.g. (3, 4, 6, 3)
    width        channel factor: stem 64 * width, stage outputs 256, 512, 1024, 2048 times width
    num_classes  outputs; 0 returns the pooled features
    in_chans     input channels
    eps          weight-standardization epsilon (1e-10 as released; 1e-8 in timm and HF)

    Input (N, in_chans, H, W), RGB in [-1, 1], any size from 1 x 1 on; output (N, num_classes).
    Initialization: convolutions kaiming-normal over fan-out, norms weight 1 and bias 0, head zero.
    Raises ValueError if a width does not divide into 32 groups.
    """

    def __init__(self, depths, width, num_classes=1000, in_chans=3, eps=WS_EPS):
        super().__init__()
        self.depths, self.width = tuple(depths), width
        self.num_classes, self.in_chans = num_classes, in_chans
        channels = int(64 * width)
        if channels < 1 or channels != 64 * width or channels % 32:
            raise ValueError(f"width must be a positive multiple of 0.5 (32 GroupNorm groups), got {width}")
        self.stem = Stem(in_chans, channels, ws_eps=eps)
        stages, in_channels = [], channels
        for i, depth in enumerate(self.depths):
            out_channels = channels * 4 * 2**i
            stages.append(Stage(in_channels, out_channels, depth, 1 if i == 0 else 2, eps))
            in_channels = out_channels
        self.stages = nn.ModuleList(stages)
        self.num_features = in_channels
        self.norm = GroupNormAct(in_channels)
        self.head = Head(in_channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self):
        for module in self.modules():
            if isinstance(module, StdConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if self.num_classes:
            nn.init.zeros_(self.head.fc.weight)
            nn.init.zeros_(self.head.fc.bias)

    @property
    def ws_eps(self):
        """Weight-standardization epsilon of every StdConv2d; set it to change them all."""
        return self.stem.conv.ws_eps

    @ws_eps.setter
    def ws_eps(self, eps):
        for module in self.modules():
            if isinstance(module, StdConv2d):
                module.ws_eps = eps

    @property
    def memory(self):
        """What training keeps for backward; set it to change every Bottleneck.

        "fast": what makes it fastest. "save": the input of each norm alone, its normalized image is made again; the
        same values up to rounding. On a CPU in float32 the native operators do that in either mode.
        Raises  ValueError if set to anything else
        """
        return self.stages[0].blocks[0].memory

    @memory.setter
    def memory(self, memory):
        set_memory(self, memory)

    def forward_features(self, x):
        """(N, in_chans, H, W) -> the normalized, rectified (N, num_features, H/32, W/32) map before pooling."""
        x = x.to(self.stem.conv.weight.dtype, memory_format=torch.channels_last)
        x, residual = self.stem(x), None
        for stage in self.stages:
            x, residual = stage(x, residual)
        return self.norm(x, residual)[0]

    def forward(self, x):
        return self.head(self.forward_features(x))


def set_memory(network, memory):
    """Set `ResNetV2.memory` on every Bottleneck in any module. Raises ValueError unless "fast" or "save"."""
    memory_mode(memory)
    for module in network.modules():
        if isinstance(module, Bottleneck):
            module.memory = memory
