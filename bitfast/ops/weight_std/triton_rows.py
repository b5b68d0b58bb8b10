"""Rows of many weights in one launch: the table that a kernel finds them in, and what every such kernel does to them.

The table is int64, a column per tensor, the columns left over 0. Its rows: programs from the tensor's first to the last
of all, count (of rows, or of elements where those do not matter), width (elements of a row), kind, eps, then for each
operand (w, d, m, ...) address and `outer`. A row of an operand is (outer, width // outer) where that of w is the
transpose of it; outer is 1 where both have the same order. A kernel's indices are in the order of w, the first operand.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitfast.ops import _triton
from bitfast.ops.weight_std.config import NUM_WARPS, REGISTERS, TILE

_COUNT, _WIDTH, _KIND, _EPS, _OPERANDS = (tl.constexpr(i) for i in range(1, 6))

# How the programs share a tensor.
SHORT = tl.constexpr(0)  # 16 rows of up to a 16th of a tile each
MIDDLE = tl.constexpr(1)  # 4 rows of up to a quarter
WHOLE = tl.constexpr(2)  # a row of up to a tile
LONG = tl.constexpr(3)  # a row, in parts of a tile
LONG_UNALIGNED = tl.constexpr(4)  # the same in parts of a quarter, for any width at any address
FLAT = tl.constexpr(5)  # a tile of elements each
FLAT_UNALIGNED = tl.constexpr(6)

_ALIGN_BYTES, _ALIGN_ELEMENTS = 16, 8  # what a thread moves at once, in elements of two bytes
_FEW, _MANY = 16, 512  # columns of nearly every table, for each number is a kernel to compile


class Entry(NamedTuple):
    """A tensor in the table: its numbers of elements and of programs, and its column below the first program."""

    elements: int
    programs: int
    column: tuple[int, ...]


def weight_entry(w: Tensor, operands: Sequence[Tensor], eps: float) -> Entry:
    """Rows of `w`; `operands`: the others, in the order in which the kernel numbers them."""
    rows, width = len(w), w.shape[1:].numel()
    if not _aligned(width, w, *operands):
        kind, together = LONG_UNALIGNED, 1
    elif width > TILE:
        kind, together = LONG, 1
    elif width > TILE // 4:
        kind, together = WHOLE, 1
    elif width > TILE // 16:
        kind, together = MIDDLE, 4
    else:
        kind, together = SHORT, 16
    column = (rows, width, kind.value, _bits(eps), *_places(w, operands))
    return Entry(w.numel(), -(-rows // together), column)


def flat_entry(w: Tensor, operands: Sequence[Tensor]) -> Entry:
    """All elements of `w`, of any shape; the operands have them in the same order."""
    elements = w.numel()
    kind = FLAT if _aligned(elements, w, *operands) else FLAT_UNALIGNED
    return Entry(elements, -(-elements // TILE), (elements, 0, kind.value, 0, *_places(w, operands)))


def _aligned(count: int, *operands: Tensor) -> bool:
    return count % _ALIGN_ELEMENTS == 0 and not any(x.data_ptr() % _ALIGN_BYTES for x in operands)


def _places(w: Tensor, operands: Sequence[Tensor]) -> list[int]:
    places = [w.data_ptr(), 1]
    for x in operands:
        outer = 1 if in_order(x, w) else w.shape[2:].numel() if w.is_contiguous() else w.shape[1]
        places += x.data_ptr(), outer
    return places


def in_order(x: Tensor, w: Tensor) -> bool:
    """Whether the elements of both, dense, lie in the same order."""
    return x.is_contiguous() == w.is_contiguous()


def _bits(eps: float) -> int:
    return struct.unpack("<i", struct.pack("<f", eps))[0]


def launch(kernel, entries: Sequence[Entry], device: torch.device, *arguments, **constants) -> None:
    """Launch `kernel` once for all of `entries`; constants that are dtypes are handed on as Triton's."""
    entries = [entry for entry in entries if entry.programs]
    if entries:
        made = table(entries, device)
        for name, value in constants.items():
            if isinstance(value, torch.dtype):
                constants[name] = getattr(tl, str(value).removeprefix("torch."))
        constants |= {"COLUMNS": made.width, "ELEMENTS": TILE, "num_warps": NUM_WARPS, "maxnreg": REGISTERS}
        _triton.launch(kernel, (made.programs,), made.data, *arguments, **constants)


