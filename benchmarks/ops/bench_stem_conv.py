"""The stem's convolution on the CPU in fp32, R50x1 and resnet26x0_5: python -m benchmarks.ops.bench_stem_conv

forward, and the gradient of the kernel. Floor: image, kernel and result once each.
Run it with glibc keeping freed memory (see benchmarks/RESULTS.md), or every provider pays for mapping its results anew.
"""

import argparse
from functools import partial

import torch

from benchmarks.harness import Case, measure, save, show
from bitfast.ops import stem_conv, use_impl
from bitfast.ops.stem_conv import reference

SHAPES = [(32, 64, 128), (8, 64, 224), (1, 64, 224), (64, 32, 64)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def weight_gradient(backward, dy, x, kernel):
    return backward(dy, x, kernel, [False, True])[-1]


def cases(batch: int, outputs: int, px: int) -> list[Case]:
    """torch's in both layouts and ours."""
    x, kernel = torch.randn(batch, 3, px, px), torch.randn(outputs, 3, 7, 7) / 12
    y = reference.forward(x, kernel)
    plain = torch.randn_like(y), x, kernel
    exact = [t.double() for t in plain]
    forward, weight = {}, {}
    for layout, memory_format in LAYOUTS.items():
        placed = [t.contiguous(memory_format=memory_format) for t in plain]
        forward[f"torch {layout}"] = partial(reference.forward, *placed[1:])
        weight[f"torch {layout}"] = partial(weight_gradient, reference.backward, *placed)
    forward["native"] = partial(stem_conv, *placed[1:])
    weight["native"] = partial(weight_gradient, torch.ops.bitfast.stem_conv_backward, *placed)
    name, moved = f"{outputs}x{px}x{px} N={batch}", x.nbytes + kernel.nbytes + y.nbytes
    of_exact, of_plain = (weight_gradient(reference.backward, *t) for t in (exact, plain))
    return [
        Case(f"{name} forward", forward, reference.forward(*exact[1:]), y, moved),
        Case(f"{name} weight gradient", weight, of_exact, of_plain, moved),
    ]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="per case")
    parser.add_argument("--name", default="stem_conv_cpu_zen4", help="of the file in benchmarks/results")
    options = parser.parse_args()
    rows = []
    with use_impl("stem_conv", "native"), use_impl("stem_conv_backward", "native"):
        for shape in SHAPES:
            torch.manual_seed(0)
            for case in cases(*shape):
                measured = measure(case, seconds=options.seconds)
                show(measured)
                rows += measured
    print(save(options.name, rows))


if __name__ == "__main__":
    main()
