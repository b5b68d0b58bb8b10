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


def norms(network: str) -> list[tuple[int, int]]:
    """(channels, height or width) of the network's GroupNorms, each once."""
    width, px, _ = NETWORKS[network]
    found, inputs, size = [], 64 * width, px // 4
    for stage in range(4):
        mid, outputs = 64 * width * 2**stage, 256 * width * 2**stage
        found += [(inputs, size), (mid, size)]
        size = size if stage == 0 else -(-size // 2)
        found += [(mid, size), (outputs, size)]
        inputs = outputs
    return list(dict.fromkeys(found))


def group_norm(network: str) -> Iterator[StaticCase]:
    n = NETWORKS[network][2]
    for c, size in [(c, size) for c, size in norms(network) if size < 16 and c <= 2048]:
        x, w = image(n, c, size, size), torch.empty(c, device="meta")

        def forward(x=x, w=w):
            return group_norm_impl.forward(x, None, w, w, GN_GROUPS, GN_EPS, "relu")

        yield StaticCase("group_norm", f"{n}x{c}x{size}x{size}", forward)


CASES = [group_norm]
