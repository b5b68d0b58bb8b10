import os
import subprocess
import sys
from contextlib import ExitStack
from functools import cache, partial

import pytest
import torch
from cases import NORM_CONV

from bitfast.errors import UsageError
from bitfast.numerics import GN_EPS, assert_matches
from bitfast.ops import norm_conv, use_impl
from bitfast.ops._dtypes import accumulate_dtype
from bitfast.ops.norm_conv import native, reference
from bitfast.ops.norm_conv.config import algorithm

IMPLS = {"native": [torch.float32], "composed": [torch.float32, torch.bfloat16, torch.float64]}
NATIVE = [case for case in NORM_CONV if case.shape[1] % 32 == 0]


def named(name):
    return next(case for case in NORM_CONV if case.name == name)


def label(value):
    if isinstance(value, bool):
        return "save_memory" if value else "kept"
    return getattr(value, "name", None) or str(value).removeprefix("torch.")


every_impl = pytest.mark.parametrize("impl", IMPLS)
# A case with a large mean has no truth in float64, which is no more accurate, and cannot be held in bf16. torch's own
# bf16 gradient of a kernel is not written where a tap sees nothing but padding.
with_truth = pytest.mark.parametrize(
    ("impl", "save_memory", "dtype", "case"),
    [
        (impl, save_memory, dtype, case)
        for impl, dtypes in IMPLS.items()
        for dtype in dtypes
        for case in (NATIVE if impl == "native" else NORM_CONV)
        for save_memory in ([False] if impl == "native" else [False, True])
        if dtype == torch.float32 or not (case.mean or dtype == torch.bfloat16 and case.narrow)
    ],
    ids=label,
)


def forced(impl):
    stack = ExitStack()
    for op in ("norm_conv", "norm_conv_backward"):
        stack.enter_context(use_impl(op, impl))
    return stack


def split(t):
    """The inputs that have gradients, and the gradients of the results, by name."""
    ours = {k: v for k, v in t.items() if k[:2] not in ("dy", "ds")}
    return ours, {k.removeprefix("d"): v for k, v in t.items() if k not in ours and (k != "ds" or "residual" in t)}


def answer(leaves, tangents, ys, s, grad):
    """The results, or the gradients of their products with the tangents, by name."""
    results = {f"y{i}": y for i, y in enumerate(ys)} | ({"s": s} if "s" in tangents else {})
    if not grad:
        return results
    grads = torch.autograd.grad(list(results.values()), list(leaves.values()), [tangents[k] for k in results])
    return {f"d{k}": g for k, g in zip(leaves, grads, strict=True)}


def convolutions(case, leaves):
    return [leaves[f"kernel{i}"] for i in range(len(case.kernels))], [stride for _, _, stride in case.kernels]


def apply(case, leaves, save_memory=False):
    settings = dict(residual=leaves.get("residual"), groups=case.groups, save_memory=save_memory)
    out = norm_conv(leaves["x"], leaves["weight"], leaves["bias"], *convolutions(case, leaves), **settings)
    return out if case.residual else (out, None)


def apply_definition(case, leaves):
    images, parameters = (leaves["x"], leaves.get("residual")), (leaves["weight"], leaves["bias"])
    return reference.forward(*images, *parameters, *convolutions(case, leaves), case.groups, GN_EPS)[:2]


def run(case, t, *, grad=False, save_memory=False):
    inputs, tangents = split(t)
    leaves = {k: v.detach().requires_grad_(grad) for k, v in inputs.items()}
    return answer(leaves, tangents, *apply(case, leaves, save_memory), grad)


def everything(case, t):
    return run(case, t) | run(case, t, grad=True)


@cache
def definition(case, stored, dtype, grad):
    """Of the case's own inputs, stored in a dtype."""
    return defined(case, case.inputs(stored), dtype, grad=grad)


def defined(case, t, dtype, *, grad=False):
    """The same as `run`, by autograd through the definition in `dtype`; the norm's parameters in fp32 at least."""
    inputs, tangents = split(t)
    cast = {"weight": accumulate_dtype(dtype), "bias": accumulate_dtype(dtype)}
    leaves = {k: v.detach().to(cast.get(k, dtype)).requires_grad_(grad) for k, v in inputs.items()}
    return answer(leaves, {k: v.to(dtype) for k, v in tangents.items()}, *apply_definition(case, leaves), grad)


def assert_defined(case, t, got):
    for grad in (False, True):
        truth, baseline = defined(case, t, torch.float64, grad=grad), defined(case, t, torch.float32, grad=grad)
        for name in truth:
            assert_matches(got[name], truth[name], baseline[name], name=name)


