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
    grouped = s.to(accumulate_dtype(s.dtype)).unflatten(1, (groups, s.shape[1] // groups))
    mean = grouped.mean((2, 3, 4), keepdim=True)
    centred = grouped - mean
    rstd = (centred.square().mean((2, 3, 4), keepdim=True) + eps).rsqrt()
    normalized = (centred * rstd).flatten(1, 2)
    y = ACTIVATIONS[act](normalized * weight.view(-1, 1, 1) + bias.view(-1, 1, 1))
    return y.to(s.dtype), s, mean.flatten(1), rstd.flatten(1)


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
    n, c, h, w = x.shape
    d = c // groups

    def per_channel(v: Tensor) -> Tensor:
        return v.unsqueeze(2).expand(n, groups, d).reshape(n, c, 1, 1)

    def group_mean(v: Tensor) -> Tensor:
        return per_channel((v * weight).view(n, groups, d).sum(2) / (d * h * w))

    rstd = per_channel(rstd)
    scale = rstd * weight.view(-1, 1, 1)
    centred = x.to(mean.dtype) - per_channel(mean)
    z = torch.addcmul(bias.view(-1, 1, 1), centred, scale)
    dz = _ACTIVATION_BACKWARD[act](dy.to(mean.dtype), z)
    sum_dz = dz.sum((2, 3))
    sum_dz_xhat = torch.mul(dz, centred, out=z).sum((2, 3)) * rstd.flatten(1)
    dx = torch.addcmul(-rstd * group_mean(sum_dz), centred, -rstd.square() * group_mean(sum_dz_xhat), out=centred)
    dx.addcmul_(dz, scale)
    if ds is not None:
        dx += ds
    return dx.to(x.dtype), sum_dz_xhat.sum(0), sum_dz.sum(0)
