"""The floor: every convolution of the network on tensors of its shapes, by torch itself, and nothing else."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.models.setting import Setting
from bitfast.folding import std_convs


class Layer(NamedTuple):
    """One convolution with what flows in and, backwards, out of it; channels_last. The stem needs no input gradient."""

    x: Tensor
    w: Tensor
    dy: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    input_gradient: bool

    def forward(self) -> Tensor:
        return F.conv2d(self.x, self.w, None, self.stride, self.padding)

    def backward(self) -> None:
        mask = [self.input_gradient, True, False]
        geometry = (self.stride, self.padding, [1, 1], False, [0, 0], 1)
        torch.ops.aten.convolution_backward(self.dy, self.x, self.w, None, *geometry, mask)


class ConvolutionsAlone:
    """A provider without a network."""

    def training(self, setting: Setting) -> Callable[[], None]:
        """All layers forward, then all backward, for inputs and weights."""
        layers = _layers(setting)

        def step() -> None:
            for layer in layers:
                layer.forward()
            for layer in reversed(layers):
                layer.backward()

        return step

    def inference(self, setting: Setting) -> Callable[[], None]:
        layers = _layers(setting)

        @torch.inference_mode()
        def forward() -> None:
            for layer in layers:
                layer.forward()

        return forward


def _layers(setting: Setting) -> list[Layer]:
    """The network's convolutions in the order of a forward; layers of equal shapes share their tensors' memory."""
    seen = []

    def note(conv, inputs, output):
        seen.append((conv, inputs[0].shape, output.shape))

    with torch.device("meta"):
        twin = setting.raw_model()
        for conv in std_convs(twin).values():
            conv.register_forward_hook(note)
        twin(torch.empty(setting.batch, 3, setting.px, setting.px))

    tensors: dict[torch.Size, Tensor] = {}

    def filled(shape: torch.Size) -> Tensor:
        if shape not in tensors:
            values = torch.randn(shape, device=setting.device)
            tensors[shape] = values.to(setting.dtype, memory_format=torch.channels_last)
        return tensors[shape]

    return [
        Layer(filled(x), filled(conv.weight.shape), filled(y), conv.stride, conv.padding, input_gradient=i > 0)
        for i, (conv, x, y) in enumerate(seen)
    ]
