"""GroupNorm of channels_last images by Triton kernels: three ways, of which `config` chooses.

Each way returns what `reference.forward` or `reference.backward` returns, for fp32, bf16 and fp16 with fp32 parameters,
statistics and sums, and the same to the bit on every run: no sum depends on the order in which programs run.
"""

import torch
from torch import Tensor

from bitfast.ops._triton import l2_bytes, launch, multiprocessors
from bitfast.ops.group_norm import config, triton_backward, triton_forward, triton_one_pass


def forward(x, residual, weight, bias, groups, eps, act):
    if config.one_pass("forward", *_sizes(x), groups):
        run = forward_one_pass
    else:
        run = forward_two_launches if config.stays_in_l2(x.nbytes, l2_bytes(x.device)) else forward_ticket
    return run(x, residual, weight, bias, groups, eps, act)


def backward(dy, ds, x, weight, bias, mean, rstd, groups, act):
    if config.one_pass("backward", *_sizes(x), groups):
        run = backward_one_pass
    else:
        run = backward_two_launches if config.stays_in_l2(2 * x.nbytes, l2_bytes(x.device)) else backward_ticket
    return run(dy, ds, x, weight, bias, mean, rstd, groups, act)


def forward_one_pass(x, residual, weight, bias, groups, eps, act):
    samples, pixels, channels = _sizes(x)
    tile = config.one_pass("forward", samples, pixels, channels, groups)
    y, s, mean, rstd = _results(x, residual, groups)
    launch(
        triton_one_pass.forward,
        _one_pass_grid(tile, samples, groups),
        *(x, residual, weight, bias, y, s, mean, rstd, samples, pixels),
        **_constants(tile, channels, groups, ACT=act, EPS=eps, BS=tile.samples),
    )
    return y, s, mean, rstd


def backward_one_pass(dy, ds, x, weight, bias, mean, rstd, groups, act):
    samples, pixels, channels = _sizes(x)
    tile = config.one_pass("backward", samples, pixels, channels, groups)
    dx, rows = torch.empty_like(x), weight.new_empty((2, -(-samples // tile.samples), channels))
    launch(
        triton_one_pass.backward,
        _one_pass_grid(tile, samples, groups),
        *(dy, ds, x, weight, bias, mean, rstd, dx, *rows, samples, pixels),
        **_constants(tile, channels, groups, ACT=act, BS=tile.samples),
    )
    return dx, rows[0].sum(0), rows[1].sum(0)


def forward_two_launches(x, residual, weight, bias, groups, eps, act):
    samples, pixels, channels = _sizes(x)
    cut = _chunks(x, groups)
    y, s, mean, rstd = _results(x, residual, groups)
    partial = _partial(x, cut, groups)
    grid, at = (samples * cut.chunks * cut.tiles(groups, channels),), (pixels, cut.chunk_pixels, cut.chunks)
    constants = _constants(cut, channels, groups)
    launch(triton_forward.statistics_launch, grid, x, residual, s, *partial, *at, **constants)
    constants |= dict(EPS=eps, ACT=act, PARTS=cut.parts)
    launch(triton_forward.normalize_launch, grid, s, weight, bias, y, mean, rstd, *partial, *at, **constants)
    return y, s, mean, rstd


def backward_two_launches(dy, ds, x, weight, bias, mean, rstd, groups, act):
    samples, pixels, channels = _sizes(x)
    cut = _chunks(x, groups)
    dx, rows = torch.empty_like(x), weight.new_empty((2, samples * cut.chunks, channels))
    partial = _partial(x, cut, groups)
    grid, at = (samples * cut.chunks * cut.tiles(groups, channels),), (pixels, cut.chunk_pixels, cut.chunks)
    constants = _constants(cut, channels, groups, ACT=act)
    of_x = x, weight, bias, mean, rstd
    launch(triton_backward.sum_gradients_launch, grid, dy, *of_x, *rows, *partial, *at, **constants)
    constants |= dict(PARTS=cut.parts)
    launch(triton_backward.differentiate_launch, grid, dy, ds, *of_x, dx, *partial, *at, **constants)
    return dx, rows[0].sum(0), rows[1].sum(0)


def forward_ticket(x, residual, weight, bias, groups, eps, act):
    _, pixels, channels = _sizes(x)
    cut = _chunks(x, groups)
    y, s, mean, rstd = _results(x, residual, groups)
    grid, *order = _order(x, cut, groups)
    launch(
        triton_forward.ticket_launch,
        grid,
        *(x, residual, s, weight, bias, y, mean, rstd, *_partial(x, cut, groups), _counters(x)),
        *(pixels, cut.chunk_pixels, cut.chunks, *order),
        **_constants(cut, channels, groups, EPS=eps, ACT=act, PARTS=cut.parts),
    )
    return y, s, mean, rstd


def backward_ticket(dy, ds, x, weight, bias, mean, rstd, groups, act):
    samples, pixels, channels = _sizes(x)
    cut = _chunks(x, groups)
    dx, rows = torch.empty_like(x), weight.new_empty((2, samples * cut.chunks, channels))
    grid, *order = _order(x, cut, groups)
    launch(
        triton_backward.ticket_launch,
        grid,
        *(dy, ds, x, weight, bias, mean, rstd, dx, *rows, *_partial(x, cut, groups), _counters(x)),
        *(pixels, cut.chunk_pixels, cut.chunks, *order),
        **_constants(cut, channels, groups, ACT=act, PARTS=cut.parts),
    )
    return dx, rows[0].sum(0), rows[1].sum(0)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Samples, pixels, channels."""
    return x.shape[0], x.shape[2] * x.shape[3], x.shape[1]


def _results(x: Tensor, residual: Tensor | None, groups: int) -> tuple[Tensor, ...]:
    """y, s, mean and rstd, not yet computed; s is x without a residual."""
    s = x if residual is None else torch.empty_like(x)
    mean, rstd = (x.new_empty((x.shape[0], groups), dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), s, mean, rstd


def _one_pass_grid(tile: config.OnePass, samples: int, groups: int) -> tuple[int]:
    return (-(-samples // tile.samples) * -(-groups // tile.groups),)


def _constants(tile, channels: int, groups: int, **others) -> dict:
    sizes = dict(G=groups, C=channels, BP=tile.pixels, BG=tile.groups, DP=tile.lanes)
    return sizes | others | dict(num_warps=tile.num_warps)


def _chunks(x: Tensor, groups: int) -> config.Chunks:
    samples, pixels, channels = _sizes(x)
    return config.chunks(max(1, samples), pixels, channels, groups, multiprocessors(x.device))


def _partial(x: Tensor, cut: config.Chunks, groups: int) -> Tensor:
    """Two results of every chunk, for every group."""
    pieces = cut.tiles(groups, x.shape[1]) // -(-groups // cut.groups)
    return x.new_empty((2, x.shape[0], cut.chunks * pieces, groups), dtype=torch.float32)


def _counters(x: Tensor) -> Tensor:
    return x.new_zeros(1 + x.shape[0], dtype=torch.int32)


def _order(x: Tensor, cut: config.Chunks, groups: int) -> tuple[tuple[int], int, int, int]:
    """Grid, samples, samples of a wave, items: a wave keeps the programs that run at once busy for one step."""
    samples, of_sample = x.shape[0], cut.chunks * cut.tiles(groups, x.shape[1])
    running = multiprocessors(x.device) * config.PROGRAMS_PER_MULTIPROCESSOR
    wave = -(-running // of_sample)
    turns = 2 * -(-samples // wave) + 1
    return (min(running, samples * of_sample),), samples, wave, turns * wave * of_sample
