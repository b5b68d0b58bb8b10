"""What static_report compiles: the shapes that R50x1 at 224 px and R152x4 at 480 px give each operator, in bf16."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bitfast.numerics import GN_EPS, GN_GROUPS
from bitfast.ops.group_norm import triton_impl as group_norm_impl

NETWORKS = {"R50x1": (1, 224, 256), "R152x4": (4, 480, 32)}  # width, px, images in a batch


class StaticCase(NamedTuple):
    """`call` launches kernels for tensors on the meta device. `moved_bytes`: the least that they can move together;
    by default every tensor argument of a kernel once. `representative`: whether the default tests compile it."""

    op: str
    shape: str
    call: Callable[[], object]
    moved_bytes: int | None = None
    representative: bool = True


def image(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


def norms(network: str) -> list[tuple[int, int, bool]]:
    """(channels, height or width, whether there is a residual) of the network's GroupNorms, each once."""
    width, px, _ = NETWORKS[network]
    found, inputs, size = [], 64 * width, px // 4
    for stage in range(4):
        mid, outputs = 64 * width * 2**stage, 256 * width * 2**stage
        found += [(inputs, size, stage > 0), (mid, size, False)]
        size = size if stage == 0 else -(-size // 2)
        found += [(mid, size, False), (outputs, size, True)]
        inputs = outputs
    return list(dict.fromkeys(found))


def group_norm(network: str) -> Iterator[StaticCase]:
    """Of a batch in training, and of one image. The default tests compile the first and the last norm."""
    ends = norms(network)[0], norms(network)[-1]
    for n in (NETWORKS[network][2], 1):
        for c, size, residual in norms(network):
            x, w = image(n, c, size, size), torch.empty(c, device="meta")
            r = image(n, c, size, size) if residual else None
            statistics = torch.empty(n, GN_GROUPS, device="meta")

            def forward(x=x, r=r, w=w):
                return group_norm_impl.forward(x, r, w, w, GN_GROUPS, GN_EPS, "relu")

            def backward(x=x, r=r, w=w, statistics=statistics):
                dy = torch.empty_like(x)
                return group_norm_impl.backward(dy, r, x, w, w, statistics, statistics, GN_GROUPS, "relu")

            chosen = (c, size, residual) in ends and (n > 1 or network == "R50x1")
            shape = f"{n}x{c}x{size}x{size}{' +residual' if residual else ''}"
            yield StaticCase("group_norm", shape, forward, representative=chosen)
            yield StaticCase("group_norm_backward", shape, backward, representative=chosen)


CASES = [group_norm]
