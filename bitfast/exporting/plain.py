"""A folded network in torch's own modules alone: what exporters can read, under the same state-dict names."""

import torch
from torch import nn
from torch.nn import functional as F


class PlainBlock(nn.Module):
    """Bottleneck of a folded network: three times GroupNorm -> ReLU -> convolution, and the shortcut added."""

    def __init__(self, block, dtype):
        super().__init__()
        self.downsample = None
        if block.downsample is not None:
            self.downsample = nn.Module()
            self.downsample.conv = _conv(block.downsample.conv, dtype)
        self.norm1, self.conv1 = _norm(block.norm1, dtype), _conv(block.conv1, dtype)
        self.norm2, self.conv2 = _norm(block.norm2, dtype), _conv(block.conv2, dtype)
        self.norm3, self.conv3 = _norm(block.norm3, dtype), _conv(block.conv3, dtype)

    def forward(self, x):
        a = F.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample.conv(a)
        x = self.conv1(a)
        x = self.conv2(F.relu(self.norm2(x)))
        x = self.conv3(F.relu(self.norm3(x)))
        return x + shortcut


class PlainNetwork(nn.Module):
    """A folded ResNetV2 of the same outputs, without our operators, on the CPU and without gradients.

    dtype  of the convolutions and norms, and so of the activations; images, pool and head are float32

    images (N, in_chans, H, W) float32 -> (N, num_classes) float32
    """

    def __init__(self, folded, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype
        self.stem, self.stages = nn.Module(), nn.ModuleList()
        self.stem.conv = _conv(folded.stem.conv, dtype)
        for stage in folded.stages:
            plain = nn.Module()
            plain.blocks = nn.ModuleList(PlainBlock(block, dtype) for block in stage.blocks)
            self.stages.append(plain)
        self.norm = _norm(folded.norm, dtype)
        self.pooled, self.head = bool(folded.head.global_pool), nn.Module()
        self.head.fc = _conv(folded.head.fc, torch.float32) if folded.num_classes else nn.Identity()
        self.eval()

    def forward(self, images):
        x = self.stem.conv(images.to(self.dtype))
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
        for stage in self.stages:
            for block in stage.blocks:
                x = block(x)
        x = F.relu(self.norm(x)).float()
        if not self.pooled:
            return self.head.fc(x)
        return self.head.fc(x.mean((2, 3), keepdim=True)).flatten(1)


def _conv(conv, dtype):
    shape = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
    plain = nn.Conv2d(*shape, bias=conv.bias is not None, device="meta")
    return _with(plain, conv, dtype)


def _norm(norm, dtype):
    return _with(nn.GroupNorm(norm.groups, norm.weight.numel(), norm.eps, device="meta"), norm, dtype)


def _with(plain, module, dtype):
    for name, parameter in module.named_parameters():
        value = parameter.detach().to("cpu", dtype).contiguous()
        setattr(plain, name, nn.Parameter(value, requires_grad=False))
    return plain
