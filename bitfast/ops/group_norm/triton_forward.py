"""Forward GroupNorm of large images in two steps: statistics of chunks of pixels, then the norm of chunks.

A chunk is `chunk_pixels` pixels of one sample in one tile of lanes (see triton_tiles), read BP pixels at a time.
`means` and `squares` (N, chunks * pieces, G) are the mean of each chunk and the sum of squares around it.
"""

import triton
import triton.language as tl

from bitfast.ops.group_norm.triton_ticket import finish, place, place_of_ticket, wait
from bitfast.ops.group_norm.triton_tiles import activate, group_sum, lanes, offsets, per_lane, pieces, tiles


@triton.jit
def _read(x, residual, at, exists):
    """x, or x + residual; 0 outside."""
    v = tl.load(x + at, exists, 0).to(tl.float32)
    if residual is not None:
        v += tl.load(residual + at, exists, 0).to(tl.float32)
    return v


@triton.jit
def statistics(
    x,
    residual,
    s,
    means,
    squares,
    n,
    tile,
    chunk,
    pixels,
    chunk_pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
):
    """Sums of the values less the mean of the first BP pixels, which is near enough to that of all."""
    PIECES: tl.constexpr = pieces(G, C, DP)
    group, c, lane, channels = lanes(tile, G, C, BG, DP)
    first = (n.to(tl.int64) * pixels + chunk * chunk_pixels) * C
    inside = tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels)
    at, exists = offsets(0, inside, c, lane, C, BP)
    shift = group_sum(tl.sum(_read(x, residual, first + at, exists), 0)[None, :], 1, BG, DP) / (
        tl.minimum(inside, BP) * channels
    ).to(tl.float32)
    lane_shift = per_lane(shift, 1, BG, DP)
    sums = tl.zeros((BP, BG * DP), tl.float32)
    squared = tl.zeros((BP, BG * DP), tl.float32)
    for start in range(0, inside, BP):
        at, exists = offsets(start, inside, c, lane, C, BP)
        v = _read(x, residual, first + at, exists)
        if residual is not None:
            stored = v.to(s.dtype.element_ty)
            tl.store(s + first + at, stored, exists)
            v = stored.to(tl.float32)
        v = tl.where(exists, v - lane_shift, 0.0)
        sums += v
        squared += v * v
    count = (inside * channels).to(tl.float32)
    left = group_sum(tl.sum(sums, 0)[None, :], 1, BG, DP) / count
    square = group_sum(tl.sum(squared, 0)[None, :], 1, BG, DP) - count * left * left
    g = group + tl.arange(0, BG)
    part = n.to(tl.int64) * chunks * PIECES + chunk * PIECES + tile % PIECES
    tl.store(means + part * G + g[None, :], shift + left, (g < G)[None, :])
    tl.store(squares + part * G + g[None, :], square, (g < G)[None, :])