def assert_equal(a, b):
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@with_truth
@pytest.mark.parametrize("grad", [False, True], ids=["forward", "gradients"])
def test_matches_definition(impl, dtype, case, save_memory, grad):
    t = case.inputs(dtype)
    with forced(impl):
        got = run(case, t, grad=grad, save_memory=save_memory)
    truth, baseline = definition(case, dtype, torch.float64, grad), definition(case, dtype, dtype, grad)
    for name, value in got.items():
        assert_matches(value, truth[name], baseline[name], name=name)


@pytest.mark.parametrize("name", ["stage1_3x3", "odd_size", "x3_96"])
def test_large_and_small_inputs(name):
    case = named(name)
    t = case.inputs(torch.float32)
    for name, factor in (("kernel0", 1e-4), ("dy0", 1e3), ("weight", 30.0)):
        t[name] = t[name] * factor
    with forced("native"):
        assert_defined(case, t, everything(case, t))


def test_every_algorithm_is_tested():
    chosen = set()
    for case in NATIVE:
        t = case.inputs(torch.float32)
        for i, (_, size, stride) in enumerate(case.kernels):
            chosen.add((size, algorithm(t["x"], t[f"kernel{i}"], stride)))
    assert chosen == {(1, "gemm"), (3, "gemm"), (3, "winograd"), (5, ""), (3, "")}


@pytest.mark.parametrize("case", [case for case in NATIVE if case.shape[0]], ids=label)
@every_impl
def test_results_are_channels_last(case, impl):
    t = case.inputs(torch.float32)
    with forced(impl):
        out = run(case, t, save_memory=True)
    for name, value in out.items():
        assert value.is_contiguous(memory_format=torch.channels_last), name


@every_impl
@pytest.mark.parametrize("save_memory", [False, True], ids=["kept", "save_memory"])
@pytest.mark.parametrize("used", [["y0"], ["y1"], ["s"], ["y1", "s"], ["y0", "y1"]], ids="+".join)
def test_some_outputs_used(used, impl, save_memory):
    case = named("odd_size")
    inputs, tangents = split(case.inputs(torch.float32))

    def gradients(call, dtype):
        leaves = {k: v.detach().to(dtype).requires_grad_() for k, v in inputs.items()}
        ys, s = call(case, leaves)
        results = {"y0": ys[0], "y1": ys[1], "s": s}
        heads, weights = [results[k] for k in used], [tangents[k].to(dtype) for k in used]
        grads = torch.autograd.grad(heads, list(leaves.values()), weights, allow_unused=True)
        return {f"d{k}": g for k, g in zip(leaves, grads, strict=True)}

    with forced(impl):
        got = gradients(partial(apply, save_memory=save_memory), torch.float32)
    truth, baseline = gradients(apply_definition, torch.float64), gradients(apply_definition, torch.float32)
    for name, want in truth.items():
        if want is None:
            assert got[name] is None or not got[name].any(), name
        else:
            assert_matches(got[name], want, baseline[name], name=name)


@every_impl
@pytest.mark.parametrize(
    "frozen", [["kernel0"], ["kernel0", "kernel1"], ["x", "residual"], ["weight", "bias"]], ids="+".join
)
def test_frozen_inputs_have_no_gradient_and_change_no_other(impl, frozen):
    case = named("odd_size")
    inputs, tangents = split(case.inputs(torch.float32))
    leaves = {k: v.detach().requires_grad_(k not in frozen) for k, v in inputs.items()}
    with forced(impl):
        want = run(case, case.inputs(torch.float32), grad=True, save_memory=True)
        ys, s = apply(case, leaves, True)
        torch.autograd.backward([*ys, s], [tangents["y0"], tangents["y1"], tangents["s"]])
    for name, leaf in leaves.items():
        assert leaf.grad is None if name in frozen else torch.equal(leaf.grad, want[f"d{name}"]), name


