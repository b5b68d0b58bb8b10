"""What static_report compiles: the shapes that R50x1 at 224 px and R152x4 at 480 px give each operator, in bf16."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bitfast.folding import std_convs
from bitfast.model import ResNetV2
from bitfast.numerics import GN_EPS, GN_GROUPS, WS_EPS
from bitfast.ops.group_norm import triton_impl as group_norm_impl
from bitfast.ops.standardized_sgd import triton_impl as sgd_impl
from bitfast.ops.stem_pool import triton_impl as stem_pool_impl
from bitfast.ops.weight_std import triton_impl as weight_std_impl
from bitfast.variants import VARIANTS

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


def parameters(network: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights of convolutions in fp32, their standardized twins in bf16 and channels_last, and the other parameters."""
    name = next(name for name in VARIANTS if name.endswith(network.removeprefix("R")))
    with torch.device("meta"):
        model = ResNetV2(*VARIANTS[name])
    weights = [conv.weight.detach() for conv in std_convs(model).values()]
    of_convolutions = {conv.weight for conv in std_convs(model).values()}
    others = [p.detach() for p in model.parameters() if p not in of_convolutions]
    return weights, [image(*w.shape) for w in weights], others


def weight_std(network: str) -> Iterator[StaticCase]:
    weights, w_hats, _ = parameters(network)
    elements = sum(w.numel() for w in weights)

    def forward():
        return weight_std_impl.forward(weights, WS_EPS, torch.bfloat16)

    def backward():
        return weight_std_impl.backward(w_hats, weights, WS_EPS)

    shape = f"{len(weights)} weights"
    yield StaticCase("weight_std", shape, forward, 6 * elements)
    yield StaticCase("weight_std", shape, backward, 10 * elements)


def standardized_sgd(network: str) -> Iterator[StaticCase]:
    weights, w_hats, others = parameters(network)

    def step():
        own, gradients = weights + others, w_hats + others
        sgd_impl.step(own, gradients, own, w_hats, [WS_EPS] * len(w_hats), 0.1, 0.9, 1e-4)

    moved = 20 * sum(p.numel() for p in weights + others)
    yield StaticCase("standardized_sgd", f"{len(weights) + len(others)} parameters", step, moved)


def stem_pool(network: str) -> Iterator[StaticCase]:
    width, px, n = NETWORKS[network]
    x = image(n, 64 * width, px // 2, px // 2)
    y = image(n, 64 * width, px // 4, px // 4)
    index = torch.empty_like(y, dtype=torch.uint8)
    shape = "x".join(map(str, x.shape))

    def training():
        return stem_pool_impl.forward(x, True)

    def inference():
        return stem_pool_impl.forward(x, False)

    def backward():
        return stem_pool_impl.backward(y, index, *x.shape[2:], True)

    yield StaticCase("stem_pool", shape, training)
    yield StaticCase("stem_pool", shape, inference)
    yield StaticCase("stem_pool", shape, backward)


CASES = [group_norm, weight_std, standardized_sgd, stem_pool]
