"""GroupNorm + ReLU, forward and backward, the norms of R50x1, on a GPU also of R152x4 at 480 px:
python -m benchmarks.ops.bench_group_norm [--device cuda --dtype bfloat16]

Floor: forward reads x and writes y; with a residual two are read and two written. Backward reads x and dy and writes
dx; with a residual it reads the gradient of the sum too. The forward keeps what the backward needs, for every provider.
On a CPU run it with glibc keeping freed memory (see benchmarks/RESULTS.md), or every provider pays for mapping its
results anew. On a GPU "ours" is what the dispatch chooses, and every way of the kernels is a provider too.
It may be run shape by shape: with --name the rows that the file has of other shapes are kept, if of the same commit.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch._functorch.config
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, measure, save, show
from bitfast.numerics import GN_EPS, GN_GROUPS
from bitfast.ops import group_norm_act, use_impl
from bitfast.ops.group_norm import reference
from bitfast.runtime import pick_device

# Of R50x1 at 128 px, (channels, height or width); at 224 px images are 1.75 times as wide.
SHAPES = [(64, 32), (256, 32), (128, 32), (512, 16), (256, 16), (1024, 8), (512, 8), (2048, 4)]
BATCH = {128: 32, 224: 8}
OURS = {"cpu": "native", "cuda": "triton"}
NAMES = {f"{channels}x{size}": (channels, size) for channels, size in SHAPES}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def ours(x: Tensor, r: Tensor | None, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    y = group_norm_act(x, w, b, residual=r)
    return (y,) if r is None else y


def eager(x: Tensor, r: Tensor | None, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    s = x if r is None else x + r
    y = F.relu(F.group_norm(s, GN_GROUPS, w, b, GN_EPS), inplace=True)
    return (y,) if r is None else (y, s)


def defined(x: Tensor, r: Tensor | None, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    y, s, _, _ = reference.forward(x, r, w, b, GN_GROUPS, GN_EPS, "relu")
    return (y,) if r is None else (y, s)


def cases(
    channels: int,
    size: int,
    batch: int,
    dtype: torch.dtype,
    residual: bool,
    providers: list[str],
    device: str = "cpu",
) -> Iterator[Case]:
    """Forward and backward of one norm."""
    images = 4 if residual else 2
    x, dy, r, ds = (torch.randn(batch, channels, size, size, device=device).to(dtype) for _ in range(4))
    w, b = (t.to(device, dtype).float() for t in (torch.rand(channels) + 0.5, torch.randn(channels)))
    # No gradient where the ReLU's mask is a matter of rounding.
    s = x.double() + r.double() if residual else x.double()
    z = reference.forward(s, None, w.double(), b.double(), GN_GROUPS, GN_EPS, "none")[0]
    dy[z.abs() < torch.finfo(dtype).eps ** 0.5] = 0
    tangents = (dy, ds) if residual else (dy,)

    def calls(f: Callable, layout: str, inputs: torch.dtype, parameters: torch.dtype) -> tuple[Callable, Callable]:
        """The forward, and a backward of its own."""

        def placed(t: Tensor, dtype: torch.dtype) -> Tensor:
            return t.detach().to(dtype, memory_format=LAYOUTS[layout], copy=True)

        leaves = [placed(t, inputs).requires_grad_() for t in ((x, r) if residual else (x,))]
        leaves += [t.detach().to(parameters, copy=True).requires_grad_() for t in (w, b)]
        arguments = leaves if residual else [leaves[0], None, *leaves[1:]]
        results, gradients = f(*arguments), tuple(placed(t, inputs) for t in tangents)
        backward = partial(torch.autograd.grad, results, leaves, gradients, retain_graph=True)
        return (lambda: f(*arguments)[0].detach()), (lambda: backward()[0])

    compiled = torch.compile(eager, dynamic=False)
    of = {
        f"{name} {layout}": calls(f, layout, dtype, torch.float32 if f is ours else dtype)
        for name, f in (("eager", eager), ("compile", compiled), ("ours", ours))
        for layout in LAYOUTS
        if name in providers and (f is not ours or layout == "channels_last" or device == "cpu")
    }
    if device == "cuda":
        from benchmarks.ops import group_norm_cuda

        last = [t.contiguous(memory_format=LAYOUTS["channels_last"]) for t in (x, r, dy, ds)]
        of |= group_norm_cuda.ways(last[0], last[1] if residual else None, w, b, *last[2:])
        if group_norm_cuda.has_apex():
            of["apex channels_last"] = calls(group_norm_cuda.apex, "channels_last", dtype, dtype)
    truth, baseline = (
        calls(defined, "contiguous", torch.float64, torch.float64),
        calls(defined, "contiguous", dtype, torch.float32),
    )
    name = f"{channels}x{size}x{size} N={batch} {str(dtype)[6:]}{' +residual' if residual else ''}"
    for i, (way, passes) in enumerate((("forward", images), ("backward", images // 2 + 2))):
        yield Case(
            f"{name} {way}",
            {provider: pair[i] for provider, pair in of.items()},
            truth[i](),
            baseline[i](),
            x.nbytes * passes,
        )


def norms(device: str, options: argparse.Namespace) -> Iterator[tuple[int, int, int, bool]]:
    """(channels, height or width, images, whether there is a residual)."""
    if device == "cuda":
        from benchmarks.ops import group_norm_cuda

        for network in options.networks:
            yield from group_norm_cuda.shapes(network)
        return
    for residual in (False, True):
        for channels, size in map(NAMES.get, options.shapes):
            yield channels, size * options.px // 128, BATCH[options.px], residual


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--px", type=int, choices=list(BATCH), default=128, help="on a CPU")
    parser.add_argument("--shapes", nargs="+", choices=list(NAMES), default=list(NAMES), help="on a CPU, as at 128 px")
    networks = ["R50x1", "R152x4"]
    parser.add_argument("--networks", nargs="+", choices=networks, default=networks, help="on a GPU")
    parser.add_argument("--seconds", type=float, default=2.0, help="per case")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--providers", nargs="+", choices=["eager", "compile", "ours"], default=["eager", "compile", "ours"]
    )
    parser.add_argument("--name", help="of the file in benchmarks/results; without it no file is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    device = pick_device(options.device).type
    torch.set_num_threads(options.threads)
    torch._functorch.config.donated_buffer = False  # a backward is run many times
    rows = []
    with use_impl("group_norm", OURS[device]), use_impl("group_norm_backward", OURS[device]):
        for channels, size, batch, residual in norms(device, options):
            torch.manual_seed(0)
            dtype = getattr(torch, options.dtype)
            for case in cases(channels, size, batch, dtype, residual, options.providers, device):
                measured = measure(case, seconds=options.seconds)
                show(measured)
                rows += measured
            torch.compiler.reset()
    if options.name:
        print(save(options.name, rows, keep=True))


if __name__ == "__main__":
    main()
