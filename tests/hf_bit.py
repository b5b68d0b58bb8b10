"""HF transformers' BiT, its module names and class names alone, written a second time for where it is not installed."""

import torch
from torch import nn
from torch.nn import functional as F


class WeightStandardizedConv2d(nn.Conv2d):
    def __init__(self, in_channels, out_channels, size, stride=1):
        super().__init__(in_channels, out_channels, size, stride, size // 2, bias=False)
        self.pad, self.eps = None, 1e-8

    def forward(self, x):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / torch.sqrt(var + self.eps), None)


class BitGroupNormActivation(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(32, channels)
        self.activation = nn.ReLU()

    def forward(self, x):
        return self.activation(super().forward(x))


class BitDownsampleConv(nn.Module):
    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.conv, self.norm = WeightStandardizedConv2d(in_channels, out_channels, 1, stride), nn.Identity()

    def forward(self, x):
        return self.norm(self.conv(x))


class BitPreActivationBottleneckLayer(nn.Module):
    def __init__(self, in_channels, out_channels, stride, first):
        super().__init__()
        mid = out_channels // 4
        self.downsample = BitDownsampleConv(in_channels, out_channels, stride) if first else None
        self.norm1, self.conv1 = BitGroupNormActivation(in_channels), WeightStandardizedConv2d(in_channels, mid, 1)
        self.norm2, self.conv2 = BitGroupNormActivation(mid), WeightStandardizedConv2d(mid, mid, 3, stride)
        self.norm3, self.conv3 = BitGroupNormActivation(mid), WeightStandardizedConv2d(mid, out_channels, 1)
        self.drop_path = nn.Identity()

    def forward(self, x):
        a = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(a)
        return self.drop_path(self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(a)))))) + shortcut


class BitForImageClassification(nn.Module):
    def __init__(self, depths, hidden_sizes, embedding_size, num_labels):
        super().__init__()
        self.bit = nn.Module()
        self.bit.embedder = nn.Module()
        self.bit.embedder.convolution = WeightStandardizedConv2d(3, embedding_size, 7, 2)
        self.bit.encoder = nn.Module()
        self.bit.encoder.stages = nn.ModuleList()
        channels = embedding_size
        for stage, (depth, out_channels) in enumerate(zip(depths, hidden_sizes, strict=True)):
            layers = nn.Sequential()
            for layer in range(depth):
                stride = 2 if stage and not layer else 1
                layers.append(BitPreActivationBottleneckLayer(channels, out_channels, stride, not layer))
                channels = out_channels
            self.bit.encoder.stages.append(nn.Module())
            self.bit.encoder.stages[-1].layers = layers
        self.bit.norm = BitGroupNormActivation(channels)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels, num_labels))

    def forward(self, pixel_values):
        x = self.bit.embedder.convolution(pixel_values)
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
        for stage in self.bit.encoder.stages:
            x = stage.layers(x)
        return self.classifier(self.bit.norm(x).mean((2, 3), keepdim=True))
