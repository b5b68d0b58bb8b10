"""The step of StandardizedSGD as a Triton kernel: weights and plain parameters of the same dtypes in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitfast.ops.weight_std.triton_rows import (
    FLAT,
    FLAT_UNALIGNED,
    LONG,
    MIDDLE,
    SHORT,
    WHOLE,
    epsilon,
    find,
    flat,
    flat_entry,
    in_order,
    joint_moments,
    launch,
    operand,
    part,
    projected,
    read,
    size,
    standardized,
    tile,
    weight_entry,
    with_part,
    write,
)


def step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    w_hats: list[Tensor],
    eps: list[float],
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    averages: list[Tensor] = (),
    decoupled: bool = False,
    ema_decay: float = 0.0,
) -> None:
    """`reference.step` on the device.

    A CUDA graph repeats the lr it was captured with, unless lr is a tensor on the device, of one float32: then what
    that holds at the time of the replay.
    """
    own_g: list[Tensor] = []
    own_m = [_ordered(m, p) for m, p in zip(momenta, parameters, strict=False)]
    own_a = [_ordered(a, p) for a, p in zip(averages, parameters, strict=False)]
    weights: dict[tuple, list] = {}
    plain: dict[tuple, list] = {}
    for i, (p, d) in enumerate(zip(parameters, gradients, strict=True)):
        m, a = own_m[i : i + 1], own_a[i : i + 1]
        dtypes = p.dtype, *(x[0].dtype if x else p.dtype for x in (m, a))
        if i < len(w_hats):
            entry = weight_entry(p, [d, w_hats[i], *m, *a], eps[i])
            weights.setdefault((*dtypes, d.dtype, w_hats[i].dtype), []).append(entry)
        else:
            own_g.append(_ordered(d, p))
            plain.setdefault((*dtypes, d.dtype), []).append(flat_entry(p, [own_g[-1], p, *m, *a]))
    for dtypes, entries in _launches(weights, plain):
        constants = dict(zip(("W", "M", "A", "D", "W_HAT", "G"), dtypes, strict=True))
        constants |= {"WITH_M": bool(momenta), "WITH_A": bool(averages), "LR_ON_DEVICE": isinstance(lr, Tensor)}
        constants["DECOUPLED"] = decoupled
        rule = lr, momentum, weight_decay, 1 - ema_decay
        launch(step_kernel, entries, parameters[0].device, *rule, **constants)
    for x, own in zip([*momenta, *averages], own_m + own_a, strict=True):
        if own is not x:
            x.copy_(own)


def _ordered(x: Tensor, w: Tensor) -> Tensor:
    """x with its elements in the order of w's: itself, or a copy."""
    return x if in_order(x, w) else torch.empty_like(w, dtype=x.dtype).copy_(x)


def _launches(weights: dict, plain: dict) -> list:
    """Dtypes of w, m, a, d, w_hat and plain parameters' gradient, and the entries: these join weights like them."""
    launches = []
    for own, entries in weights.items():
        like = next((key for key in plain if key[:3] == own[:3]), None)
        launches.append(((*own, like[3] if like else own[0]), entries + plain.pop(like, [])))
    return launches + [((*own[:3], own[0], own[0], own[3]), entries) for own, entries in plain.items()]