def test_gradient_in_another_layout():
    t = named("stage1_with_projection").inputs(torch.float32)
    x, kernel = t["x"].requires_grad_(), t["kernel0"].requires_grad_()
    (y,) = norm_conv(x, t["weight"], t["bias"], [kernel], [1])
    ones = torch.ones_like(y)
    for dy, same in ((t["dy0"], t["dy0"].contiguous()), (ones, torch.ones(()).expand(y.shape))):
        want, got = (torch.autograd.grad(y, (x, kernel), d, retain_graph=True) for d in (dy, same))
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_second_derivative_is_refused():
    x = torch.randn(1, 32, 2, 2, requires_grad=True)
    (y,) = norm_conv(x, torch.ones(32), torch.zeros(32), [torch.randn(32, 32, 1, 1)], [1])
    with pytest.raises(RuntimeError, match="norm_conv has no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_gradcheck():
    x, r = (torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    w, b = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    kernels = [torch.randn(3, 4, k, k, dtype=torch.float64, requires_grad=True) for k in (1, 3)]

    def both(x, r, w, b, *kernels):
        ys, s = norm_conv(x, w, b, kernels, [2, 1], residual=r, groups=2, save_memory=True)
        return *ys, s

    assert torch.autograd.gradcheck(both, (x, r, w, b, *kernels))


@every_impl
def test_what_is_kept_for_backward(impl):
    """native and save_memory keep the sum once and nothing else of its size; otherwise the normalized image too."""
    t = named("stage1_narrows_residual").inputs(torch.float32)
    leaves = [t[k].requires_grad_() for k in ("x", "residual", "weight", "bias", "kernel0")]

    def kept_images(save_memory):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), forced(impl):
            x, r, w, b, kernel = leaves
            norm_conv(x, w, b, [kernel], [1], residual=r, save_memory=save_memory)
        return sum(tensor.shape == t["x"].shape for tensor in kept.values())

    assert kept_images(True) == 1
    assert kept_images(False) == (1 if impl == "native" else 2)


@pytest.mark.parametrize("name", ["odd_size", "5x5_kernel"])
@every_impl
def test_opcheck(name, impl):
    case = named(name)
    t = case.inputs(torch.float32)
    kernels, strides = [t["kernel0"], t["kernel1"]], [stride for _, _, stride in case.kernels]
    settings = (strides, case.groups, GN_EPS)
    leaves = [t[k].clone().requires_grad_() for k in ("x", "weight", "bias")]
    trained = [kernel.clone().requires_grad_() for kernel in kernels]
    with forced(impl):
        torch.library.opcheck(torch.ops.bitfast.norm_conv, (*leaves, trained, *settings, False))
        x, w, b = leaves
        torch.library.opcheck(torch.ops.bitfast.add_norm_conv, (x, t["ds"], w, b, trained, *settings, False))
        with torch.no_grad():
            _, mean, rstd = torch.ops.bitfast.norm_conv(t["x"], w, b, kernels, *settings, False)
            for ds, wanted in ((None, [True, True]), (t["ds"], [False, True])):
                args = ([t["dy0"], t["dy1"]], ds, t["x"], mean, rstd, w, b, kernels, *settings, wanted)
                torch.library.opcheck(
                    torch.ops.bitfast.norm_conv_backward,
                    [v.detach() if isinstance(v, torch.Tensor) else v for v in args],
                )


@pytest.mark.parametrize("name", ["odd_size", "40_channels"])
@pytest.mark.parametrize("save_memory", [False, True], ids=["kept", "save_memory"])
def test_compiles_whole(name, save_memory):
    case = named(name)
    inputs, tangents = split(case.inputs(torch.float32))
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}

    def results(leaves):
        return answer(leaves, tangents, *apply(case, leaves, save_memory), False)

    compiled = torch.compile(results, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_equal(compiled(leaves), results(leaves))
    want, got = (
        torch.autograd.grad(list(out.values()), list(leaves.values()), [tangents[k] for k in out])
        for out in (results(leaves), compiled(leaves))
    )
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_trains_under_compile():
    case = named("stage1_with_projection")
    inputs, _ = split(case.inputs(torch.float32))
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}

    def loss(leaves):
        ys, _ = apply(case, leaves)
        return sum(y.square().sum() for y in ys)

    want, got = (
        torch.autograd.grad(step(leaves), list(leaves.values())) for step in (loss, torch.compile(loss, fullgraph=True))
    )
    for g, h in zip(got, want, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-4, atol=1e-4)


def by_threads(case, t, threads):
    """What native gives with 1, 2, 3 and 7 threads and once more, the same each time."""
    results = []
    with forced("native"):
        for count in (1, 2, 3, 7, 7):
            threads(count)
            results.append(everything(case, t))
    for other in results[1:]:
        assert_equal(results[0], other)
    return results[0]


@pytest.mark.parametrize("case", NATIVE, ids=label)
def test_bit_equal_for_any_threads_and_again(case, threads):
    by_threads(case, case.inputs(torch.float32), threads)


