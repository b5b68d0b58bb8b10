"""The Triton kernels of weight standardization: through the interpreter, or with `-m gpu` on a GPU."""

import pytest
import torch
from cases import WEIGHT_STD, WeightStdCase
from test_weight_std import defined
from triton_lane import on, stored

from bitfast.errors import UsageError
from bitfast.numerics import WS_EPS, assert_matches
from bitfast.ops import use_impl, weight_standardize, weight_standardize_backward
from bitfast.ops._triton import recorded
from bitfast.ops.weight_std import reference, triton_impl, triton_rows

LOW = [torch.bfloat16, torch.float16]
# Of 3x3 x 2048, 3x3 x 512 and 1x1 x 8192, rows longer than a tile; of 256 to 2304, shorter ones of every kind.
ROWS = WeightStdCase("rows", ((2, 2048, 3, 3), (3, 512, 3, 3), (2, 8192, 1, 1), (5, 128, 3, 3), (2, 256, 3, 3)))
CASES = [*WEIGHT_STD, ROWS, ROWS._replace(name="rows_channels_last", layout="channels_last")]
FEW = [c for c in CASES if c.name in {"odd", "odd_channels_last", "one_element_rows", "rows"}]


def named(value):
    return getattr(value, "name", None) or str(value).removeprefix("torch.")


@pytest.fixture(autouse=True)
def triton():
    with use_impl("weight_std", "triton"), use_impl("weight_std_backward", "triton"):
        yield


def turned(tensors):
    """The same values in the other layout."""
    other = {True: torch.channels_last, False: torch.contiguous_format}
    return [t.contiguous(memory_format=other[t.is_contiguous()]) if t.dim() == 4 else t for t in tensors]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in CASES] + [(case, dtype) for case in FEW for dtype in LOW],
    ids=named,
)
def test_matches_definition(case, dtype, triton_device):
    t = case.inputs(dtype)
    truth, truth_grads = defined(**t, dtype=torch.float64)
    baseline, baseline_grads = defined(**t, dtype=torch.float32)
    dw_hat = on(triton_device, t["dw_hat"])
    leaves = [w.requires_grad_() for w in on(triton_device, t["weights"])]
    got = weight_standardize(leaves)
    grads = torch.autograd.grad(got, leaves, dw_hat) if leaves else []
    assert len(got) == len(grads) == len(case.shapes)
    for i, w in enumerate(leaves):
        assert_matches(got[i], truth[i], baseline[i].to(dtype), name=f"w_hat[{i}]")
        assert_matches(grads[i], truth_grads[i], baseline_grads[i].to(dtype), name=f"dw[{i}]")
        assert got[i].stride() == w.stride() and grads[i].stride() == w.stride()


@pytest.mark.parametrize("name", ["odd", "odd_channels_last", "rows"])
def test_gradient_in_another_layout_and_again(name, triton_device):
    weights, dw_hat = on(triton_device, next(c for c in CASES if c.name == name).inputs(torch.float32)).values()
    want = weight_standardize_backward(dw_hat, weights)
    for gradients in (dw_hat, turned(dw_hat)):
        got = weight_standardize_backward(gradients, weights)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_bit_equal_again(triton_device):
    weights = on(triton_device, ROWS.inputs(torch.float32))["weights"]
    assert all(map(torch.equal, weight_standardize(weights), weight_standardize(weights)))


@pytest.mark.parametrize("dtype", LOW, ids=named)
def test_result_dtype(dtype, triton_device):
    weights, dw_hat = on(triton_device, FEW[1].inputs(torch.float32)).values()
    for low, exact in zip(weight_standardize(weights, dtype=dtype), weight_standardize(weights), strict=True):
        assert low.dtype == dtype and torch.equal(low, stored(exact, dtype))
    low = [d.to(dtype) for d in dw_hat]
    exact = weight_standardize_backward([d.float() for d in low], weights)
    for g, h in zip(weight_standardize_backward(low, weights), exact, strict=True):
        assert g.dtype == torch.float32 and torch.equal(g, h)


