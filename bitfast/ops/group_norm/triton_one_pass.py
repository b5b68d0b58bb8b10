"""GroupNorm where one sample's groups stay on chip: every image is read once.

A program has BS samples x all pixels x BG groups in registers; BS > 1 where images are tiny.
"""

import triton
import triton.language as tl

from bitfast.ops.group_norm.triton_tiles import activate, group_sum, lanes, per_lane


@triton.jit
def _tile(
    pixels,
    samples,
    C: tl.constexpr,
    G: tl.constexpr,
    BS: tl.constexpr,
    BP: tl.constexpr,
    BG: tl.constexpr,
    DP: tl.constexpr,
):
    """This program's offsets of elements (BS, BP, BG * DP) and which exist, then those of lanes and statistics."""
    D: tl.constexpr = C // G
    TILES: tl.constexpr = (G + BG - 1) // BG
    sample = tl.program_id(0) // TILES * BS
    group = tl.program_id(0) % TILES * BG
    n, p, g = tl.arange(0, BS), tl.arange(0, BP), group + tl.arange(0, BG)
    c, lane = lanes(group, G, D, BG, DP)
    inside = n < samples - sample
    exists = inside[:, None, None] & (p < pixels)[None, :, None] & lane[None, None, :]
    offsets = (n[:, None, None] * pixels + p[None, :, None]) * C + c[None, None, :]
    first = sample.to(tl.int64) * pixels * C
    return (
        first,
        offsets,
        exists,
        sample,
        c,
        lane,
        (sample + n)[:, None] * G + g[None, :],
        inside[:, None] & (g < G)[None, :],
    )


@triton.jit(do_not_specialize=["samples", "pixels"])
def forward(
    x, residual, weight, bias, y, s, mean, rstd, samples, pixels,
    C: tl.constexpr, G: tl.constexpr, EPS: tl.constexpr, ACT: tl.constexpr,
    BS: tl.constexpr, BP: tl.constexpr, BG: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    first, offsets, exists, sample, c, lane, of_groups, is_group = _tile(pixels, samples, C, G, BS, BP, BG, DP)
    v = tl.load(x + first + offsets, exists, 0).to(tl.float32)
    if residual is not None:
        v += tl.load(residual + first + offsets, exists, 0).to(tl.float32)
        stored = v.to(s.dtype.element_ty)
        tl.store(s + first + offsets, stored, exists)
        v = stored.to(tl.float32)
    count = (pixels * (C // G)).to(tl.float32)
    # A mean far from 0 is rounded; what centring by it leaves over is taken off too.
    m = group_sum(tl.sum(v, 1), BS, BG, DP) / count
    centred = tl.where(exists, v - per_lane(m, BS, BG, DP)[:, None, :], 0)
    left = group_sum(tl.sum(centred, 1), BS, BG, DP) / count
    var = group_sum(tl.sum(centred * centred, 1), BS, BG, DP) / count - left * left
    centred -= per_lane(left, BS, BG, DP)[:, None, :]
    m += left
    r = 1 / tl.sqrt(var + EPS)
    w = tl.load(weight + c, lane, 0)
    b = tl.load(bias + c, lane, 0)
    z = centred * (per_lane(r, BS, BG, DP) * w[None, :])[:, None, :] + b[None, None, :]
    tl.store(y + first + offsets, activate(z, ACT).to(y.dtype.element_ty), exists)
    tl.store(mean + of_groups, m, is_group)
    tl.store(rstd + of_groups, r, is_group)
