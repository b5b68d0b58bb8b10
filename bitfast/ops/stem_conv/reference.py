"""The stem's convolution in plain torch: the definition in any dtype, and what runs where no kernel fits."""

import torch
from torch import Tensor
from torch.nn import functional as F

STRIDE, PADDING = 2, 3


def forward(x: Tensor, kernel: Tensor) -> Tensor:
    """y = conv(x, kernel), 7x7, two pixels apart, padded by three zeros. Differentiable by autograd."""
    return F.conv2d(x, kernel, stride=STRIDE, padding=PADDING)


def backward(dy: Tensor, x: Tensor, kernel: Tensor, wanted: list[bool]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `forward` for x and kernel, those that are wanted."""
    return torch.ops.aten.convolution_backward(
        dy, x, kernel, None, [STRIDE] * 2, [PADDING] * 2, [1, 1], False, [0, 0], 1, [*wanted, False]
    )[:2]
