"""The released network as a module, for timing: under timm's parameter names, so that one state dict fits every peer.

Facts: bit_pytorch/models.py of the release. tests/golden/official.py writes the same definition for the tests.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StdConv2d(nn.Conv2d):
    """Standardizes its weight in every forward, with 1e-10 inside the root."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(var + 1e-10), None, self.stride, self.padding)


class Unit(nn.Module):
    """Pre-activation bottleneck; the projection reads the pre-activated tensor, the stride is on the 3x3."""

    def __init__(self, cin: int, cout: int, stride: int, project: bool):
        super().__init__()
        mid = cout // 4
        self.downsample = named(conv=conv(cin, cout, 1, stride)) if project else None
        self.norm1, self.conv1 = nn.GroupNorm(32, cin), conv(cin, mid, 1)
        self.norm2, self.conv2 = nn.GroupNorm(32, mid), conv(mid, mid, 3, stride)
        self.norm3, self.conv3 = nn.GroupNorm(32, mid), conv(mid, cout, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv2(self.relu(self.norm2(self.conv1(out))))
        return self.conv3(self.relu(self.norm3(out))) + shortcut


class OfficialResNetV2(nn.Module):
    """Images (N, 3, H, W) to logits (N, classes)."""

    def __init__(self, depths: tuple[int, ...], width: float, classes: int):
        super().__init__()
        cin = int(64 * width)
        self.stem = named(conv=conv(3, cin, 7, 2), pad=nn.ConstantPad2d(1, 0), pool=nn.MaxPool2d(3, 2))
        self.stages = nn.Sequential()
        for i, depth in enumerate(depths):
            cout, stride = int(256 * width) * 2**i, 2 if i else 1
            units = [Unit(cout if j else cin, cout, 1 if j else stride, project=not j) for j in range(depth)]
            self.stages.append(named(blocks=nn.Sequential(*units)))
            cin = cout
        self.norm, self.relu = nn.GroupNorm(32, cin), nn.ReLU(inplace=True)
        self.head = named(pool=nn.AdaptiveAvgPool2d(1), fc=nn.Conv2d(cin, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.norm(self.stages(self.stem(x)))))[..., 0, 0]


def conv(cin: int, cout: int, kernel: int, stride: int = 1) -> StdConv2d:
    return StdConv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False)


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))
