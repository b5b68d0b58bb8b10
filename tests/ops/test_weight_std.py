import os
import subprocess
import sys

import pytest
import torch
from cases import WEIGHT_STD

from bitfast.errors import UsageError
from bitfast.numerics import WS_EPS, assert_matches
from bitfast.ops import use_impl, weight_standardize, weight_standardize_backward
from bitfast.ops.weight_std import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(params=["native", "reference"])
def impl(request):
    with use_impl("weight_std", request.param), use_impl("weight_std_backward", request.param):
        yield request.param


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_case = pytest.mark.parametrize("case", WEIGHT_STD, ids=lambda case: case.name)
# A large mean has no truth in float64, which is no more accurate, and cannot be held in bf16.
with_truth = pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in WEIGHT_STD for dtype in DTYPES if not case.mean or dtype == torch.float32],
    ids=lambda value: getattr(value, "name", None) or str(value).removeprefix("torch."),
)


def defined(weights, dw_hat, dtype):
    """w_hat and dw by autograd through the formula, on rows, in `dtype`."""
    results, grads = [], []
    for w, d in zip(weights, dw_hat, strict=True):
        leaf = w.to(dtype).requires_grad_()
        rows = leaf.flatten(1)
        centred = rows - rows.mean(1, keepdim=True)
        w_hat = (centred / torch.sqrt(centred.square().mean(1, keepdim=True) + WS_EPS)).view(w.shape)
        results.append(w_hat.detach())
        grads.append(torch.autograd.grad(w_hat, leaf, d.to(dtype))[0])
    return results, grads


@with_truth
def test_matches_definition(case, dtype, impl):
    t = case.inputs(dtype)
    truth, truth_grads = defined(**t, dtype=torch.float64)
    baseline, baseline_grads = defined(**t, dtype=dtype)
    leaves = [w.clone(memory_format=torch.preserve_format).requires_grad_() for w in t["weights"]]
    got = weight_standardize(leaves)
    grads = torch.autograd.grad(got, leaves, t["dw_hat"]) if leaves else []
    alone = weight_standardize_backward(t["dw_hat"], t["weights"])
    assert len(got) == len(grads) == len(alone) == len(case.shapes)
    for i, w in enumerate(leaves):
        assert_matches(got[i], truth[i], baseline[i], name=f"w_hat[{i}]")
        assert_matches(grads[i], truth_grads[i], baseline_grads[i], name=f"dw[{i}]")
        assert torch.equal(grads[i], alone[i])
        assert got[i].stride() == w.stride() and grads[i].stride() == w.stride()


@every_case
def test_output_dtype(case, impl):
    weights, dw_hat = case.inputs(torch.float32).values()
    low = weight_standardize(weights, dtype=torch.bfloat16)
    exact = weight_standardize(weights)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(low, exact, strict=True))
    low = [d.bfloat16() for d in dw_hat]
    grads = weight_standardize_backward(low, weights)
    exact = weight_standardize_backward([d.float() for d in low], weights)
    assert all(g.dtype == torch.float32 and torch.equal(g, h) for g, h in zip(grads, exact, strict=True))


def test_projection_is_linear(impl):
    weights = [torch.randn(8, 4, 3, 3, dtype=torch.float64)]
    a, b = ([torch.randn_like(weights[0])] for _ in range(2))
    summed = weight_standardize_backward([a[0] + b[0]], weights)[0]
    parts = weight_standardize_backward(a, weights)[0] + weight_standardize_backward(b, weights)[0]
    torch.testing.assert_close(summed, parts, rtol=1e-12, atol=1e-12)


def test_gradcheck(impl):
    weights = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 2, 2, 2), (2, 5))]
    assert torch.autograd.gradcheck(lambda *w: tuple(weight_standardize(w)), weights)


def test_only_some_outputs_used(impl):
    weights = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    middle = weight_standardize(weights)[1]
    grads = torch.autograd.grad(middle.square().sum() + middle.sum(), weights, allow_unused=True)
    assert grads[0] is None and grads[2] is None and grads[1] is not None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_opcheck(dtype, impl):
    t = next(case for case in WEIGHT_STD if case.name == "block_channels_last").inputs(torch.float32)
    leaves = [w.clone().requires_grad_() for w in t["weights"]]
    torch.library.opcheck(torch.ops.bitfast.weight_standardize, (leaves, WS_EPS, dtype))
    torch.library.opcheck(torch.ops.bitfast.weight_standardize_backward, (t["dw_hat"], t["weights"], WS_EPS))


def test_compiles_whole(impl):
    def loss(*weights):
        return sum(w_hat.pow(3).sum() for w_hat in weight_standardize(weights))

    weights = [torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(5, 7, requires_grad=True)]
    want = torch.autograd.grad(loss(*weights), weights)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*weights), weights)
    assert all(torch.equal(g, h) for g, h in zip(got, want, strict=True))


@every_case
@every_dtype
def test_bit_equal_for_any_threads_and_again(case, dtype, impl, threads):
    t = case.inputs(dtype)
    results = []
    for count in (1, 2, 3, 3):
        threads(count)
        results.append(weight_standardize(t["weights"]) + weight_standardize_backward(t["dw_hat"], t["weights"]))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@with_truth
