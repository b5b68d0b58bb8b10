"""What bench_group_norm has more on a GPU: shapes, the Triton kernels' ways one by one, and CUDA kernels and apex."""

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec

from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.ops.static_cases import norms
from bitfast.numerics import GN_EPS, GN_GROUPS
from bitfast.ops import _dispatch
from bitfast.ops.group_norm import config, triton_impl

BATCH = {"R50x1": 128, "R152x4": 8}
WAYS = ("one_pass", "two_launches", "ticket")


def shapes(network: str) -> list[tuple[int, int, int, bool]]:
    """(channels, height or width, images, whether there is a residual) of the norms of a network."""
    return [(channels, size, BATCH[network], residual) for channels, size, residual in norms(network)]


def ways(x: Tensor, r: Tensor | None, w: Tensor, b: Tensor, dy: Tensor, ds: Tensor) -> dict[str, tuple[Callable, ...]]:
    """Forward and backward of each way that can take x, whatever the dispatch would choose."""
    samples, channels, height, width = x.shape
    found = {}
    for way in WAYS:
        tiles = [
            config.one_pass(name, samples, height * width, channels, GN_GROUPS) for name in ("forward", "backward")
        ]
        if way == "one_pass" and not all(tiles):
            continue
        found[f"ours {way}"] = getattr(triton_impl, f"forward_{way}"), getattr(triton_impl, f"backward_{way}")
    cuda = [_dispatch.implementation(op, "cuda") for op in ("group_norm", "group_norm_backward")]
    if not any(impl.supports(x) for impl in cuda):
        found["ours cuda"] = cuda[0].fn, cuda[1].fn
    return {name: _calls(*pair, x, r, w, b, dy, ds) for name, pair in found.items()}


def _calls(forward: Callable, backward: Callable, x, r, w, b, dy, ds) -> tuple[Callable, Callable]:
    of_x = partial(forward, x, r, w, b, GN_GROUPS, GN_EPS, "relu")
    _, s, mean, rstd = of_x()
    of_dy = partial(backward, dy, None if r is None else ds, s, w, b, mean, rstd, GN_GROUPS, "relu")
    return lambda: of_x()[0], lambda: of_dy()[0]


def apex(x: Tensor, r: Tensor | None, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Its GroupNorm has no ReLU."""
    s = x if r is None else x + r
    y = F.relu(functional_call(_apex_module(x.shape[1]), {"weight": w, "bias": b}, (s,)), inplace=True)
    return (y,) if r is None else (y, s)


def has_apex() -> bool:
    return bool(find_spec("apex")) and bool(find_spec("apex.contrib.group_norm"))


@cache
def _apex_module(channels: int):
    from apex.contrib.group_norm import GroupNorm

    return GroupNorm(GN_GROUPS, channels, GN_EPS, affine=True).cuda()