def test_mixed_dtypes_and_layouts_in_one_list(triton_device):
    weights = [torch.randn(6, 8, 3, 3) for _ in range(4)] + [torch.randn(3, 40), torch.randn(2, 5, 3, 2)]
    weights[1], weights[2], weights[5] = weights[1].half(), turned(weights[2:3])[0], weights[5].bfloat16()
    dw_hat = turned([torch.randn(w.shape).to(torch.float16 if i % 2 else torch.float32) for i, w in enumerate(weights)])
    own, own_d = on(triton_device, weights), on(triton_device, dw_hat)
    got = weight_standardize(own) + weight_standardize_backward(own_d, own)
    exact = [w.double() for w in weights]
    truth = reference.forward(exact, WS_EPS, None) + reference.backward([d.double() for d in dw_hat], exact, WS_EPS)
    for g, t, w in zip(got, truth, weights * 2, strict=True):
        assert g.dtype == w.dtype and g.stride() == w.stride()
        assert_matches(g, t, t.to(w.dtype))


def test_rows_at_any_address(triton_device):
    """One element further on than where a load of 16 bytes may begin."""
    shift = torch.randn(1 + 3 * 64, device=triton_device)
    for w in (shift[1:].view(3, 64), shift[:-1].view(3, 64)):
        (got,) = weight_standardize([w])
        (truth,), (baseline,) = (reference.forward([v], WS_EPS, None) for v in (w.double(), w))
        assert_matches(got, truth, baseline)


def test_not_finite_in_not_finite_out_of_that_row(triton_device):
    for width in (144, 5000):
        w = torch.randn(3, width, device=triton_device)
        w[1, 2], w[2, 5] = float("nan"), float("inf")
        (w_hat,), (g,) = weight_standardize([w]), weight_standardize_backward([torch.randn_like(w)], [w])
        for result in (w_hat, g):
            assert result[0].isfinite().all() and result[1].isnan().all() and not result[2].isfinite().any()


def test_large_equal_values_stay_finite(triton_device):
    for width in (144, 8192):
        (w_hat,) = weight_standardize([torch.full((3, width), 1.1e7, device=triton_device)])
        assert w_hat.isfinite().all()


def test_opcheck(triton_device):
    weights, dw_hat = ([torch.randn(s, device=triton_device) for s in ((2, 8, 3, 3), (3, 5))] for _ in range(2))
    leaves = [w.clone().requires_grad_() for w in weights]
    torch.library.opcheck(torch.ops.bitfast.weight_standardize, (leaves, WS_EPS, torch.float16))
    torch.library.opcheck(torch.ops.bitfast.weight_standardize_backward, (dw_hat, weights, WS_EPS))


def test_one_launch_for_weights_of_the_same_dtypes():
    weights = [torch.empty(s, device="meta") for case in CASES for s in case.shapes]
    with recorded() as launches:
        triton_impl.forward(weights, WS_EPS, torch.bfloat16)
        triton_impl.backward([w.half() for w in weights], weights, WS_EPS)
    assert [launch.kernel for launch in launches] == [triton_impl.standardize_kernel, triton_impl.project_kernel]
    with recorded() as launches:
        triton_impl.forward([weights[0], weights[1].half()], WS_EPS, None)
        triton_impl.forward([torch.empty(0, 8, device="meta")], WS_EPS, None)
    assert len(launches) == 2


def test_longest_rows_come_first():
    weights = [torch.empty(s, device="meta") for s in ((64, 64), (2, 18432), (64, 256), (8, 4608))]
    entries = [triton_rows.weight_entry(w, [w], WS_EPS) for w in weights]
    made = triton_rows.table(entries, torch.device("meta"))
    assert made.programs == 2 + 8 + 4 + 4 and made.width == 16


def test_a_table_is_kept_while_nothing_changes():
    device = torch.device("cpu")
    entries = [triton_rows.Entry(n, 1, (n, 2, 3)) for n in (5, 6)]
    first, again = (triton_rows.table(entries, device).data for _ in range(2))
    other = triton_rows.table([entries[0], triton_rows.Entry(6, 1, (7, 2, 3))], device).data
    assert first is again and other is not first
    assert first.shape == (4, 16) and first[:, :2].tolist() == [[2, 1], [6, 5], [2, 2], [3, 3]]
    columns = (1, 0, 2**47 - 16), (3, 4, 5)
    for written in (triton_rows._written(columns, 3, device), triton_rows._copied(columns, 3, device, 0)):
        assert written.tolist() == [[1, 3, 0], [0, 4, 0], [2**47 - 16, 5, 0]]


def test_what_triton_cannot_take_is_said():
    w = torch.randn(4, 6, 3, 3)
    for refused, why in ((w.double(), "no torch.float64"), (w.transpose(2, 3), "neither contiguous nor channels_last")):
        with pytest.raises(UsageError, match=why):
            weight_standardize([w, refused])
        with pytest.raises(UsageError, match=why):
            weight_standardize_backward([w, w], [w, refused])
