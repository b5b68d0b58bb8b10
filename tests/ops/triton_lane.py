"""What tests of Triton kernels share: copies on their device, and how results are stored there."""

import os

import torch
from torch import Tensor


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as a kernel stores it: rounded, but for the interpreter, which cuts off what bf16 has no place for."""
    if dtype == torch.bfloat16 and os.environ["TRITON_INTERPRET"] == "1":
        x = (x.float().view(torch.int32) & ~0xFFFF).view(torch.float32)
    return x.to(dtype)


def on(device: torch.device | str, lists):
    """Copies of tensors in lists, dicts or alone, strides kept."""
    if isinstance(lists, Tensor):
        return torch.empty_strided(lists.shape, lists.stride(), dtype=lists.dtype, device=device).copy_(lists)
    if isinstance(lists, dict):
        return {name: on(device, tensors) for name, tensors in lists.items()}
    return [on(device, t) for t in lists]