@triton.jit
def step_kernel(
    table,
    lr,
    momentum,
    weight_decay,
    share,
    W: tl.constexpr,
    M: tl.constexpr,
    A: tl.constexpr,
    D: tl.constexpr,
    W_HAT: tl.constexpr,
    G: tl.constexpr,
    WITH_M: tl.constexpr,
    WITH_A: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
    DECOUPLED: tl.constexpr,
    COLUMNS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    if LR_ON_DEVICE:
        lr = tl.load(lr)
    rule = (lr, momentum, weight_decay, share, DECOUPLED)
    tensor, kind, program = find(table, COLUMNS)
    if kind == FLAT:
        _step_plain(table, tensor, program, rule, W, M, A, G, WITH_M, WITH_A, COLUMNS, ELEMENTS, True)
    elif kind == FLAT_UNALIGNED:
        _step_plain(table, tensor, program, rule, W, M, A, G, WITH_M, WITH_A, COLUMNS, ELEMENTS, False)
    elif kind == SHORT:
        _step(table, tensor, program, rule, W, M, A, D, W_HAT, WITH_M, WITH_A, COLUMNS, 16, ELEMENTS // 16)
    elif kind == MIDDLE:
        _step(table, tensor, program, rule, W, M, A, D, W_HAT, WITH_M, WITH_A, COLUMNS, 4, ELEMENTS // 4)
    elif kind == WHOLE:
        _step(table, tensor, program, rule, W, M, A, D, W_HAT, WITH_M, WITH_A, COLUMNS, 1, ELEMENTS)
    elif kind == LONG:
        _step_long(table, tensor, program, rule, W, M, A, D, W_HAT, WITH_M, WITH_A, COLUMNS, ELEMENTS, True)
    else:
        _step_long(table, tensor, program, rule, W, M, A, D, W_HAT, WITH_M, WITH_A, COLUMNS, ELEMENTS // 4, False)


@triton.jit
def _moved(w, g, m, rule, W: tl.constexpr, M: tl.constexpr, WITH_M: tl.constexpr):
    """The new w and m, rounded to the dtypes they are kept in, without m not at all."""
    lr, momentum, weight_decay, _, decoupled = rule
    if not decoupled:
        g += weight_decay * w
    if WITH_M:
        g = (momentum * m + g).to(M).to(tl.float32)
    change = g + weight_decay * w if decoupled else g
    return (w - lr * change).to(W).to(tl.float32), g


@triton.jit
def _average(a_row, i, w, width, mask, rule):
    """Move the average of w, in the order of w, to the new w."""
    a = read(a_row, i, 1, width, mask)
    write(a_row, i, 1, width, a + rule[3] * (w - a), mask)


@triton.jit
def _step_plain(
    table,
    tensor,
    program,
    rule,
    W: tl.constexpr,
    M: tl.constexpr,
    A: tl.constexpr,
    G: tl.constexpr,
    WITH_M: tl.constexpr,
    WITH_A: tl.constexpr,
    COLUMNS: tl.constexpr,
    ELEMENTS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Elements of a parameter the gradient of which is its own."""
    count, _ = size(table, tensor, COLUMNS, ALIGNED)
    w_all, _ = operand(table, tensor, 0, W, COLUMNS, ALIGNED)
    g_all, _ = operand(table, tensor, 1, G, COLUMNS, ALIGNED)
    m_all, _ = operand(table, tensor, 3 if WITH_M else 0, M, COLUMNS, ALIGNED)
    a_all, _ = operand(table, tensor, (4 if WITH_M else 3) if WITH_A else 0, A, COLUMNS, ALIGNED)
    i, mask = flat(program, count, ELEMENTS, ALIGNED)
    w = read(w_all, i, 1, 0, mask)
    g = read(g_all, i, 1, 0, mask)
    m = read(m_all, i, 1, 0, mask) if WITH_M else 0.0
    w, m = _moved(w, g, m, rule, W, M, WITH_M)
    write(w_all, i, 1, 0, w, mask)
    if WITH_M:
        write(m_all, i, 1, 0, m, mask)
    if WITH_A:
        _average(a_all, i, w, 0, mask, rule)


@triton.jit
def _step(
    table,
    tensor,
    program,
    rule,
    W: tl.constexpr,
    M: tl.constexpr,
    A: tl.constexpr,
    D: tl.constexpr,
    W_HAT: tl.constexpr,
    WITH_M: tl.constexpr,
    WITH_A: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """ROWS rows of up to ELEMENTS each."""
    rows, width = size(table, tensor, COLUMNS, True)
    w_row, _ = operand(table, tensor, 0, W, COLUMNS, True)
    d_row, d_outer = operand(table, tensor, 1, D, COLUMNS, True)
    w_hat_row, w_hat_outer = operand(table, tensor, 2, W_HAT, COLUMNS, True)
    m_row, _ = operand(table, tensor, 3 if WITH_M else 0, M, COLUMNS, True)
    a_row, _ = operand(table, tensor, (4 if WITH_M else 3) if WITH_A else 0, A, COLUMNS, True)
    begin, i, mask = tile(program, rows, width, ROWS, ELEMENTS)
    eps = epsilon(table, tensor, COLUMNS)
    w = read(w_row + begin, i, 1, width, mask)
    d = read(d_row + begin, i, d_outer, width, mask)
    m = read(m_row + begin, i, 1, width, mask) if WITH_M else 0.0
    w_hat, rstd = standardized(w, width, eps, mask)
    w, m = _moved(w, projected(d, w_hat, rstd, width, mask), m, rule, W, M, WITH_M)
    write(w_row + begin, i, 1, width, w, mask)
    if WITH_M:
        write(m_row + begin, i, 1, width, m, mask)
    if WITH_A:
        _average(a_row + begin, i, w, width, mask, rule)
    w_hat, _ = standardized(w, width, eps, mask)
    write(w_hat_row + begin, i, w_hat_outer, width, w_hat, mask)


@triton.jit
def _step_long(
    table,
    tensor,
    row,
    rule,
    W: tl.constexpr,
    M: tl.constexpr,
    A: tl.constexpr,
    D: tl.constexpr,
    W_HAT: tl.constexpr,
    WITH_M: tl.constexpr,
    WITH_A: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A row of any width."""
    _, width = size(table, tensor, COLUMNS, ALIGNED)
    begin = row * width
    w_row, _ = operand(table, tensor, 0, W, COLUMNS, ALIGNED)
    d_row, d_outer = operand(table, tensor, 1, D, COLUMNS, ALIGNED)
    w_hat_row, w_hat_outer = operand(table, tensor, 2, W_HAT, COLUMNS, ALIGNED)
    m_row, _ = operand(table, tensor, 3 if WITH_M else 0, M, COLUMNS, ALIGNED)
    a_row, _ = operand(table, tensor, (4 if WITH_M else 3) if WITH_A else 0, A, COLUMNS, ALIGNED)
    w_row, d_row, w_hat_row = w_row + begin, d_row + begin, w_hat_row + begin
    m_row, a_row = m_row + begin, a_row + begin
    eps = epsilon(table, tensor, COLUMNS)
    shift, center, square, d_mean, product = joint_moments(w_row, d_row, d_outer, width, PART)
    rstd = tl.rsqrt(square / width + eps)
    slope = product * rstd / width
    center_of_new, square_of_new = tl.zeros((1, 1), tl.float32), tl.zeros((1, 1), tl.float32)
    number = 0
    while number * PART < width:
        i, before, count, mask = part(number, width, PART)
        w = read(w_row, i, 1, width, mask)
        d = read(d_row, i, d_outer, width, mask) - d_mean
        m = read(m_row, i, 1, width, mask) if WITH_M else 0.0
        g = rstd * (d - (w - shift - center) * rstd * slope)
        w, m = _moved(w, g, m, rule, W, M, WITH_M)
        write(w_row, i, 1, width, w, mask)
        if WITH_M:
            write(m_row, i, 1, width, m, mask)
        if WITH_A:
            _average(a_row, i, w, width, mask, rule)
        center_of_new, square_of_new = with_part(center_of_new, square_of_new, before, w - shift, count, mask)
        number += 1
    rstd = tl.rsqrt(square_of_new / width + eps)
    tl.debug_barrier()  # w is read by other threads than wrote it
    number = 0
    while number * PART < width:
        i, _, _, mask = part(number, width, PART)
        w_hat = (read(w_row, i, 1, width, mask) - shift - center_of_new) * rstd
        write(w_hat_row, i, w_hat_outer, width, w_hat, mask)
        number += 1
