"""Weight standardization in plain torch: the definition in any dtype, and what runs where no kernel fits."""

import torch
from torch import Tensor

from bitfast.ops._dtypes import accumulate_dtype


def forward(weights: list[Tensor], eps: float, dtype: torch.dtype | None) -> list[Tensor]:
    """w_hat = (w - mean) / sqrt(var + eps) of every row (dim 0) of every weight; biased variance."""
    return [_standardize(w, eps)[0].to(dtype or w.dtype) for w in weights]


def backward(dw_hat: list[Tensor], weights: list[Tensor], eps: float) -> list[Tensor]:
    """g = rstd * (d - mean(d) - w_hat * mean(d * w_hat)) of every row."""
    return [_project(d, w, eps) for d, w in zip(dw_hat, weights, strict=True)]


def _standardize(w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    row = tuple(range(1, w.dim()))
    w = w.to(accumulate_dtype(w.dtype))
    centred = w - w.mean(row, keepdim=True)
    rstd = (centred.square().mean(row, keepdim=True) + eps).rsqrt()
    return centred * rstd, rstd


def _project(d: Tensor, w: Tensor, eps: float) -> Tensor:
    row = tuple(range(1, w.dim()))
    w_hat, rstd = _standardize(w, eps)
    d = d.to(w_hat.dtype)
    g = (d - d.mean(row, keepdim=True) - w_hat * (d * w_hat).mean(row, keepdim=True)) * rstd
    return torch.empty_like(w).copy_(g)
