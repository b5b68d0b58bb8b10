"""The operator library `torch.ops.bitfast`, and the native library behind `torch.ops.bitfast_native`.

BITFAST_LIBRARY names another build of the native library than the one inside the package.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from bitfast.errors import UsageError

LIBRARY = torch.library.Library("bitfast", "DEF")

_NATIVE_PATH = Path(os.environ.get("BITFAST_LIBRARY") or Path(__file__).parents[1] / "libbitfast.so")


@cache
def native_missing() -> str:
    """Load the native library on the first call; why it cannot be used, or "" when it can."""
    if not _NATIVE_PATH.exists():
        return "the native library is not built (pip install -e . builds it)"
    try:
        torch.ops.load_library(_NATIVE_PATH)
    except OSError as error:
        return f"the native library does not load ({error})"
    return ""


def native_isa() -> str:
    """Instruction set of the native kernels: "avx512", "avx2" or "baseline"; "" without the library.

    Raises UsageError if the library is an older build, or if BITFAST_CPU_ISA names a set that the machine lacks.
    """
    if native_missing():
        return ""
    library = ctypes.CDLL(_NATIVE_PATH)
    if not hasattr(library, "bitfast_isa"):
        raise UsageError(f"{_NATIVE_PATH} is of another version of bitfast: pip install -e . builds it anew")
    library.bitfast_isa.restype = ctypes.c_char_p
    name = library.bitfast_isa()
    if name is None:
        raise UsageError(f"BITFAST_CPU_ISA is {os.environ['BITFAST_CPU_ISA']!r}, which this machine lacks: unset it")
    return name.decode()


def below_autograd(op, *args):
    """Call `op` past its own Autograd kernel."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def needs_graph(*tensors) -> bool:
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors)


def refuse_second_derivative(name: str) -> None:
    """Raise in a backward that is asked for a graph of itself: it would silently lack our part of it."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} has no second derivative: call backward without create_graph=True")
