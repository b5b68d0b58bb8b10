"""The stem's max-pool as Triton kernels, forward and backward a gather each.

A program has windows that follow each other, in a block of channels. Contiguous images are images of one channel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitfast.ops import _triton

_ELEMENTS, _CHANNELS = 2048, 64  # of a program; 64 channels of two bytes are a line of memory
_PER_THREAD = 8


def forward(x: Tensor, with_index: bool) -> tuple[Tensor, Tensor | None]:
    """y, and 3 * row + column of the winner inside its window if asked for; `reference.forward` on the device."""
    n, channels, height, width = x.shape
    shape, memory_format = (n, channels, (height + 1) // 2, (width + 1) // 2), _memory_format(x)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    index = torch.empty_like(y, dtype=torch.uint8) if with_index else None
    _launch(forward_kernel, (x, y, index), x.shape, memory_format == torch.channels_last, INDEX=with_index)
    return y, index


def backward(dy: Tensor, index: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    """dx = sum of dy over the windows that x won; `reference.backward` on the device."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*dy.shape[:2], height, width)
    dx = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=memory_format)
    _launch(backward_kernel, (dy, index.contiguous(memory_format=memory_format), dx), shape, channels_last)
    return dx


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _launch(kernel, tensors: tuple, shape: tuple[int, ...], channels_last: bool, **constants) -> None:
    n, channels, height, width = shape
    if not channels_last:
        n, channels = n * channels, 1
    rows = n * ((height + 1) // 2)
    windows = rows * ((width + 1) // 2)
    if windows == 0:
        return
    block = min(_CHANNELS, triton.next_power_of_2(channels))
    together = min(_ELEMENTS // block, triton.next_power_of_2(windows))
    programs = triton.cdiv(windows, together) * triton.cdiv(channels, block)
    num_warps = max(1, together * block // (32 * _PER_THREAD))
    constants |= {"WINDOWS": together, "CHANNELS": block}
    _triton.launch(kernel, (programs,), *tensors, rows, channels, height, width, num_warps=num_warps, **constants)


@triton.jit
def _place(all_rows, channels, height, width, WINDOWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Image, row and column of this program's windows, its channels, and the mask of what is there."""
    parts = tl.cdiv(channels, CHANNELS)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    channel = tl.program_id(0) % parts * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    first = (tl.program_id(0) // parts).to(tl.int64) * WINDOWS
    column = (first % columns).to(tl.int32) + tl.arange(0, WINDOWS)[:, None]
    row = (first // columns).to(tl.int32) + column // columns
    return (row // rows).to(tl.int64), row % rows, column % columns, channel, (row < all_rows) & (channel < channels)


@triton.jit
def forward_kernel(
    x,
    y,
    index,
    all_rows,
    channels,
    height,
    width,
    WINDOWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
):
    image, row, column, channel, here = _place(all_rows, channels, height, width, WINDOWS, CHANNELS)
    x += image * height * width * channels
    for tap in tl.static_range(9):
        h, w = 2 * row - 1 + tap // 3, 2 * column - 1 + tap % 3
        inside = here & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        at = (h * width + w).to(tl.int64) * channels + channel
        value = tl.load(x + at, inside, other=0.0).to(tl.float32)
        if tap == 0:
            best, winner = value, tl.zeros_like(value).to(tl.uint8)
        else:
            wins = (value > best) | (value != value)
            best, winner = tl.where(wins, value, best), tl.where(wins, tap, winner).to(tl.uint8)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    at = ((image * rows + row) * columns + column) * channels + channel
    tl.store(y + at, best, here)
    if INDEX:
        tl.store(index + at, winner, here)


@triton.jit
def backward_kernel(
    dy,
    index,
    dx,
    all_rows,
    channels,
    height,
    width,
    WINDOWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The four inputs around the middle of each window; three more windows reach them. Sums are in scan order."""
    image, row, column, channel, here = _place(all_rows, channels, height, width, WINDOWS, CHANNELS)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    at = ((image * rows + row) * columns + column) * channels + channel
    right, below = here & (column + 1 < columns), here & (row + 1 < rows)
    down = columns * channels
    d, won = _gradient(dy, index, at, here)
    d_right, won_right = _gradient(dy, index, at + channels, right)
    d_below, won_below = _gradient(dy, index, at + down, below)
    d_below_right, won_below_right = _gradient(dy, index, at + down + channels, right & below)
    top = tl.where(won == 4, d, 0.0)
    top_right = tl.where(won == 5, d, 0.0) + tl.where(won_right == 3, d_right, 0.0)
    bottom = tl.where(won == 7, d, 0.0) + tl.where(won_below == 1, d_below, 0.0)
    bottom_right = tl.where(won == 8, d, 0.0) + tl.where(won_right == 6, d_right, 0.0)
    bottom_right += tl.where(won_below == 2, d_below, 0.0)
    bottom_right += tl.where(won_below_right == 0, d_below_right, 0.0)
    at = ((image * height + 2 * row) * width + 2 * column) * channels + channel
    right, below = here & (2 * column + 1 < width), here & (2 * row + 1 < height)
    down = width * channels
    tl.store(dx + at, top, here)
    tl.store(dx + at + channels, top_right, right)
    tl.store(dx + at + down, bottom, below)
    tl.store(dx + at + down + channels, bottom_right, right & below)


@triton.jit
def _gradient(dy, index, at, mask):
    """dy in fp32 and the winners of windows; outside, 0 of nobody."""
    return tl.load(dy + at, mask, other=0.0).to(tl.float32), tl.load(index + at, mask, other=9)
