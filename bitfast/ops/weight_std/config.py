"""How many elements of weights a program of the Triton kernels holds, and in how many warps: data, with its reason."""

from typing import NamedTuple


class Launch(NamedTuple):
    """`tile`: elements a program holds at once; a longer row is met in parts of so many, and read again from caches."""

    tile: int
    num_warps: int


# 16 elements a thread: of each w, d and m are in flight, and three programs of 8 warps fit a multiprocessor.
# Rows of more than 8192 elements (R152x4 has up to 18432) are read twice. With 16 warps fewer of them are under way at
# once, at most two a multiprocessor: 29 MB of w and d on an H200, which its L2 of 50 MB keeps until the second time.
# Model, not measured: no GPU was to be had.
_NARROW, _WIDE = Launch(4096, 8), Launch(8192, 16)


def launch(longest: int) -> Launch:
    """For a list of weights the longest row of which has `longest` elements."""
    return _NARROW if longest <= 2 * _NARROW.tile else _WIDE