class Table(NamedTuple):
    """What a launch needs: the table, its number of columns, a power of two, and the number of programs."""

    data: Tensor
    width: int
    programs: int


def table(entries: Sequence[Entry], device: torch.device) -> Table:
    """The table of `entries`; the most elements a program come first, so that no long one is the last to begin."""
    entries = sorted(entries, key=lambda e: -e.elements / e.programs)
    width = _FEW if len(entries) <= _FEW else max(_MANY, triton.next_power_of_2(len(entries)))
    programs = left = sum(entry.programs for entry in entries)
    columns = []
    for entry in entries:
        columns.append((left, *entry.column))
        left -= entry.programs
    return Table(_placed(tuple(columns), width, device), width, programs)


def _placed(columns: tuple[tuple[int, ...], ...], width: int, device: torch.device) -> Tensor:
    """The table on the device, made anew where anything in it is another: no address in it can be out of date.

    In a CUDA graph it is written by kernels that hold the numbers, into memory of the graph: that may be replayed at
    any time, and a copy from the host could not be captured.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _written(columns, width, device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _copied(columns, width, device, stream)


def _written(columns: tuple[tuple[int, ...], ...], width: int, device: torch.device) -> Tensor:
    data = torch.zeros(len(columns[0]), width, dtype=torch.int64, device=device)
    places = [(row, i) for i, column in enumerate(columns) for row, value in enumerate(column) if value]
    torch._foreach_add_([data[place] for place in places], [columns[i][row] for row, i in places])
    return data


@lru_cache(maxsize=256)
def _copied(columns: tuple[tuple[int, ...], ...], width: int, device: torch.device, stream: int) -> Tensor:
    """One for each stream, so that its memory is not used anew before the kernels that read it are done."""
    data = torch.zeros(len(columns[0]), width, dtype=torch.int64, pin_memory=device.type == "cuda")
    data[:, : len(columns)] = torch.tensor(columns, dtype=torch.int64).T
    return data.to(device, non_blocking=True)


@triton.jit
def _field(table, tensor, row, COLUMNS: tl.constexpr):
    return tl.load(table + row * COLUMNS + tensor)


@triton.jit
def find(table, COLUMNS: tl.constexpr):
    """This program's tensor, its kind, and which of its programs this is."""
    left = tl.num_programs(0) - tl.program_id(0)
    tensor = tl.sum((tl.load(table + tl.arange(0, COLUMNS)) >= left).to(tl.int32), 0) - 1
    return tensor, _field(table, tensor, _KIND, COLUMNS), _field(table, tensor, 0, COLUMNS) - left


@triton.jit
def size(table, tensor, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr):
    """Count and width of a tensor, int64 and int32."""
    count, width = _field(table, tensor, _COUNT, COLUMNS), _field(table, tensor, _WIDTH, COLUMNS).to(tl.int32)
    if ALIGNED:
        width = width // 8 * 8
    return count, width


@triton.jit
def epsilon(table, tensor, COLUMNS: tl.constexpr):
    return _field(table, tensor, _EPS, COLUMNS).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def operand(table, tensor, number: tl.constexpr, DTYPE: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr):
    """Address and outer of an operand."""
    data = _field(table, tensor, _OPERANDS + 2 * number, COLUMNS).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        data = tl.multiple_of(data, 16)
    return data, _field(table, tensor, _OPERANDS + 2 * number + 1, COLUMNS).to(tl.int32)


@triton.jit
def tile(program, rows, width, ROWS: tl.constexpr, ELEMENTS: tl.constexpr):
    """First elements of this program's rows, indices inside a row, and the mask of both."""
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, ELEMENTS)[None, :]
    return row * width, i, (row < rows) & (i < width)


