"""Weight standardization, its projection and the optimizer step, all weights of a network in one call:
python -m benchmarks.ops.bench_weight_std [--device cuda] [--model resnet152x4]

Floors: standardization reads w and writes w_hat; the projection reads d and w and writes g; the step reads d, w and m
and writes w, m and w_hat. Other providers work layer by layer, as users write them. Their steps are those of a training
iteration: standardize, project through autograd, torch.optim.SGD.
On a GPU the network is in bfloat16: w_hat is written and d is read in it, w and m stay in fp32.
On a CPU run it with glibc keeping freed memory (see benchmarks/RESULTS.md), or every provider pays for mapping its
results anew.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, measure, save, show
from bitfast.folding import std_convs
from bitfast.model import ResNetV2
from bitfast.numerics import WS_EPS, assert_matches
from bitfast.ops import _cuda, standardized_sgd_step, use_impl, weight_standardize, weight_standardize_backward
from bitfast.ops.standardized_sgd import reference as step_reference
from bitfast.ops.weight_std import reference
from bitfast.runtime import pick_device
from bitfast.variants import VARIANTS, variant

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
RULE = {"momentum": 0.9, "weight_decay": 1e-4}


def var_mean(w: Tensor) -> Tensor:
    """As in the BiT release."""
    v, m = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return (w - m) / torch.sqrt(v + WS_EPS)


def batch_norm(w: Tensor) -> Tensor:
    """As in timm."""
    return F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True, momentum=0.0, eps=WS_EPS).reshape_as(w)


PEERS = {
    "var_mean": var_mean,
    "batch_norm": batch_norm,
    "compiled var_mean": torch.compile(var_mean, dynamic=True),
}


class Weights:
    """The convolution weights of a network in one layout, gradients of their standardized twins in another."""

    def __init__(self, model: str, layout: str, order: str, device: str = "cpu") -> None:
        generator = torch.Generator(device).manual_seed(0)
        with torch.device("meta"):
            shapes = [conv.weight.shape for conv in std_convs(ResNetV2(*variant(model))).values()]

        def normal(std: float, order: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
            values = (torch.randn(shape, generator=generator, device=device) * std for shape in shapes)
            return [v.to(dtype, memory_format=LAYOUTS[order]) for v in values]

        self.dtype, self.ours = torch.float32, ["native"]
        if device == "cuda":
            self.dtype, self.ours = torch.bfloat16, ["triton"] if _cuda.missing() else ["triton", "cuda"]
        self.w, self.d, self.m = normal(0.05, layout), normal(1.0, order, self.dtype), normal(1.0, layout)
        self.w_bytes, self.d_bytes = (sum(t.nbytes for t in tensors) for tensors in (self.w, self.d))
        self.name = f"{model} {layout}" + (f", network {order}" if order != layout else "")

    def case(self, what: str, calls: dict[str, Callable], truth: list[Tensor], base: list[Tensor], moved: int) -> Case:
        """Checks all results of every call; the harness then times the calls and checks the largest result."""
        for name, call in calls.items():
            for i, (got, t, b) in enumerate(zip(call(), truth, base, strict=True)):
                assert_matches(got, t, b, name=f"{what} {name}, weight {i}")
        largest = max(range(len(truth)), key=lambda i: truth[i].numel())

        def one(call: Callable) -> Tensor:
            return call()[largest]

        providers = {name: partial(one, call) for name, call in calls.items()}
        return Case(f"{what}, {self.name}", providers, truth[largest], base[largest], moved)


def forced(op: str, impl: str, call: Callable) -> Callable:
    def run() -> list[Tensor]:
        with use_impl(op, impl):
            return call()

    return run


def standardization(weights: Weights) -> Case:
    calls = {name: lambda f=f: [f(w).to(weights.dtype) for w in weights.w] for name, f in PEERS.items()}
    for impl in (*weights.ours, "reference"):
        calls[impl] = forced("weight_std", impl, lambda: weight_standardize(weights.w, dtype=weights.dtype))
    truth, base = (reference.forward([w.to(dtype) for w in weights.w], WS_EPS, None) for dtype in _TRUTH_AND_BASE)
    base = [b.to(weights.dtype) for b in base]
    return weights.case("standardize", calls, truth, base, weights.w_bytes + weights.d_bytes)


def projection(weights: Weights) -> Case:
    """Eager peers differentiate a standardization made before: only their backward is timed. A compiled backward cannot
    be called twice, so what is compiled is the formula.
    """
    formula = torch.compile(lambda d, w: reference.backward([d], [w], WS_EPS)[0], dynamic=True)

    def differentiated(f: Callable) -> Callable:
        leaves = [w.detach().requires_grad_() for w in weights.w]
        with torch.enable_grad():
            results = [f(w).to(weights.dtype) for w in leaves]
        return lambda: torch.autograd.grad(results, leaves, weights.d, retain_graph=True)

    calls = {name: differentiated(PEERS[name]) for name in ("var_mean", "batch_norm")}
    calls["compiled formula"] = lambda: [formula(d, w) for d, w in zip(weights.d, weights.w, strict=True)]
    for impl in (*weights.ours, "reference"):
        calls[impl] = forced("weight_std_backward", impl, lambda: weight_standardize_backward(weights.d, weights.w))
    truth, base = (
        reference.backward([d.to(dtype) for d in weights.d], [w.to(dtype) for w in weights.w], WS_EPS)
        for dtype in _TRUTH_AND_BASE
    )
    return weights.case("project", calls, truth, base, 2 * weights.w_bytes + weights.d_bytes)


def step(weights: Weights, lr: float) -> Case:
    """The new w_hat. Timed with lr 0, so that every call has the same result."""

    def peer(f: Callable, **how: bool) -> Callable:
        leaves = [w.clone().requires_grad_() for w in weights.w]
        sgd = torch.optim.SGD(leaves, lr=lr, **RULE, **how)
        for w, m in zip(leaves, weights.m, strict=True):
            sgd.state[w]["momentum_buffer"] = m.clone()

        def standardized() -> list[Tensor]:
            return [f(w).to(weights.dtype) for w in leaves]

        def run() -> list[Tensor]:
            with torch.enable_grad():
                results = standardized()
            torch.autograd.backward(results, weights.d)
            sgd.step()
            sgd.zero_grad()
            return results if lr == 0 else standardized()

        return run

    def ours(impl: str) -> Callable:
        w, m = [w.clone() for w in weights.w], [m.clone() for m in weights.m]
        w_hats = [torch.empty_like(d) for d in weights.d]

        def run() -> list[Tensor]:
            standardized_sgd_step(w, weights.d, m, w_hats, [WS_EPS] * len(w), lr=lr, **RULE)
            return w_hats

        return forced("standardized_sgd", impl, run)

    def defined(dtype: torch.dtype) -> list[Tensor]:
        w, d, m = ([t.to(dtype, copy=True) for t in tensors] for tensors in (weights.w, weights.d, weights.m))
        w_hats = [torch.empty_like(v) for v in w]
        step_reference.step(w, d, m, w_hats, [WS_EPS] * len(w), lr, **RULE)
        return w_hats

    calls = {
        "batch_norm, fused": peer(batch_norm, fused=True),
        "batch_norm, foreach": peer(batch_norm, foreach=True),
        "compiled, fused": peer(PEERS["compiled var_mean"], fused=True),
    }
    calls |= {impl: ours(impl) for impl in (*weights.ours, "reference")}
    truth, base = map(defined, _TRUTH_AND_BASE)
    base = [b.to(weights.dtype) for b in base]
    return weights.case("step", calls, truth, base, 4 * weights.w_bytes + 2 * weights.d_bytes)


_TRUTH_AND_BASE = (torch.float64, torch.float32)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=VARIANTS, default="resnet50x1")
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    parser.add_argument("--name", help="of the file in benchmarks/results; default weight_std_<device>")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    device = pick_device(options.device).type
    torch.set_num_threads(options.threads)
    rows = []
    with torch.no_grad():
        for layout, order in (("contiguous", "contiguous"), ("contiguous", "channels_last"), ("channels_last",) * 2):
            torch.compiler.reset()  # else the versions for other layouts count against its limit
            weights = Weights(options.model, layout, order, device)
            step(weights, lr=0.1)
            cases = [projection, partial(step, lr=0.0)]
            if layout == order:
                cases.insert(0, standardization)
            for make in cases:
                measured = measure(make(weights), seconds=options.seconds)
                show(measured)
                rows += measured
    print(save(options.name or f"weight_std_{device}", rows))


if __name__ == "__main__":
    main()
