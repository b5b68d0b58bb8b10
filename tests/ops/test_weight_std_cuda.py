"""The CUDA kernels of weight standardization: on the host behind tests/simt, or with `-m gpu` on a GPU."""

import pytest
import torch
from cases import WEIGHT_STD
from test_weight_std import defined
from test_weight_std_triton import LOW, ROWS, named, turned
from triton_lane import on

from bitfast.errors import UsageError
from bitfast.numerics import WS_EPS, assert_matches
from bitfast.ops import use_impl, weight_gradient_norms, weight_standardize, weight_standardize_backward
from bitfast.ops.weight_std import reference

CASES = [*WEIGHT_STD, ROWS, ROWS._replace(name="rows_channels_last", layout="channels_last")]
FEW = [c for c in CASES if c.name in {"odd", "odd_channels_last", "one_element_rows", "rows"}]


@pytest.fixture(autouse=True)
def cuda():
    with use_impl("weight_std", "cuda"), use_impl("weight_std_backward", "cuda"):
        yield


def check(case, device, dtype=torch.float32):
    """Results in `dtype`, of gradients in `dtype`."""
    t = case.inputs(torch.float32)
    t["dw_hat"] = [d.to(dtype) for d in t["dw_hat"]]
    exact = {"weights": t["weights"], "dw_hat": [d.float() for d in t["dw_hat"]]}
    truth, truth_grads = defined(**exact, dtype=torch.float64)
    baseline, baseline_grads = defined(**exact, dtype=torch.float32)
    weights, dw_hat = on(device, t["weights"]), on(device, t["dw_hat"])
    got, grads = weight_standardize(weights, dtype=dtype), weight_standardize_backward(dw_hat, weights)
    assert len(got) == len(grads) == len(case.shapes)
    for i, w in enumerate(weights):
        assert_matches(got[i], truth[i], baseline[i].to(dtype), name=f"w_hat[{i}]")
        assert_matches(grads[i], truth_grads[i], baseline_grads[i], name=f"dw[{i}]")
        assert got[i].stride() == w.stride() and grads[i].stride() == w.stride()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in CASES] + [(case, dtype) for case in FEW for dtype in LOW],
    ids=named,
)
def test_matches_definition(case, dtype, cuda_device):
    check(case, cuda_device, dtype)


@pytest.mark.parametrize("layout", [lambda d: d, turned], ids=["same", "turned"])
@pytest.mark.parametrize("case", [c for c in CASES if c.shapes and c.name != "large_mean"], ids=named)
def test_norms_of_gradients(case, layout, cuda_device):
    t = case.inputs(torch.float32)
    _, truth = defined(**t, dtype=torch.float64)
    want = torch.cat([g.flatten(1).norm(dim=1) for g in truth])
    weights, dw_hat = on(cuda_device, t["weights"]), on(cuda_device, layout(t["dw_hat"]))
    with use_impl("weight_gradient_norms", "cuda"):
        got = weight_gradient_norms(dw_hat, weights)
    assert_matches(got, want, want.float())
    assert_matches(weight_gradient_norms(dw_hat, weights), want, want.float(), name="composed")


@pytest.mark.parametrize("name", ["rows", "rows_channels_last", "long_rows"])
def test_rows_too_long_for_shared_memory(name, settings):
    settings(shared_per_block=34 << 10)
    check(next(c for c in CASES if c.name == name), "cpu")


@pytest.mark.parametrize("name", ["odd", "odd_channels_last", "rows"])
def test_gradient_in_another_layout_and_again(name, cuda_device):
    weights, dw_hat = on(cuda_device, next(c for c in CASES if c.name == name).inputs(torch.float32)).values()
    want = weight_standardize_backward(dw_hat, weights)
    for gradients in (dw_hat, turned(dw_hat)):
        for got, g in zip(weight_standardize_backward(gradients, weights), want, strict=True):
            torch.testing.assert_close(got, g)
    assert all(map(torch.equal, weight_standardize_backward(dw_hat, weights), want))


def test_any_order_of_threads_and_blocks_gives_the_same_bits(settings):
    t = ROWS.inputs(torch.float32)
    weights, dw_hat = t["weights"], turned(t["dw_hat"])
    want = weight_standardize(weights) + weight_standardize_backward(dw_hat, weights)
    for schedule in (1, 2, 3):
        settings(schedule)
        got = weight_standardize(weights) + weight_standardize_backward(dw_hat, weights)
        assert all(map(torch.equal, got, want)), schedule


def test_more_tensors_than_a_launch_takes(cuda_device):
    weights = [torch.randn(2, 3 + i % 7, device=cuda_device) for i in range(1000)]
    (alone,) = zip(*(weight_standardize([w]) for w in weights[::97]), strict=True)
    assert all(map(torch.equal, weight_standardize(weights)[::97], alone))


def test_rows_at_any_address(cuda_device):
    """One element further on than where a load of 16 bytes may begin."""
    shift = torch.randn(1 + 3 * 64, device=cuda_device)
    for w in (shift[1:].view(3, 64), shift[:-1].view(3, 64)):
        (got,) = weight_standardize([w])
        (truth,), (baseline,) = (reference.forward([v], WS_EPS, None) for v in (w.double(), w))
        assert_matches(got, truth, baseline)


def test_not_finite_in_not_finite_out_of_that_row(cuda_device):
    for width in (144, 5000):
        w = torch.randn(3, width, device=cuda_device)
        w[1, 2], w[2, 5] = float("nan"), float("inf")
        (w_hat,), (g,) = weight_standardize([w]), weight_standardize_backward([torch.randn_like(w)], [w])
        for result in (w_hat, g):
            assert result[0].isfinite().all() and result[1].isnan().all() and not result[2].isfinite().any()


def test_large_equal_values_stay_finite(cuda_device):
    for width in (144, 8192):
        (w_hat,) = weight_standardize([torch.full((3, width), 1.1e7, device=cuda_device)])
        assert w_hat.isfinite().all()


def test_opcheck(cuda_device):
    weights, dw_hat = ([torch.randn(s, device=cuda_device) for s in ((2, 8, 3, 3), (3, 5))] for _ in range(2))
    torch.library.opcheck(torch.ops.bitfast.weight_standardize, (weights, WS_EPS, torch.float16))
    torch.library.opcheck(torch.ops.bitfast.weight_standardize_backward, (dw_hat, weights, WS_EPS))
    torch.library.opcheck(torch.ops.bitfast.weight_gradient_norms, (dw_hat, weights, WS_EPS))


def test_what_the_kernels_cannot_take_is_said(on_host):
    w = torch.randn(4, 6, 3, 3)
    refused = [(w.double(), "keeps weights in torch.float32, one is torch.float64")]
    refused += [(w.bfloat16(), "one is torch.bfloat16"), (w.transpose(2, 3), "neither contiguous nor channels_last")]
    for other, why in refused:
        with pytest.raises(UsageError, match=why):
            weight_standardize([w, other])
        with pytest.raises(UsageError, match=why):
            weight_standardize_backward([w, w], [w, other])
