"""GroupNorm with activation in plain torch: the definition in any dtype, and what runs where no kernel fits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bitfast.ops._dtypes import accumulate_dtype

ACTIVATIONS = {"none": lambda z: z, "relu": F.relu, "silu": F.silu}

_ACTIVATION_BACKWARD = {
    "none": lambda dy, z: dy,
    "relu": lambda dy, z: torch.ops.aten.threshold_backward(dy, z, 0),
    "silu": torch.ops.aten.silu_backward,
}


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, act: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y = act((s - mean_g) / sqrt(var_g + eps) * weight + bias) of s = x + residual.

    Returns y, s (x itself without a residual), mean and rstd (N, G). Differentiable by autograd.
    """
    s = x if residual is None else x + residual
    values = s.to(accumulate_dtype(s.dtype))
    mean = _group_mean(values.mean((2, 3)), groups)
    centred = values - _per_channel(mean, s.shape[1])
    rstd = (_group_mean(centred.square().mean((2, 3)), groups) + eps).rsqrt()
    z = centred * _per_channel(rstd, s.shape[1]) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    return ACTIVATIONS[act](z).to(s.dtype), s, mean, rstd


def backward(
    dy: Tensor,
    ds: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward` for s = x, weight and bias, with `ds` added to the first.

    With xhat = (x - mean) * rstd, dz = dy * act'(xhat * weight + bias) and means over the (D, H, W) of a group:

        db = sum dz;  dw = sum dz * xhat
        dx = rstd * (weight * dz - mean(weight * dz) - xhat * mean(weight * dz * xhat)) + ds
    """
    c, pixels = x.shape[1], x.shape[2] * x.shape[3]
    rstd = _per_channel(rstd, c)
    scale = rstd * weight.view(-1, 1, 1)
    centred = x.to(mean.dtype) - _per_channel(mean, c)
    z = torch.addcmul(bias.view(-1, 1, 1), centred, scale)
    dz = _ACTIVATION_BACKWARD[act](dy.to(mean.dtype), z)
    sum_dz = dz.sum((2, 3))
    sum_dz_xhat = torch.mul(dz, centred, out=z).sum((2, 3)) * rstd.flatten(1)
    mean_dz = _per_channel(_group_mean(sum_dz * weight / pixels, groups), c)
    mean_dz_xhat = _per_channel(_group_mean(sum_dz_xhat * weight / pixels, groups), c)
    dx = torch.addcmul(-rstd * mean_dz, centred, -rstd.square() * mean_dz_xhat, out=centred)
    dx.addcmul_(dz, scale)
    if ds is not None:
        dx += ds
    return dx.to(x.dtype), sum_dz_xhat.sum(0), sum_dz.sum(0)


def _group_mean(v: Tensor, groups: int) -> Tensor:
    """(N, C) -> (N, G)."""
    return v.unflatten(1, (groups, v.shape[1] // groups)).mean(2)


def _per_channel(v: Tensor, channels: int) -> Tensor:
    """(N, G) -> (N, C, 1, 1)."""
    return v.repeat_interleave(channels // v.shape[1], 1)[:, :, None, None]
