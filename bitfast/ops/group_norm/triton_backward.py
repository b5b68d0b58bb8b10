"""Backward GroupNorm of large images in two steps: sums of chunks of pixels, then the gradient of chunks.

Chunks as in triton_forward. `dws` and `dbs` (N * chunks, C) are the sums of dz * xhat and of dz over each chunk; `sums`
and `sums_xhat` (N, chunks * pieces, G) those of weight * dz and weight * dz * xhat.
"""

import triton
import triton.language as tl

from bitfast.ops.group_norm.triton_ticket import finish, place, place_of_ticket, wait
from bitfast.ops.group_norm.triton_tiles import activate_backward, group_sum, lanes, offsets, per_lane, pieces, tiles


@triton.jit
def _constants(
    weight,
    bias,
    mean,
    rstd,
    n,
    group,
    c,
    lane,
    G: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
):
    """weight, bias, mean and rstd of lanes, each (1, BG * DP)."""
    g = group + tl.arange(0, BG)
    w = tl.load(weight + c, lane, 0)[None, :]
    b = tl.load(bias + c, lane, 0)[None, :]
    m = tl.load(mean + n * G + g, g < G, 0)[None, :]
    r = tl.load(rstd + n * G + g, g < G, 0)[None, :]
    return w, b, per_lane(m, 1, BG, DP), per_lane(r, 1, BG, DP)


@triton.jit
def _read(dy, x, at, exists, b, m, scale, ACT: tl.constexpr):
    """dz and x - mean; dz is 0 outside."""
    centred = tl.load(x + at, exists, 0).to(tl.float32) - m
    dz = tl.load(dy + at, exists, 0).to(tl.float32)
    return activate_backward(dz, centred * scale + b, ACT), centred


@triton.jit
def sum_gradients(
    dy,
    x,
    weight,
    bias,
    mean,
    rstd,
    dws,
    dbs,
    sums,
    sums_xhat,
    n,
    tile,
    chunk,
    pixels,
    chunk_pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    ACT: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
):
    PIECES: tl.constexpr = pieces(G, C, DP)
    group, c, lane, _ = lanes(tile, G, C, BG, DP)
    w, b, m, r = _constants(weight, bias, mean, rstd, n, group, c, lane, G, BG, DP)
    first = (n.to(tl.int64) * pixels + chunk * chunk_pixels) * C
    inside = tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels)
    of_dz = tl.zeros((BP, BG * DP), tl.float32)
    of_dz_xhat = tl.zeros((BP, BG * DP), tl.float32)
    for start in range(0, inside, BP):
        at, exists = offsets(start, inside, c, lane, C, BP)
        dz, centred = _read(dy, x, first + at, exists, b, m, r * w, ACT)
        of_dz += dz
        of_dz_xhat += dz * centred
    sum_dz = tl.sum(of_dz, 0)[None, :]
    sum_dz_xhat = tl.sum(of_dz_xhat, 0)[None, :] * r
    row = n.to(tl.int64) * chunks + chunk
    tl.store(dbs + row * C + c[None, :], sum_dz, lane[None, :])
    tl.store(dws + row * C + c[None, :], sum_dz_xhat, lane[None, :])
    g = group + tl.arange(0, BG)
    at = (row * PIECES + tile % PIECES) * G + g[None, :]
    tl.store(sums + at, group_sum(sum_dz * w, 1, BG, DP), (g < G)[None, :])
    tl.store(sums_xhat + at, group_sum(sum_dz_xhat * w, 1, BG, DP), (g < G)[None, :])


