import pytest
import torch
from cases import WEIGHT_STD

from bitfast.numerics import WS_EPS, assert_matches
from bitfast.ops import weight_standardize, weight_standardize_backward
from bitfast.ops.weight_std import reference

every_case = pytest.mark.parametrize("case", WEIGHT_STD, ids=lambda case: case.name)
# A large mean has no truth in float64, which is no more accurate, and cannot be held in bf16.
with_truth = pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (case, dtype)
        for case in WEIGHT_STD
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
        if not case.mean or dtype == torch.float32
    ],
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
def test_matches_definition(case, dtype):
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
def test_output_dtype(case):
    weights, dw_hat = case.inputs(torch.float32).values()
    low = weight_standardize(weights, dtype=torch.bfloat16)
    exact = weight_standardize(weights)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(low, exact, strict=True))
    low = [d.bfloat16() for d in dw_hat]
    grads = weight_standardize_backward(low, weights)
    exact = weight_standardize_backward([d.float() for d in low], weights)
    assert all(g.dtype == torch.float32 and torch.equal(g, h) for g, h in zip(grads, exact, strict=True))


def test_projection_is_linear():
    weights = [torch.randn(8, 4, 3, 3, dtype=torch.float64)]
    a, b = ([torch.randn_like(weights[0])] for _ in range(2))
    summed = weight_standardize_backward([a[0] + b[0]], weights)[0]
    parts = weight_standardize_backward(a, weights)[0] + weight_standardize_backward(b, weights)[0]
    torch.testing.assert_close(summed, parts, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    weights = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 2, 2, 2), (2, 5))]
    assert torch.autograd.gradcheck(lambda *w: tuple(weight_standardize(w)), weights)


def test_only_some_outputs_used():
    weights = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    middle = weight_standardize(weights)[1]
    grads = torch.autograd.grad(middle.square().sum() + middle.sum(), weights, allow_unused=True)
    assert grads[0] is None and grads[2] is None and grads[1] is not None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_opcheck(dtype):
    t = next(case for case in WEIGHT_STD if case.name == "block_channels_last").inputs(torch.float32)
    leaves = [w.clone().requires_grad_() for w in t["weights"]]
    torch.library.opcheck(torch.ops.bitfast.weight_standardize, (leaves, WS_EPS, dtype))
    torch.library.opcheck(torch.ops.bitfast.weight_standardize_backward, (t["dw_hat"], t["weights"], WS_EPS))


def test_compiles_whole():
    def loss(*weights):
        return sum(w_hat.pow(3).sum() for w_hat in weight_standardize(weights))

    weights = [torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(5, 7, requires_grad=True)]
    want = torch.autograd.grad(loss(*weights), weights)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*weights), weights)
    assert all(torch.equal(g, h) for g, h in zip(got, want, strict=True))


@every_case
def test_bit_equal_for_any_threads_and_again(case, threads):
    t = case.inputs(torch.float32)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(weight_standardize(t["weights"]) + weight_standardize_backward(t["dw_hat"], t["weights"]))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_rows_have_zero_mean_and_unit_variance():
    (w_hat,) = reference.forward([torch.randn(6, 5, 3, 3, dtype=torch.float64)], WS_EPS, None)
    torch.testing.assert_close(w_hat.mean((1, 2, 3)), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(w_hat.var((1, 2, 3), correction=0), torch.ones(6, dtype=torch.float64))


W = torch.zeros(4, 3, 3, 3)
BAD = {
    "dtype": (TypeError, r"weights\[1\] is torch.int64", lambda: weight_standardize([W, W.long()])),
    "result dtype": (TypeError, "dtype is torch.int8", lambda: weight_standardize([W], dtype=torch.int8)),
    "1-D": (ValueError, r"weights\[0\] has shape \(4,\)", lambda: weight_standardize([W[:, 0, 0, 0]])),
    "empty rows": (ValueError, r"\(4, 0, 3, 3\)", lambda: weight_standardize([W[:, :0]])),
    "lists differ": (ValueError, "dw_hat has 2 tensors.*1", lambda: weight_standardize_backward([W, W], [W])),
    "shapes differ": (ValueError, r"dw_hat\[0\] has shape \(2, 3", lambda: weight_standardize_backward([W[:2]], [W])),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_what_it_saw(name):
    error, message, call = BAD[name]
    with pytest.raises(error, match=message):
        call()
