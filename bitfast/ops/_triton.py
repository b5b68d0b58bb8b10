"""What operators with Triton kernels share: whether they can run here, how they are launched, and a record of that.

Triton and the kernels are imported at the first launch, so that a machine without triton, or without a GPU, never
needs them. `TRITON_INTERPRET=1`, set before bitfast is imported, runs them on CPU tensors through Triton's interpreter:
called directly, or forced by `use_impl` or `BITFAST_IMPL`; thousands of times slower, made for tests.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ON_REQUEST = ("cpu",) if os.environ.get("TRITON_INTERPRET") == "1" else ()

_LOWEST_CAPABILITY = (8, 0)  # of NVIDIA GPUs: the first with bfloat16


class Launch(NamedTuple):
    """One launch: `arguments` in the kernel's order, then `constants` by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    constants: dict
    num_warps: int
    maxnreg: int | None = None


_records: list[list[Launch]] = []


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int,
    maxnreg: int | None = None,
    **constants: Any,
) -> None:
    """Run `kernel` on the device of the first tensor, or only write it down inside `recorded`.

    `maxnreg`: the most registers a thread may take, where fewer than the compiler would give it let more programs run.
    """
    if _records:
        _records[-1].append(Launch(kernel, grid, arguments, constants, num_warps, maxnreg))
        return
    with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):
        kernel[grid](*arguments, num_warps=num_warps, maxnreg=maxnreg, **constants)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside the block nothing is launched: the list holds what would be. Tensors may be on the meta device."""
    launches: list[Launch] = []
    _records.append(launches)
    try:
        yield launches
    finally:
        _records.remove(launches)


def supports(x: Tensor) -> str:
    """Why no Triton kernel can take a tensor like `x`, or ""."""
    if x.dtype not in DTYPES:
        return f"it has no {x.dtype}"
    return _missing() or (too_old(x.device) if x.device.type == "cuda" else "")


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; elsewhere those of an H200, which a record of launches is made for."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@cache
def l2_bytes(device: torch.device) -> int:
    """The L2 cache of a CUDA device; elsewhere that of an H200."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 50 * 2**20


@cache
def _missing() -> str:
    return "" if find_spec("triton") else "triton is not installed (pip install triton)"


@cache
def too_old(device: torch.device) -> str:
    """Why this GPU is too old for our kernels, or ""."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= _LOWEST_CAPABILITY:
        return ""
    needed, seen = (".".join(map(str, c)) for c in (_LOWEST_CAPABILITY, capability))
    return f"it needs a GPU of compute capability {needed}, this one has {seen}"