@triton.jit
def _mean_of_chunks(
    sums,
    n,
    group,
    pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
    PARTS: tl.constexpr,
):
    """(1, BG * DP), over the whole group of each lane."""
    part, g = tl.arange(0, PARTS), group + tl.arange(0, BG)
    parts = chunks * pieces(G, C, DP)
    at = (n.to(tl.int64) * parts + part[:, None]) * G + g[None, :]
    # Past the first cache, which may hold what was there before another multiprocessor wrote.
    v = tl.load(sums + at, (part < parts)[:, None] & (g < G)[None, :], 0, cache_modifier=".cg")
    return per_lane(tl.sum(v, 0)[None, :] / (pixels * (C // G)).to(tl.float32), 1, BG, DP)


@triton.jit
def differentiate(
    dy,
    ds,
    x,
    weight,
    bias,
    mean,
    rstd,
    dx,
    sums,
    sums_xhat,
    n,
    tile,
    chunk,
    pixels,
    chunk_pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    ACT: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
    PARTS: tl.constexpr,
):
    group, c, lane, _ = lanes(tile, G, C, BG, DP)
    w, b, m, r = _constants(weight, bias, mean, rstd, n, group, c, lane, G, BG, DP)
    of_one = r * _mean_of_chunks(sums, n, group, pixels, chunks, G, C, BG, DP, PARTS)
    of_centred = r * r * _mean_of_chunks(sums_xhat, n, group, pixels, chunks, G, C, BG, DP, PARTS)
    first = (n.to(tl.int64) * pixels + chunk * chunk_pixels) * C
    inside = tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels)
    for start in range(0, inside, BP):
        at, exists = offsets(start, inside, c, lane, C, BP)
        dz, centred = _read(dy, x, first + at, exists, b, m, r * w, ACT)
        d = dz * (r * w) - of_one - centred * of_centred
        if ds is not None:
            d += tl.load(ds + first + at, exists, 0).to(tl.float32)
        tl.store(dx + first + at, d.to(dx.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["pixels", "chunk_pixels", "chunks"])
def sum_gradients_launch(
    dy,
    x,
    weight,
    bias,
    mean,
    rstd,
    dws,
    dbs,
    sums,
    sums_xhat,
    pixels,
    chunk_pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    ACT: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
):
    n, tile, chunk = place(tl.program_id(0), chunks, tiles(G, C, BG, DP))
    # fmt: off
    sum_gradients(
        dy, x, weight, bias, mean, rstd, dws, dbs, sums, sums_xhat, n, tile, chunk, pixels, chunk_pixels, chunks,
        G, C, ACT, BP, BG, DP,
    )
    # fmt: on


@triton.jit(do_not_specialize=["pixels", "chunk_pixels", "chunks"])
def differentiate_launch(
    dy,
    ds,
    x,
    weight,
    bias,
    mean,
    rstd,
    dx,
    sums,
    sums_xhat,
    pixels,
    chunk_pixels,
    chunks,
    G: tl.constexpr,
    C: tl.constexpr,
    ACT: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
    PARTS: tl.constexpr,
):
    n, tile, chunk = place(tl.program_id(0), chunks, tiles(G, C, BG, DP))
    # fmt: off
    differentiate(
        dy, ds, x, weight, bias, mean, rstd, dx, sums, sums_xhat, n, tile, chunk, pixels, chunk_pixels, chunks,
        G, C, ACT, BP, BG, DP, PARTS,
    )
    # fmt: on


@triton.jit(do_not_specialize=["pixels", "chunk_pixels", "chunks", "samples", "wave", "items"])
def ticket_launch(
    dy,
    ds,
    x,
    weight,
    bias,
    mean,
    rstd,
    dx,
    dws,
    dbs,
    sums,
    sums_xhat,
    counters,
    pixels,
    chunk_pixels,
    chunks,
    samples,
    wave,
    items,
    G: tl.constexpr,
    C: tl.constexpr,
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
                sum_gradients(
                    dy, x, weight, bias, mean, rstd, dws, dbs, sums, sums_xhat, n, tile, chunk, pixels, chunk_pixels,
                    chunks, G, C, ACT, BP, BG, DP,
                )
                finish(counters, n)
            else:
                wait(counters, n, chunks * TILES)
                differentiate(
                    dy, ds, x, weight, bias, mean, rstd, dx, sums, sums_xhat, n, tile, chunk, pixels, chunk_pixels,
                    chunks, G, C, ACT, BP, BG, DP, PARTS,
                )
            # fmt: on
        ticket = following
