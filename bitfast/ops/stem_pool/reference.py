"""The stem's max-pool in plain torch: the definition in any dtype, and what runs where no kernel fits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bitfast.ops._dtypes import accumulate_dtype


def forward(x: Tensor, with_index: bool) -> tuple[Tensor, Tensor | None]:
    """y = maximum over the 3x3 windows at stride 2 of x inside a frame of zeros, one wide.

    Returns y and, if asked for, index: 3 * row + column of the winner inside its window, uint8. Differentiable by
    autograd.
    """
    framed = F.pad(x, (1, 1, 1, 1))
    if not with_index:
        return F.max_pool2d(framed, 3, 2), None
    y, winner = F.max_pool2d(framed, 3, 2, return_indices=True)
    first_row = 2 * torch.arange(y.shape[2], device=x.device).view(-1, 1)
    first_column = 2 * torch.arange(y.shape[3], device=x.device)
    row, column = winner // framed.shape[3] - first_row, winner % framed.shape[3] - first_column
    return y, (3 * row + column).to(torch.uint8)


def backward(dy: Tensor, index: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    """Gradient of `forward` for x (N, C, height, width): dx = sum of dy over the windows that x won."""
    n, channels, rows, columns = dy.shape
    framed = dy.new_zeros((n, channels, height + 2, width + 2), dtype=accumulate_dtype(dy.dtype))
    for tap in reversed(range(9)):  # so every input sums its windows in scan order
        row, column = divmod(tap, 3)
        window_inputs = framed[:, :, row : row + 2 * rows - 1 : 2, column : column + 2 * columns - 1 : 2]
        window_inputs += dy.where(index == tap, 0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return framed[:, :, 1:-1, 1:-1].to(dy.dtype).contiguous(memory_format=memory_format)
