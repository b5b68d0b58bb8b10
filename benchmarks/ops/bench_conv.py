"""The convolutions of R50x1 on the CPU in fp32, by layer and direction: python -m benchmarks.ops.bench_conv

norm     GroupNorm + ReLU, then the convolution: group_norm_act and torch's, or one operator
forward  the convolution alone; with norm and forward, a batch of 1 uses filters made before, as inference does
input    the gradient of the convolution's input
weight   the gradient of the kernel; torch is given the normalized image, ours makes it again

Floor: image, kernel and result once each.
Run it with glibc keeping freed memory (see benchmarks/RESULTS.md), or every provider pays for mapping its results anew.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import Case, Row, measure, save, show
from bitfast.folding import std_convs
from bitfast.model import ResNetV2
from bitfast.numerics import GN_EPS, GN_GROUPS
from bitfast.ops import group_norm_act, use_impl
from bitfast.ops._library import native_missing
from bitfast.ops.group_norm import reference
from bitfast.ops.norm_conv.config import algorithm
from bitfast.ops.norm_conv.reference import convolve, convolve_backward

DIRECTIONS = ["norm", "forward", "input", "weight"]
LAYOUTS = {"torch contiguous": torch.contiguous_format, "torch channels_last": torch.channels_last}
OURS = {"gemm": "implicit GEMM", "winograd": "Winograd"}
NATIVE = torch.ops.bitfast_native


class Layer(NamedTuple):
    inputs: int
    outputs: int
    kernel: int
    stride: int
    size: int

    def __str__(self) -> str:
        return f"{self.inputs}->{self.outputs} {self.kernel}x{self.kernel}/{self.stride} {self.size}px"


def layers(px: int) -> Counter[Layer]:
    """The different convolutions behind norms, and how often the network has each."""
    seen = []

    def note(conv, inputs, output):
        seen.append(Layer(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], inputs[0].shape[2]))

    with torch.device("meta"):
        twin = ResNetV2((3, 4, 6, 3), 1)
        for conv in std_convs(twin).values():
            conv.register_forward_hook(note)
        twin(torch.empty(1, 3, px, px))
    return Counter(seen[1:])


class Tensors(NamedTuple):
    """A convolution's input before and after the norm, its parameters, kernel and the gradient of its result."""

    x: Tensor
    a: Tensor
    w: Tensor
    b: Tensor
    k: Tensor
    dy: Tensor

    def to(self, *args, **kwargs) -> "Tensors":
        return Tensors(*(t.to(*args, **(kwargs if t.dim() == 4 else {})) for t in self))


def by_torch(direction: str, t: Tensors, stride: int, norm: Callable) -> Callable[[], Tensor]:
    if direction == "norm":
        return lambda: convolve(norm(t.x, t.w, t.b), t.k, stride)
    if direction == "forward":
        return lambda: convolve(t.a, t.k, stride)
    of_input = direction == "input"
    return lambda: convolve_backward(t.dy, t.a, t.k, stride, (of_input, not of_input))[not of_input]


def defined_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return reference.forward(x, None, w, b, GN_GROUPS, GN_EPS, "relu")[0]


def by_us(name: str, direction: str, t: Tensors, stride: int, keep_filters: bool) -> Callable[[], Tensor]:
    """As ops/norm_conv/native.py calls the algorithm."""
    winograd = name == "winograd"
    statistics = NATIVE.group_norm_statistics(t.x, GN_GROUPS, GN_EPS)
    make = partial(NATIVE.winograd_filter, t.k, False) if winograd else partial(NATIVE.gemm_filter, t.k)
    kept = make() if keep_filters else None

    def forward(x: Tensor, rows: Tensor | None) -> Tensor:
        filtered = make() if kept is None else kept
        return NATIVE.winograd_conv(x, rows, filtered) if winograd else NATIVE.gemm_conv(x, rows, filtered, stride)

    def norm() -> Tensor:
        return forward(t.x, NATIVE.norm_rows(*NATIVE.group_norm_statistics(t.x, GN_GROUPS, GN_EPS), t.w, t.b))

    def of_input() -> Tensor:
        if winograd:
            return NATIVE.winograd_conv(t.dy, None, NATIVE.winograd_filter(t.k, True))
        return NATIVE.gemm_input_gradient(t.dy, t.k, *t.x.shape[2:], stride)

    def of_weight() -> Tensor:
        rows = NATIVE.norm_rows(*statistics, t.w, t.b)
        if winograd:
            return NATIVE.winograd_weight_gradient(t.x, rows, t.dy)
        return NATIVE.gemm_weight_gradient(t.x, rows, t.dy, t.k.shape[2], stride)

    return {"norm": norm, "forward": lambda: forward(t.a, None), "input": of_input, "weight": of_weight}[direction]


