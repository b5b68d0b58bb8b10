"""GroupNorm, ReLU and convolutions in plain torch: the definition in any dtype."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bitfast.ops.group_norm import reference as group_norm


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    kernels: list[Tensor],
    strides: list[int],
    groups: int,
    eps: float,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """y_i = conv(relu(group_norm(s)), kernel_i) of s = x + residual, padded by half a kernel.

    Returns the y_i, s (x itself without a residual), mean and rstd (N, G). Differentiable by autograd.
    """
    a, s, mean, rstd = group_norm.forward(x, residual, weight, bias, groups, eps, "relu")
    return [convolve(a, k, stride) for k, stride in zip(kernels, strides, strict=True)], s, mean, rstd


def convolve(a: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """torch's own convolution, padded by half a kernel."""
    return F.conv2d(a, kernel, stride=stride, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2))


def convolve_backward(
    dy: Tensor, a: Tensor, kernel: Tensor, stride: int, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `convolve` for a and kernel, those that are wanted."""
    padding = [kernel.shape[2] // 2, kernel.shape[3] // 2]
    return torch.ops.aten.convolution_backward(
        dy, a, kernel, None, [stride] * 2, padding, [1, 1], False, [0, 0], 1, [*wanted, False]
    )[:2]
