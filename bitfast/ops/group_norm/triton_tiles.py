"""What the Triton kernels of GroupNorm share: tiles of whole groups, sums over a group, the activation.

A tile is BS samples x BP pixels x BG groups of DP >= D channels each, DP a power of two; channels_last, so that its
lanes (group, channel) are neighbours in memory. Lanes past D, past the groups, pixels and samples are masked.
"""

import triton
import triton.language as tl


@triton.jit
def lanes(first_group, G: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, DP: tl.constexpr):
    """Channel and whether there is one, of BG * DP lanes."""
    lane = tl.arange(0, BG * DP)
    if D == DP:
        c = first_group * D + lane
    else:
        c = (first_group + lane // DP) * D + lane % DP
    if D == DP and G % BG == 0:
        exists = lane >= 0
    else:
        exists = (first_group + lane // DP < G) & (lane % DP < D)
    return c, exists


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
    # A comparison, and not maximum, which would turn NaN into 0.
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