def cases(layer: Layer, batch: int, directions: list[str]) -> Iterator[Case]:
    """Every direction of one convolution, torch's in both layouts and ours."""
    x = torch.randn(batch, layer.inputs, layer.size, layer.size)
    w, b = torch.rand(layer.inputs) + 0.5, torch.randn(layer.inputs) * 0.5
    k = torch.randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel) / layer.inputs**0.5
    a = defined_norm(x, w, b)
    y = convolve(a, k, layer.stride)
    plain = Tensors(x, a, w, b, k, torch.randn_like(y))
    exact = plain.to(torch.float64)
    exact = exact._replace(a=defined_norm(exact.x, exact.w, exact.b))
    placed = {name: plain.to(memory_format=layout) for name, layout in LAYOUTS.items()}
    names = ["gemm", "winograd"] if layer.kernel == 3 and layer.stride == 1 else ["gemm"]
    for direction in directions:
        of = {name: by_torch(direction, t, layer.stride, group_norm_act) for name, t in placed.items()}
        of |= {
            OURS[name]: by_us(name, direction, placed["torch channels_last"], layer.stride, batch == 1)
            for name in names
        }
        given = exact._replace(a=a.double()) if direction == "forward" else exact
        yield Case(
            f"{layer} N={batch} {direction}",
            of,
            by_torch(direction, given, layer.stride, defined_norm)(),
            by_torch(direction, plain, layer.stride, defined_norm)(),
            x.nbytes + k.nbytes + y.nbytes,
        )


class Sums:
    """The network's time in one direction: of each provider, as config.py chooses, and of the fastest per layer."""

    def __init__(self) -> None:
        self.ms: Counter[str] = Counter()

    def add(self, rows: list[Row], chosen: str, count: int) -> None:
        of = {row.provider: row.median_ms for row in rows if row.provider != "copy"}
        fastest = min(of, key=of.__getitem__)
        others = min(ms for name, ms in of.items() if name != OURS[chosen])
        ahead = others / of[OURS[chosen]]
        print(
            f"{rows[0].case:34} x{count}  fastest {fastest}; chosen {OURS[chosen]}, the best other takes {ahead:.2f}x"
        )
        for name in (*LAYOUTS, "implicit GEMM"):
            self.ms[name] += count * of[name]
        self.ms["chosen"] += count * of[OURS[chosen]]
        self.ms["fastest"] += count * of[fastest]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    parser.add_argument("--seconds", type=float, default=0.5, help="per layer and direction")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", help="of the file in benchmarks/results; without it no file is written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if native_missing():
        parser.error(native_missing())
    rows, sums = [], {direction: Sums() for direction in options.directions}
    with use_impl("group_norm", "native"):
        for layer, count in layers(options.px).items():
            torch.manual_seed(0)
            like = torch.empty(options.batch, layer.inputs, layer.size, layer.size, device="meta")
            kernel = torch.empty(layer.outputs, layer.inputs, layer.kernel, layer.kernel, device="meta")
            for case in cases(layer, options.batch, options.directions):
                measured = measure(case, seconds=options.seconds)
                show(measured)
                sums[case.name.split()[-1]].add(measured, algorithm(like, kernel, layer.stride), count)
                rows += measured
    for direction, total in sums.items():
        print(f"{direction:8}", ", ".join(f"{name} {ms:.1f} ms" for name, ms in total.ms.items()))
    if options.name:
        print(save(options.name, rows))


if __name__ == "__main__":
    main()