@pytest.mark.parametrize("outputs", [32, 64, 512])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_larger_images_are_split_between_threads(outputs, size, stride, threads):
    case = named("stage1_3x3")._replace(shape=(2, 64, 29, 30), kernels=((outputs, size, stride),))
    t = case.inputs(torch.float32)
    assert_defined(case, t, by_threads(case, t, threads))


@pytest.mark.parametrize("size", [1, 3])
def test_large_results_are_stored_past_the_caches(size):
    case = named("stage1_3x3")._replace(shape=(1, 32, 260, 258), kernels=((32, size, 1), (32, size, 2)))
    t = case.inputs(torch.float32)
    with forced("native"):
        got = everything(case, t)
    assert_defined(case, t, got)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets(isa):
    """The tests of this file again, where the kernels of another instruction set are chosen."""
    wanted = "matches_definition and native or larger or bit_equal"
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", wanted]
    result = subprocess.run(command, env=os.environ | {"BITFAST_CPU_ISA": isa}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", ["stage1_3x3", "stage2_with_projection", "stage2_3x3_stride_2", "40_outputs"])
def test_bfloat16_is_widened_where_it_is_slow(name, monkeypatch):
    monkeypatch.setattr(native, "bfloat16_is_fast", lambda: False)
    case = named(name)
    t = case.inputs(torch.bfloat16)
    for grad in (False, True):
        with forced("native"):
            got = run(case, t, grad=grad)
        truth = definition(case, torch.bfloat16, torch.float64, grad)
        baseline = definition(case, torch.bfloat16, torch.bfloat16, grad)
        for name, value in got.items():
            assert value.dtype == baseline[name].dtype
            assert_matches(value, truth[name], baseline[name], name=name)


def test_what_native_cannot_take_runs_as_composed(monkeypatch):
    monkeypatch.setattr(native, "bfloat16_is_fast", lambda: True)
    for name, dtype in (("40_channels", torch.float32), ("stage1_3x3", torch.bfloat16)):
        case = named(name)
        t = case.inputs(dtype)
        with forced("composed"):
            want = everything(case, t)
        assert_equal(want, everything(case, t))
        with use_impl("norm_conv", "native"), pytest.raises(UsageError, match="multiple of 32|bfloat16"):
            run(case, t)


X, P, K = torch.zeros(2, 32, 4, 4), torch.zeros(32), torch.zeros(32, 32, 3, 3)
BAD = {
    "not 4-D": (ValueError, r"\(2, 32, 4\)", (X[..., 0], P, P, [K], [1]), {}),
    "no pixels": (ValueError, r"\(2, 32, 0, 4\)", (X[:, :, :0], P, P, [K], [1]), {}),
    "dtype of x": (TypeError, "int32", (X.int(), P, P, [K.int()], [1]), {}),
    "groups do not divide": (ValueError, "groups is 5 and C is 32", (X, P, P, [K], [1]), {"groups": 5}),
    "weight shape": (ValueError, r"weight has shape \(31,\).*\(32,\)", (X, P[1:], P, [K], [1]), {}),
    "bias dtype": (TypeError, "bias is torch.bfloat16", (X, P, P.bfloat16(), [K], [1]), {}),
    "residual shape": (ValueError, r"residual has shape \(1, 32, 4, 4\)", (X, P, P, [K], [1]), {"residual": X[:1]}),
    "no kernels": (ValueError, "0 kernels and 0 strides", (X, P, P, [], []), {}),
    "strides": (ValueError, "2 kernels and 1 strides", (X, P, P, [K, K], [1]), {}),
    "kernel of other channels": (
        ValueError,
        r"kernels\[1\] has shape \(32, 31, 3, 3\)",
        (X, P, P, [K, K[:, 1:]], [1, 1]),
        {},
    ),
    "kernel of even size": (ValueError, r"kernels\[0\].*odd", (X, P, P, [K[..., :2]], [1]), {}),
    "kernel without outputs": (ValueError, r"\(0, 32, 3, 3\)", (X, P, P, [K[:0]], [1]), {}),
    "kernel 3-D": (ValueError, r"\(32, 32, 3\)", (X, P, P, [K[..., 0]], [1]), {}),
    "kernel dtype": (TypeError, r"kernels\[0\] is torch.float64.*float32", (X, P, P, [K.double()], [1]), {}),
    "kernel device": (ValueError, r"kernels\[0\] is on meta", (X, P, P, [K.to("meta")], [1]), {}),
    "stride": (ValueError, r"strides\[0\] is 0", (X, P, P, [K], [0]), {}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_what_it_saw(name):
    error, message, args, kwargs = BAD[name]
    with pytest.raises(error, match=message):
        norm_conv(*args, **kwargs)