@triton.jit
def flat(program, count, ELEMENTS: tl.constexpr, ALIGNED: tl.constexpr):
    """Indices of this program's elements, and their mask."""
    if ALIGNED:
        count = count // 8 * 8
    i = program * ELEMENTS + tl.arange(0, ELEMENTS)
    return i, i < count


@triton.jit
def _transposed(i, outer, width):
    return i % outer * (width // outer) + i // outer


@triton.jit
def read(row, i, outer, width, mask):
    """Elements i of rows that begin at `row`, fp32, 0 where masked."""
    if outer == 1:
        x = tl.load(row + i, mask, other=0.0)
    else:
        x = tl.load(row + _transposed(i, outer, width), mask, other=0.0)
    return x.to(tl.float32)


@triton.jit
def write(row, i, outer, width, x, mask):
    if outer == 1:
        tl.store(row + i, x, mask)
    else:
        tl.store(row + _transposed(i, outer, width), x, mask)


@triton.jit
def mean(x, count):
    return tl.sum(x, 1, keep_dims=True) / count


@triton.jit
def centred(x, count, mask):
    """Mean of rows x, and x - mean, 0 where masked. A mean that is left afterwards is the rounding of the first."""
    x = tl.where(mask, x, 0.0)
    first = mean(x, count)
    x = tl.where(mask, x - first, 0.0)
    rest = mean(x, count)
    return first + rest, tl.where(mask, x - rest, 0.0)


@triton.jit
def standardized(w, width, eps, mask):
    """w_hat, 0 where masked, and rstd of rows w."""
    _, c = centred(w, width, mask)
    rstd = tl.rsqrt(mean(c * c, width) + eps)
    return c * rstd, rstd


@triton.jit
def projected(d, w_hat, rstd, width, mask):
    """Gradient of rows w, given that of w_hat."""
    _, d = centred(d, width, mask)
    return rstd * (d - w_hat * mean(d * w_hat, width))


@triton.jit
def part(number, width, PART: tl.constexpr):
    """Indices of a part of a row, how many come before it, how many they are, and their mask."""
    before = number * PART
    i = before + tl.arange(0, PART)[None, :]
    return i, before, tl.minimum(width - before, PART), i < width


@triton.jit
def moments(w, width, PART: tl.constexpr):
    """Of the row at w, in parts: a value near its mean, the mean less that, and the sum of squares about the mean."""
    shift = tl.load(w).to(tl.float32)
    center, square = tl.zeros((1, 1), tl.float32), tl.zeros((1, 1), tl.float32)
    number = 0
    while number * PART < width:
        i, before, count, mask = part(number, width, PART)
        center, square = with_part(center, square, before, read(w, i, 1, width, mask) - shift, count, mask)
        number += 1
    return shift, center, square


@triton.jit
def with_part(center, square, before, x, count, mask):
    """Mean, and sum of squares about it, of the `before` elements of a row and of `count` more."""
    x_mean, x = centred(x, count, mask)
    delta = x_mean - center
    share = count / (before + count)
    square += tl.sum(x * x, 1, keep_dims=True) + delta * delta * (before * share)
    return center + delta * share, square


@triton.jit
def joint_moments(w, d, outer, width, PART: tl.constexpr):
    """As `moments`; then the mean of the row at d, and the sum of products of both about their means."""
    shift = tl.load(w).to(tl.float32)
    center, square = tl.zeros((1, 1), tl.float32), tl.zeros((1, 1), tl.float32)
    d_mean, product = tl.zeros((1, 1), tl.float32), tl.zeros((1, 1), tl.float32)
    number = 0
    while number * PART < width:
        i, before, count, mask = part(number, width, PART)
        x_mean, x = centred(read(w, i, 1, width, mask) - shift, count, mask)
        y_mean, y = centred(read(d, i, outer, width, mask), count, mask)
        delta, d_delta = x_mean - center, y_mean - d_mean
        share = count / (before + count)
        square += tl.sum(x * x, 1, keep_dims=True) + delta * delta * (before * share)
        product += tl.sum(x * y, 1, keep_dims=True) + delta * d_delta * (before * share)
        center += delta * share
        d_mean += d_delta * share
        number += 1
    return shift, center, square, d_mean, product
