"""GroupNorm where a sample's groups fit a program's registers: every image is read once.

A program has BS samples x all pixels, at most BP, x BG groups of DP lanes (see triton_tiles); BS > 1 for tiny images.
"""

import triton
import triton.language as tl

from bitfast.ops.group_norm.triton_tiles import activate, activate_backward, group_sum, lanes, per_lane, tiles


@triton.jit
def _tile(
    samples,
    pixels,
    G: tl.constexpr,
    C: tl.constexpr,
    BS: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
):
    """Elements of this program: offset of the first, offsets from there (BS, BP, BG * DP) and which exist; lanes:
    channels and which exist; statistics: offsets (BS, BG) and which exist."""
    block = tl.program_id(0) // tiles(G, C, BG, DP)
    group, c, lane, _ = lanes(tl.program_id(0) % tiles(G, C, BG, DP), G, C, BG, DP)
    n, p, g = tl.arange(0, BS), tl.arange(0, BP), group + tl.arange(0, BG)
    inside = block * BS + n < samples
    first = (block * BS).to(tl.int64) * pixels * C
    offsets = (n[:, None, None] * pixels + p[None, :, None]) * C + c[None, None, :]
    exists = inside[:, None, None] & (p < pixels)[None, :, None] & lane[None, None, :]
    of_groups = (block * BS + n)[:, None] * G + g[None, :]
    return first, offsets, exists, c, lane, of_groups, inside[:, None] & (g < G)[None, :]


@triton.jit(do_not_specialize=["samples", "pixels"])
def forward(
    x,
    residual,
    weight,
    bias,
    y,
    s,
    mean,
    rstd,
    samples,
    pixels,
    G: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    ACT: tl.constexpr,
    BS: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
):
    first, offsets, exists, c, lane, of_groups, is_group = _tile(samples, pixels, G, C, BS, BP, BG, DP)
    v = tl.load(x + first + offsets, exists, 0).to(tl.float32)
    if residual is not None:
        v += tl.load(residual + first + offsets, exists, 0).to(tl.float32)
        stored = v.to(s.dtype.element_ty)
        tl.store(s + first + offsets, stored, exists)
        v = stored.to(tl.float32)
    count = (pixels * (C // G)).to(tl.float32)
    # A mean far from 0 is rounded; what centring by it leaves over is taken off too.
    m = group_sum(tl.sum(v, 1), BS, BG, DP) / count
    centred = tl.where(exists, v - per_lane(m, BS, BG, DP)[:, None, :], 0.0)
    left = group_sum(tl.sum(centred, 1), BS, BG, DP) / count
    var = group_sum(tl.sum(centred * centred, 1), BS, BG, DP) / count - left * left
    r = 1 / tl.sqrt(var + EPS)
    centred -= per_lane(left, BS, BG, DP)[:, None, :]
    w = tl.load(weight + c, lane, 0)
    b = tl.load(bias + c, lane, 0)
    z = centred * (per_lane(r, BS, BG, DP) * w[None, :])[:, None, :] + b[None, None, :]
    tl.store(y + first + offsets, activate(z, ACT).to(y.dtype.element_ty), exists)
    tl.store(mean + of_groups, m + left, is_group)
    tl.store(rstd + of_groups, r, is_group)


@triton.jit(do_not_specialize=["samples", "pixels"])
def backward(
    dy,
    ds,
    x,
    weight,
    bias,
    mean,
    rstd,
    dx,
    dw,
    db,
    samples,
    pixels,
    G: tl.constexpr,
    C: tl.constexpr,
    ACT: tl.constexpr,
    BS: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
):
    """dx, and one row of dw and db (blocks, C) for the samples of this program."""
    first, offsets, exists, c, lane, of_groups, is_group = _tile(samples, pixels, G, C, BS, BP, BG, DP)
    m = per_lane(tl.load(mean + of_groups, is_group, 0), BS, BG, DP)
    r = per_lane(tl.load(rstd + of_groups, is_group, 0), BS, BG, DP)
    w = tl.load(weight + c, lane, 0)[None, :]
    b = tl.load(bias + c, lane, 0)[None, None, :]
    v = tl.load(x + first + offsets, exists, 0).to(tl.float32)
    dz = tl.load(dy + first + offsets, exists, 0).to(tl.float32)
    centred = v - m[:, None, :]
    dz = activate_backward(dz, centred * (r * w)[:, None, :] + b, ACT)
    sum_dz = tl.sum(dz, 1)
    sum_dz_xhat = tl.sum(dz * centred, 1) * r
    block = tl.program_id(0) // tiles(G, C, BG, DP)
    tl.store(db + block.to(tl.int64) * C + c, tl.sum(sum_dz, 0), lane)
    tl.store(dw + block.to(tl.int64) * C + c, tl.sum(sum_dz_xhat, 0), lane)
    count = (pixels * (C // G)).to(tl.float32)
    mean_dz = per_lane(group_sum(sum_dz * w, BS, BG, DP) / count, BS, BG, DP)
    mean_dz_xhat = per_lane(group_sum(sum_dz_xhat * w, BS, BG, DP) / count, BS, BG, DP)
    d = dz * (r * w)[:, None, :] - (r * mean_dz)[:, None, :] - centred * (r * r * mean_dz_xhat)[:, None, :]
    if ds is not None:
        d += tl.load(ds + first + offsets, exists, 0).to(tl.float32)
    tl.store(dx + first + offsets, d.to(dx.dtype.element_ty), exists)