def test_gradient_in_another_layout(case, dtype, impl):
    weights, dw_hat = case.inputs(dtype).values()
    other = torch.contiguous_format if case.layout == "channels_last" else torch.channels_last
    turned = [d.contiguous(memory_format=other) if d.dim() == 4 else d for d in dw_hat]
    same, got = weight_standardize_backward(dw_hat, weights), weight_standardize_backward(turned, weights)
    truth, baseline = (defined(weights, dw_hat, each)[1] for each in (torch.float64, dtype))
    for i, w in enumerate(weights):
        assert_matches(got[i], truth[i], baseline[i], name=f"dw[{i}]")
        assert got[i].stride() == w.stride()
        assert impl == "reference" or torch.equal(got[i], same[i])


def test_gradient_of_any_strides(impl):
    w, d = torch.randn(4, 6, 3, 3), torch.randn(4, 6, 3, 6)
    for strided in (d[..., ::2], d[..., :3].transpose(2, 3), torch.ones(()).expand(w.shape)):
        got, want = (weight_standardize_backward([v], [w])[0] for v in (strided, strided.contiguous()))
        torch.testing.assert_close(got, want)


@every_dtype
def test_large_results_are_stored_past_the_caches(dtype, threads):
    threads(2)
    weights = [torch.randn(1024, 4160).to(dtype), torch.randn(9, 4159).to(dtype)]
    dw_hat = [torch.randn_like(w) for w in weights]
    with use_impl("weight_std", "native"), use_impl("weight_std_backward", "native"):
        got = weight_standardize(weights) + weight_standardize_backward(dw_hat, weights)
    truth, truth_grads = defined(weights, dw_hat, torch.float64)
    baseline, baseline_grads = defined(weights, dw_hat, dtype)
    for g, t, b in zip(got, truth + truth_grads, baseline + baseline_grads, strict=True):
        assert_matches(g, t, b)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets(isa):
    """The tests of this file again, where the kernels of another instruction set are chosen."""
    wanted = "matches_definition and native or past_the_caches"
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", wanted]
    result = subprocess.run(command, env=os.environ | {"BITFAST_CPU_ISA": isa}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@every_dtype
@pytest.mark.parametrize("result", [*DTYPES, torch.float16], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_result_dtype(dtype, result, impl):
    w = torch.randn(6, 37, 3, 3).to(dtype)
    (w_hat,) = weight_standardize([w], dtype=result)
    assert w_hat.dtype == result
    (truth,), (baseline,) = (reference.forward([v], WS_EPS, None) for v in (w.double(), w))
    assert_matches(w_hat, truth, baseline.to(result))


def test_large_equal_values_stay_finite(impl):
    (w_hat,) = weight_standardize([torch.full((3, 16, 3, 3), 1.1e7)])
    assert w_hat.isfinite().all()


def test_not_finite_in_not_finite_out_of_that_row(impl):
    w = torch.randn(3, 16, 3, 3)
    w[1, 2, 0, 0], w[2, 5, 1, 1] = float("nan"), float("inf")
    (w_hat,), (g,) = weight_standardize([w]), weight_standardize_backward([torch.randn_like(w)], [w])
    for result in (w_hat, g):
        assert result[0].isfinite().all() and result[1].isnan().all() and not result[2].isfinite().all()


def test_what_native_cannot_take_runs_as_reference():
    w = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    refused = [w.half(), w[:, ::2], w.transpose(2, 3), w.permute(1, 0, 2, 3)]
    for v in refused:
        assert torch.equal(weight_standardize([w, v])[1], reference.forward([v], WS_EPS, None)[0])
        with use_impl("weight_std", "native"), pytest.raises(UsageError, match="float16|contiguous nor channels_last"):
            weight_standardize([w, v])
        with use_impl("weight_std_backward", "native"), pytest.raises(UsageError, match="cannot run"):
            weight_standardize_backward([v], [v])


def test_rows_have_zero_mean_and_unit_variance():
    (w_hat,) = reference.forward([torch.randn(6, 5, 3, 3, dtype=torch.float64)], WS_EPS, None)
    torch.testing.assert_close(w_hat.mean((1, 2, 3)), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(w_hat.var((1, 2, 3), correction=0), torch.ones(6, dtype=torch.float64))


W = torch.zeros(4, 3, 3, 3)
M = W.to("meta")
BAD = {
    "dtype": (TypeError, r"weights\[1\] is torch.int64", lambda: weight_standardize([W, W.long()])),
    "result dtype": (TypeError, "dtype is torch.int8", lambda: weight_standardize([W], dtype=torch.int8)),
    "1-D": (ValueError, r"weights\[0\] has shape \(4,\)", lambda: weight_standardize([W[:, 0, 0, 0]])),
    "empty rows": (ValueError, r"\(4, 0, 3, 3\)", lambda: weight_standardize([W[:, :0]])),
    "lists differ": (ValueError, "dw_hat has 2 tensors.*1", lambda: weight_standardize_backward([W, W], [W])),
    "devices": (
        ValueError,
        r"weights\[1\] is on meta; it must be on cpu",
        lambda: weight_standardize([W, W.to("meta")]),
    ),
    "its device": (
        ValueError,
        r"dw_hat\[0\] is on meta; it must be on cpu",
        lambda: weight_standardize_backward([W.to("meta")], [W]),
    ),
    "shapes differ": (ValueError, r"dw_hat\[0\] has shape \(2, 3", lambda: weight_standardize_backward([W[:2]], [W])),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_what_it_saw(name):
    error, message, call = BAD[name]
    with pytest.raises(error, match=message):
        call()
