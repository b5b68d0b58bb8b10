"""Everyone who can make a training step or an inference: peers as their users run them, ourselves, and the floor.

A provider has `training(setting)` and `inference(setting)`; both give a call that returns the logits it computed, and
that has made an optimizer step on them in training.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitfast
from benchmarks.models.convolutions import ConvolutionsAlone
from benchmarks.models.official import OfficialResNetV2
from benchmarks.models.setting import CLASSES, Setting
from benchmarks.torchvision_stub import torchvision_or_stub

LR, MOMENTUM = 5e-5, 0.9  # two steps move the logits by a few per cent, and errors are not yet amplified


class Peer(NamedTuple):
    """A network in one layout under torch.optim.SGD, in torch.compile or not."""

    network: Callable[[Setting], nn.Module]
    layout: torch.memory_format = torch.contiguous_format
    compiled: bool = False

    def training(self, setting: Setting) -> Callable[[], Tensor]:
        network = self._network(setting)
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
        network = torch.compile(network) if self.compiled else network
        return _training(network, optimizer, setting, self.layout)

    def inference(self, setting: Setting) -> Callable[[], Tensor]:
        network = self._network(setting).eval()
        return _inference(torch.compile(network) if self.compiled else network, setting, self.layout)

    def _network(self, setting: Setting) -> nn.Module:
        return self.network(setting).to(setting.device, setting.dtype, memory_format=self.layout)


class Bitfast(NamedTuple):
    """The folded network, under StandardizedSGD in training."""

    compiled: bool = False
    memory: str = "fast"

    def training(self, setting: Setting) -> Callable[[], Tensor]:
        settings = dict(lr=LR, momentum=MOMENTUM, dtype=setting.dtype, memory=self.memory)
        optimizer = bitfast.StandardizedSGD(setting.raw_model().to(setting.device), **settings)
        return _training(self._compile(optimizer.network), optimizer, setting, torch.channels_last)

    def inference(self, setting: Setting) -> Callable[[], Tensor]:
        network = bitfast.fold(setting.raw_model().to(setting.device), setting.dtype).eval()
        return _inference(self._compile(network), setting, torch.channels_last)

    def _compile(self, network: nn.Module) -> nn.Module:
        return torch.compile(network, fullgraph=True) if self.compiled else network


def official(setting: Setting) -> nn.Module:
    """The released definition."""
    network = OfficialResNetV2(*setting.shape, CLASSES)
    network.load_state_dict(setting.raw_model().state_dict())
    return network


def timm_bit(setting: Setting) -> nn.Module:
    """timm's network with the setting's weights."""
    network = timm_network(*setting.shape, CLASSES)
    network.load_state_dict(setting.raw_model().state_dict())
    return network


def timm_network(depths: tuple[int, ...], width: float, classes: int) -> nn.Module:
    """What timm builds under the names `resnetv2_*_bit`, in any depth and width."""
    with torchvision_or_stub():
        from timm.layers import StdConv2d
    return _timm(depths, width, classes, conv_layer=partial(StdConv2d, eps=1e-8))


def accelerated_timm_bit(setting: Setting) -> nn.Module:
    """timm's network with our modules inside."""
    return bitfast.accelerate(timm_bit(setting))


def batch_norm_twin(setting: Setting) -> nn.Module:
    """The same shape with plain convolutions and BatchNorm, from timm: what a ResNet costs that is not a BiT."""
    with torchvision_or_stub():
        from timm.layers import BatchNormAct2d, create_conv2d
    return _timm(*setting.shape, CLASSES, conv_layer=create_conv2d, norm_layer=BatchNormAct2d)


FLOOR = "convolutions alone"
OURS = "bitfast"
SAVING = "bitfast memory=save"
INSIDE = "bitfast inside timm"
PROVIDERS = {
    "official": Peer(official),
    "timm": Peer(timm_bit),
    "timm channels_last": Peer(timm_bit, torch.channels_last),
    "timm compile": Peer(timm_bit, compiled=True),
    "timm compile channels_last": Peer(timm_bit, torch.channels_last, compiled=True),
    "BN twin channels_last": Peer(batch_norm_twin, torch.channels_last),
    OURS: Bitfast(),
    SAVING: Bitfast(memory="save"),
    INSIDE: Peer(accelerated_timm_bit, torch.channels_last),
    "bitfast compile": Bitfast(compiled=True),
    FLOOR: ConvolutionsAlone(),
}
TIMM = [name for name in PROVIDERS if "timm" in name or name.startswith("BN twin")]  # need it
COMPILED = [name for name in PROVIDERS if "compile" in name]
NOT_BIT = ["BN twin channels_last", FLOOR]  # their outputs are not those of a BiT network


def _timm(depths: tuple[int, ...], width: float, classes: int, **layers) -> nn.Module:
    with torchvision_or_stub():
        from timm.models.resnetv2 import ResNetV2
    return ResNetV2(layers=depths, width_factor=width, num_classes=classes, stem_type="fixed", **layers)


def _training(network, optimizer, setting: Setting, layout: torch.memory_format) -> Callable[[], Tensor]:
    images, labels = setting.images(layout), setting.labels()

    def step() -> Tensor:
        optimizer.zero_grad()
        logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        return logits.detach()

    return step


def _inference(network, setting: Setting, layout: torch.memory_format) -> Callable[[], Tensor]:
    images = setting.images(layout)

    @torch.inference_mode()
    def forward() -> Tensor:
        return network(images)

    return forward
