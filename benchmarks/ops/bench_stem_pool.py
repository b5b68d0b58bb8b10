"""The stem's max-pool, R50x1 at 128 and 224 px, on a GPU also R152x4 at 480 px:
python -m benchmarks.ops.bench_stem_pool [--device cuda --dtype bfloat16]

Floor: inference reads x and writes y, training writes one byte per element of y as well; backward reads dy and those
bytes and writes dx.
On a CPU run it with glibc keeping freed memory (see benchmarks/RESULTS.md), or every provider pays for mapping its
results anew.
"""

import argparse
from functools import partial

import torch
import torch._functorch.config
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, measure, save, show
from bitfast.ops import stem_pool, use_impl
from bitfast.runtime import pick_device

SHAPES = {"cpu": [(32, 64, 64), (8, 64, 112)], "cuda": [(256, 64, 64), (256, 64, 112), (32, 256, 240)]}
OURS = {"cpu": "native", "cuda": "triton"}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def eager(x: Tensor) -> Tensor:
    return F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)


def inference(pool, x: Tensor) -> Tensor:
    with torch.no_grad():
        return pool(x)


def backward(y: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, dy, retain_graph=True)[0]


def cases(batch: int, channels: int, size: int, dtype: torch.dtype, device: str = "cpu") -> list[Case]:
    """Inference, forward of a training and backward: eager, compiled and ours, each in both layouts."""
    shape, torch_compiled = f"{channels}x{size}x{size} N={batch} {str(dtype)[6:]}", torch.compile(eager, fullgraph=True)
    plain = torch.randn(batch, channels, size, size, device=device).to(dtype).requires_grad_()
    exact = plain.detach().double().requires_grad_()
    y, dy = eager(plain), torch.randn(batch, channels, size // 2, size // 2, device=device).to(dtype)
    forward_calls, training_calls, backward_calls = {}, {}, {}
    for layout, memory_format in LAYOUTS.items():
        x = plain.detach().contiguous(memory_format=memory_format).requires_grad_()
        tangent = dy.contiguous(memory_format=memory_format)
        for name, pool in (("eager", eager), ("compile", torch_compiled), (OURS[device], stem_pool)):
            forward_calls[f"{name} {layout}"] = partial(inference, pool, x)
            training_calls[f"{name} {layout}"] = partial(pool, x)
            backward_calls[f"{name} {layout}"] = partial(backward, pool(x), x, tangent)
    truth, moved = eager(exact), plain.nbytes + y.nbytes
    truth_dx = backward(truth, exact, dy.double())
    return [
        Case(f"{shape} inference", forward_calls, truth, y, moved),
        Case(f"{shape} training", training_calls, truth, y, moved + y.numel()),
        Case(f"{shape} backward", backward_calls, truth_dx, backward(y, plain, dy), moved + y.numel()),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="per case")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--name", help="of the file in benchmarks/results; default stem_pool_<device>_<dtype>")
    options = parser.parse_args(arguments)
    device, dtype = pick_device(options.device).type, getattr(torch, options.dtype)
    torch._functorch.config.donated_buffer = False  # a compiled backward may then be called again
    rows = []
    with use_impl("stem_pool", OURS[device]), use_impl("stem_pool_backward", OURS[device]):
        for shape in SHAPES[device]:
            torch.manual_seed(0)
            for case in cases(*shape, dtype, device):
                measured = measure(case, seconds=options.seconds)
                show(measured)
                rows += measured
    print(save(options.name or f"stem_pool_{device}_{options.dtype}", rows))


if __name__ == "__main__":
    main()
