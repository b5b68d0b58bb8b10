"""GroupNorm + ReLU forward on the CPU, the norms of R50x1 at 128 px: python -m benchmarks.ops.bench_group_norm

Floor: x is read once and y written once; with a residual two are read and two written.
Run it with glibc keeping freed memory (see benchmarks/RESULTS.md), or every provider pays for mapping its results anew.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, measure, save, show
from bitfast.numerics import GN_EPS, GN_GROUPS
from bitfast.ops import group_norm_act, use_impl
from bitfast.ops.group_norm import reference

SHAPES = [(64, 32), (256, 32), (128, 32), (512, 16), (256, 16), (1024, 8), (512, 8), (2048, 4)]


def case(channels: int, size: int, batch: int, dtype: torch.dtype, *, residual: bool = False) -> Case:
    """One norm: eager in both layouts, and every implementation of ours in channels_last."""
    x = torch.randn(batch, channels, size, size).to(dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    r, r_last = (torch.randn_like(x), torch.randn_like(last)) if residual else (None, None)
    if residual:
        r_last.copy_(r)
    w, b = torch.rand(channels) + 0.5, torch.randn(channels)

    def forward(x: Tensor, r: Tensor | None, w: Tensor, b: Tensor) -> Tensor:
        return reference.forward(x, r, w, b, GN_GROUPS, GN_EPS, "relu")[0]

    def eager(x: Tensor, r: Tensor | None, w: Tensor, b: Tensor) -> Tensor:
        return F.relu(F.group_norm(x if r is None else x + r, GN_GROUPS, w, b, GN_EPS), inplace=True)

    def ours(impl: str, x: Tensor, r: Tensor | None) -> Tensor:
        with use_impl("group_norm", impl):
            y = group_norm_act(x, w, b, residual=r)
            return y if r is None else y[0]

    providers: dict[str, Callable[[], Tensor]] = {
        "eager contiguous": partial(eager, x, r, w.to(dtype), b.to(dtype)),
        "eager channels_last": partial(eager, last, r_last, w.to(dtype), b.to(dtype)),
        "native channels_last": partial(ours, "native", last, r_last),
        "native contiguous": partial(ours, "native", x, r),
        "reference channels_last": partial(ours, "reference", last, r_last),
    }
    moved = x.nbytes * (4 if residual else 2)
    name = f"{channels}x{size}x{size} N={batch} {str(dtype)[6:]}{' +residual' if residual else ''}"
    return Case(
        name,
        providers,
        forward(x.double(), None if r is None else r.double(), w.double(), b.double()),
        forward(x, r, w, b),
        moved,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--name", default="group_norm_cpu_128px", help="of the file in benchmarks/results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with torch.no_grad():
        for residual in (False, True):
            for channels, size in SHAPES:
                torch.manual_seed(0)
                it = case(channels, size, options.batch, getattr(torch, options.dtype), residual=residual)
                measured = measure(it, seconds=options.seconds)
                show(measured)
                rows += measured
    print(save(options.name, rows))


if __name__ == "__main__":
    main()
