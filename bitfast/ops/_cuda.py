"""What operators with kernels in CUDA C++ share: whether they can run here, and the operators that launch them.

Nothing of theirs has been measured on a GPU, so they run where they are asked for, by `use_impl` or `BITFAST_IMPL`.
`BITFAST_SIMT` names a library of the same kernels compiled for the host (tests/simt), for CPU tensors; made for tests.
"""

import os
from functools import cache

import torch
from torch import Tensor

from bitfast.ops import _triton
from bitfast.ops._library import native_missing

DTYPES = _triton.DTYPES
ON_REQUEST = ("cuda", "cpu")


def operators(x: Tensor):
    """Those that launch kernels for a tensor like `x`."""
    return torch.ops.bitfast_cuda if x.is_cuda else torch.ops.bitfast_simt


def supports(x: Tensor) -> str:
    """Why no CUDA kernel can take a tensor like `x`, or ""."""
    if x.dtype not in DTYPES:
        return f"it has no {x.dtype}"
    if not x.is_cuda:
        return "" if _on_host() else f"it is made for cuda, the tensor is on {x.device.type}"
    return missing() or _triton.too_old(x.device)


@cache
def missing() -> str:
    """Why the native library has no CUDA kernels, or "" when it has."""
    if native_missing():
        return native_missing()
    if hasattr(torch.ops.bitfast_cuda, "architectures"):
        return ""
    return (
        "the native library has no CUDA kernels (with nvcc, CMAKE_ARGS=-DBITFAST_CUDA=ON pip install -e . builds them)"
    )


def architectures() -> str:
    """The compute capabilities that the kernels are compiled for; only where none are `missing`."""
    return torch.ops.bitfast_cuda.architectures.default()


def _on_host() -> bool:
    path = os.environ.get("BITFAST_SIMT")
    return bool(path) and _loaded(path)


@cache
def _loaded(path: str) -> bool:
    torch.ops.load_library(path)
    return True
