"""Weight standardization and its projection as Triton kernels: one launch for all weights of the same dtypes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitfast.ops.weight_std.triton_rows import (
    LONG,
    MIDDLE,
    SHORT,
    WHOLE,
    epsilon,
    find,
    joint_moments,
    launch,
    moments,
    operand,
    part,
    projected,
    read,
    size,
    standardized,
    tile,
    weight_entry,
    write,
)


def forward(weights: list[Tensor], eps: float, dtype: torch.dtype | None) -> list[Tensor]:
    """w_hat = (w - mean) * rstd of every row; `reference.forward` on the device."""
    results = [torch.empty_like(w, dtype=dtype or w.dtype) for w in weights]
    _launch(standardize_kernel, ("W", "W_HAT"), weights, [[w_hat] for w_hat in results], eps)
    return results


def backward(dw_hat: list[Tensor], weights: list[Tensor], eps: float) -> list[Tensor]:
    """g = rstd * (d - mean(d) - w_hat * mean(d * w_hat)) of every row; `reference.backward` on the device."""
    results = [torch.empty_like(w) for w in weights]
    _launch(project_kernel, ("W", "D"), weights, [[d, g] for d, g in zip(dw_hat, results, strict=True)], eps)
    return results


def _launch(kernel, names: tuple[str, str], weights: list[Tensor], operands: list[list[Tensor]], eps: float) -> None:
    """One launch for the weights of the same dtypes; `names`: of the constants that w's and the first operand's are."""
    alike: dict[tuple[torch.dtype, torch.dtype], list[tuple[Tensor, list[Tensor]]]] = {}
    for w, others in zip(weights, operands, strict=True):
        alike.setdefault((w.dtype, others[0].dtype), []).append((w, others))
    for dtypes, members in alike.items():
        entries = [weight_entry(w, others, eps) for w, others in members]
        launch(kernel, entries, weights[0].device, **dict(zip(names, dtypes, strict=True)))


@triton.jit
def standardize_kernel(table, W: tl.constexpr, W_HAT: tl.constexpr, COLUMNS: tl.constexpr, ELEMENTS: tl.constexpr):
    tensor, kind, program = find(table, COLUMNS)
    if kind == SHORT:
        _standardize(table, tensor, program, W, W_HAT, COLUMNS, 16, ELEMENTS // 16)
    elif kind == MIDDLE:
        _standardize(table, tensor, program, W, W_HAT, COLUMNS, 4, ELEMENTS // 4)
    elif kind == WHOLE:
        _standardize(table, tensor, program, W, W_HAT, COLUMNS, 1, ELEMENTS)
    elif kind == LONG:
        _standardize_long(table, tensor, program, W, W_HAT, COLUMNS, ELEMENTS, True)
    else:
        _standardize_long(table, tensor, program, W, W_HAT, COLUMNS, ELEMENTS // 4, False)


@triton.jit
def _standardize(
    table,
    tensor,
    program,
    W: tl.constexpr,
    W_HAT: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """ROWS rows of up to ELEMENTS each."""
    rows, width = size(table, tensor, COLUMNS, True)
    w, _ = operand(table, tensor, 0, W, COLUMNS, True)
    out, outer = operand(table, tensor, 1, W_HAT, COLUMNS, True)
    begin, i, mask = tile(program, rows, width, ROWS, ELEMENTS)
    w_hat, _ = standardized(read(w + begin, i, 1, width, mask), width, epsilon(table, tensor, COLUMNS), mask)
    write(out + begin, i, outer, width, w_hat, mask)


@triton.jit
def _standardize_long(
    table,
    tensor,
    row,
    W: tl.constexpr,
    W_HAT: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A row of any width."""
    _, width = size(table, tensor, COLUMNS, ALIGNED)
    w, _ = operand(table, tensor, 0, W, COLUMNS, ALIGNED)
    out, outer = operand(table, tensor, 1, W_HAT, COLUMNS, ALIGNED)
    begin = row * width
    shift, center, square = moments(w + begin, width, PART)
    rstd = tl.rsqrt(square / width + epsilon(table, tensor, COLUMNS))
    number = 0
    while number * PART < width:
        i, _, _, mask = part(number, width, PART)
        c = read(w + begin, i, 1, width, mask) - shift - center
        write(out + begin, i, outer, width, c * rstd, mask)
        number += 1


@triton.jit
def project_kernel(table, W: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, ELEMENTS: tl.constexpr):
    tensor, kind, program = find(table, COLUMNS)
    if kind == SHORT:
        _project(table, tensor, program, W, D, COLUMNS, 16, ELEMENTS // 16)
    elif kind == MIDDLE:
        _project(table, tensor, program, W, D, COLUMNS, 4, ELEMENTS // 4)
    elif kind == WHOLE:
        _project(table, tensor, program, W, D, COLUMNS, 1, ELEMENTS)
    elif kind == LONG:
        _project_long(table, tensor, program, W, D, COLUMNS, ELEMENTS, True)
    else:
        _project_long(table, tensor, program, W, D, COLUMNS, ELEMENTS // 4, False)


@triton.jit
def _project(
    table,
    tensor,
    program,
    W: tl.constexpr,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """ROWS rows of up to ELEMENTS each."""
    rows, width = size(table, tensor, COLUMNS, True)
    w, _ = operand(table, tensor, 0, W, COLUMNS, True)
    d, outer = operand(table, tensor, 1, D, COLUMNS, True)
    g, _ = operand(table, tensor, 2, W, COLUMNS, True)
    begin, i, mask = tile(program, rows, width, ROWS, ELEMENTS)
    gradient = read(d + begin, i, outer, width, mask)
    w_hat, rstd = standardized(read(w + begin, i, 1, width, mask), width, epsilon(table, tensor, COLUMNS), mask)
    write(g + begin, i, 1, width, projected(gradient, w_hat, rstd, width, mask), mask)


@triton.jit
def _project_long(
    table,
    tensor,
    row,
    W: tl.constexpr,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A row of any width."""
    _, width = size(table, tensor, COLUMNS, ALIGNED)
    w, _ = operand(table, tensor, 0, W, COLUMNS, ALIGNED)
    d, outer = operand(table, tensor, 1, D, COLUMNS, ALIGNED)
    g, _ = operand(table, tensor, 2, W, COLUMNS, ALIGNED)
    begin = row * width
    shift, center, square, d_mean, product = joint_moments(w + begin, d + begin, outer, width, PART)
    rstd = tl.rsqrt(square / width + epsilon(table, tensor, COLUMNS))
    slope = product * rstd / width
    number = 0
    while number * PART < width:
        i, _, _, mask = part(number, width, PART)
        w_hat = (read(w + begin, i, 1, width, mask) - shift - center) * rstd
        gradient = read(d + begin, i, outer, width, mask) - d_mean
        write(g + begin, i, 1, width, rstd * (gradient - w_hat * slope), mask)
        number += 1
