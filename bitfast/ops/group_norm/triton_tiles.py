"""What the Triton kernels of GroupNorm share: tiles of channels, sums over a group, the activation.

A tile is some samples and pixels of BG groups x DP lanes, DP a power of two and at least D, the channels of a group;
where D is more than DP, which is where BG is 1, a group is several tiles. channels_last, so that lanes are neighbours
in memory. Lanes past D and past the groups are masked. Samples count for BS = 1 wherever a tile has no axis for them.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def pieces(G, C, DP):
    """Tiles that a group is cut into."""
    return -(-C // G // DP)


@triton.constexpr_function
def tiles(G, C, BG, DP):
    """Tiles that the channels are cut into."""
    return -(-G // BG) * pieces(G, C, DP)


@triton.jit
def lanes(tile, G: tl.constexpr, C: tl.constexpr, BG: tl.constexpr, DP: tl.constexpr):
    """First group, channels (BG * DP), which of these exist, and how many of a group there are."""
    D: tl.constexpr = C // G
    PIECES: tl.constexpr = pieces(G, C, DP)
    lane = tl.arange(0, BG * DP)
    group = tile // PIECES * BG
    channels = D
    if PIECES > 1:
        d = tile % PIECES * DP + lane
        c = group * D + d
        exists = d < D
        channels = tl.minimum(DP, D - tile % PIECES * DP)
    elif D == DP:
        c = group * D + lane
        exists = c < C
    else:
        c = (group + lane // DP) * D + lane % DP
        exists = (c < C) & (lane % DP < D)
    return group, c, exists, channels


@triton.jit
def offsets(start, inside, c, lane, C: tl.constexpr, BP: tl.constexpr):
    """Of the channels `c` of BP pixels from `start` on (BP, lanes), and which are elements of `inside` pixels."""
    p = start + tl.arange(0, BP)
    return p[:, None] * C + c[None, :], (p < inside)[:, None] & lane[None, :]


@triton.jit
def group_sum(v, BS: tl.constexpr, BG: tl.constexpr, DP: tl.constexpr):
    """(BS, BG * DP) -> (BS, BG)."""
    return tl.sum(tl.reshape(v, (BS, BG, DP)), 2)


@triton.jit
def per_lane(v, BS: tl.constexpr, BG: tl.constexpr, DP: tl.constexpr):
    """(BS, BG) -> (BS, BG * DP)."""
    return tl.reshape(tl.broadcast_to(v[:, :, None], (BS, BG, DP)), (BS, BG * DP))


@triton.jit
def activate(z, ACT: tl.constexpr):
    # Comparisons, and not maximum, which would turn NaN into 0.
    if ACT == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACT == "silu":
        z = z * tl.sigmoid(z)
    return z


@triton.jit
def activate_backward(dy, z, ACT: tl.constexpr):
    if ACT == "relu":
        dy = tl.where(z <= 0, 0.0, dy)
    elif ACT == "silu":
        sigmoid = tl.sigmoid(z)
        dy = dy * sigmoid * (1 + z * (1 - sigmoid))
    return dy