@triton.jit
def combined(
    means,
    squares,
    n,
    group,
    pixels,
    chunk_pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
    PARTS: tl.constexpr,
):
    """mean and rstd (1, BG) of one sample from its chunks."""
    D: tl.constexpr = C // G
    PIECES: tl.constexpr = pieces(G, C, DP)
    part, g = tl.arange(0, PARTS), group + tl.arange(0, BG)
    inside = tl.minimum(chunk_pixels, pixels - part // PIECES * chunk_pixels)
    channels = tl.minimum(DP, D - part % PIECES * DP)
    count = tl.where(part < chunks * PIECES, inside * channels, 0).to(tl.float32)[:, None]
    exists = (part < chunks * PIECES)[:, None] & (g < G)[None, :]
    at = (n.to(tl.int64) * chunks * PIECES + part[:, None]) * G + g[None, :]
    # Past the first cache, which may hold what was there before another multiprocessor wrote.
    m = tl.load(means + at, exists, 0, cache_modifier=".cg")
    square = tl.load(squares + at, exists, 0, cache_modifier=".cg")
    total = (pixels * D).to(tl.float32)
    mean = tl.sum(m * count, 0)[None, :] / total
    off = m - mean
    left = tl.sum(off * count, 0)[None, :] / total
    var = tl.sum(square + off * off * count, 0)[None, :] / total - left * left
    return mean + left, 1 / tl.sqrt(var + EPS)


@triton.jit
def normalize(
    s,
    weight,
    bias,
    y,
    mean,
    rstd,
    means,
    squares,
    n,
    tile,
    chunk,
    pixels,
    chunk_pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    ACT: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
    PARTS: tl.constexpr,
):
    PIECES: tl.constexpr = pieces(G, C, DP)
    group, c, lane, _ = lanes(tile, G, C, BG, DP)
    m, r = combined(means, squares, n, group, pixels, chunk_pixels, chunks, G, C, EPS, BG, DP, PARTS)
    g = group + tl.arange(0, BG)
    writes = (g < G) & (chunk == 0) & (tile % PIECES == 0)
    tl.store(mean + n * G + g[None, :], m, writes[None, :])
    tl.store(rstd + n * G + g[None, :], r, writes[None, :])
    m = per_lane(m, 1, BG, DP)
    scale = per_lane(r, 1, BG, DP) * tl.load(weight + c, lane, 0)[None, :]
    b = tl.load(bias + c, lane, 0)[None, :]
    first = (n.to(tl.int64) * pixels + chunk * chunk_pixels) * C
    inside = tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels)
    for start in range(0, inside, BP):
        at, exists = offsets(start, inside, c, lane, C, BP)
        v = _read(s, None, first + at, exists)
        z = activate((v - m) * scale + b, ACT)
        tl.store(y + first + at, z.to(y.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["pixels", "chunk_pixels", "chunks"])
def statistics_launch(
    x,
    residual,
    s,
    means,
    squares,
    pixels,
    chunk_pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
):
    n, tile, chunk = place(tl.program_id(0), chunks, tiles(G, C, BG, DP))
    statistics(x, residual, s, means, squares, n, tile, chunk, pixels, chunk_pixels, chunks, G, C, BP, BG, DP)


@triton.jit(do_not_specialize=["pixels", "chunk_pixels", "chunks"])
def normalize_launch(
    s,
    weight,
    bias,
    y,
    mean,
    rstd,
    means,
    squares,
    pixels,
    chunk_pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    ACT: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
    PARTS: tl.constexpr,
):
    n, tile, chunk = place(tl.program_id(0), chunks, tiles(G, C, BG, DP))
    # fmt: off
    normalize(
        s, weight, bias, y, mean, rstd, means, squares, n, tile, chunk, pixels, chunk_pixels, chunks,
        G, C, EPS, ACT, BP, BG, DP, PARTS,
    )
    # fmt: on


@triton.jit(do_not_specialize=["pixels", "chunk_pixels", "chunks", "samples", "wave", "items"])
def ticket_launch(
    x,
    residual,
    s,
    weight,
    bias,
    y,
    mean,
    rstd,
    means,
    squares,
    counters,
    pixels,
    chunk_pixels,
    chunks,
    samples,
    wave,
    items,
    G: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    ACT: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Both steps in one launch, in the order of triton_ticket."""
    TILES: tl.constexpr = tiles(G, C, BG, DP)
    ticket = tl.atomic_add(counters, 1, sem="relaxed")
    while ticket < items:
        following = tl.atomic_add(counters, 1, sem="relaxed")
        n, tile, chunk, is_first = place_of_ticket(ticket, chunks, samples, wave, TILES)
        if n < samples:
            # fmt: off
            if is_first:
                statistics(
                    x, residual, s, means, squares, n, tile, chunk, pixels, chunk_pixels, chunks, G, C, BP, BG, DP
                )
                finish(counters, n)
            else:
                wait(counters, n, chunks * TILES)
                normalize(
                    s, weight, bias, y, mean, rstd, means, squares, n, tile, chunk, pixels, chunk_pixels, chunks,
                    G, C, EPS, ACT, BP, BG, DP, PARTS,
                )
            # fmt: on
        ticket = following
