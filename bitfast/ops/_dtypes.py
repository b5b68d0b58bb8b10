"""The dtypes that operators take, and the ones they compute statistics and sums in."""

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def require_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise TypeError unless operators take `dtype`."""
    if dtype not in DTYPES:
        raise TypeError(f"{name} is {dtype}; it must be one of {', '.join(map(str, DTYPES))}")
