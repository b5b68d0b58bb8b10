import os
import subprocess
import sys

import pytest
import torch
from cases import GROUP_NORM
from torch.nn import functional as F

from bitfast.numerics import GN_EPS, assert_matches
from bitfast.ops import group_norm_act, use_impl
from bitfast.ops._dtypes import accumulate_dtype
from bitfast.ops.group_norm import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
IMPLS = ["native", "reference"]

every_case = pytest.mark.parametrize("case", GROUP_NORM, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_impl = pytest.mark.parametrize("impl", IMPLS)


# A case with a large mean has no truth in float64, which is no more accurate, and cannot be held in bf16.
with_truth = pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in GROUP_NORM for dtype in DTYPES if not case.mean or dtype == torch.float32],
    ids=lambda value: getattr(value, "name", None) or str(value).removeprefix("torch."),
)


def run(case, t, *, grad=False):
    """(y, s) and, with `grad`, the gradients of <y, dy> + <s, ds>; without a residual s is None."""
    leaves = {k: t[k].detach().requires_grad_(grad) for k in ("x", "residual", "weight", "bias") if t[k] is not None}
    out = group_norm_act(
        leaves["x"],
        leaves["weight"],
        leaves["bias"],
        residual=leaves.get("residual"),
        groups=case.groups,
        act=case.act,
    )
    y, s = out if case.residual else (out, None)
    if not grad:
        return {"y": y} | ({"s": s} if case.residual else {})
    heads, tangents = ([y, s], [t["dy"], t["ds"]]) if case.residual else ([y], [t["dy"]])
    grads = torch.autograd.grad(heads, list(leaves.values()), tangents)
    return {f"d{k}": g for k, g in zip(leaves, grads, strict=True)}


def defined(case, t, dtype, *, grad=False):
    """The same as `run`, by autograd through the definition in `dtype`; parameters in fp32 at least."""
    parameters = accumulate_dtype(dtype)
    cast = {"weight": parameters, "bias": parameters}
    leaves = {
        k: t[k].detach().to(cast.get(k, dtype)).requires_grad_(grad)
        for k in ("x", "residual", "weight", "bias")
        if t[k] is not None
    }
    y, s, _, _ = reference.forward(
        leaves["x"], leaves.get("residual"), leaves["weight"], leaves["bias"], case.groups, GN_EPS, case.act
    )
    if not grad:
        return {"y": y} | ({"s": s} if case.residual else {})
    heads, tangents = ([y, s], [t["dy"], t["ds"]]) if case.residual else ([y], [t["dy"]])
    grads = torch.autograd.grad(heads, list(leaves.values()), [g.to(dtype) for g in tangents])
    return {f"d{k}": g for k, g in zip(leaves, grads, strict=True)}


@with_truth
@every_impl
@pytest.mark.parametrize("grad", [False, True], ids=["forward", "gradients"])
def test_matches_definition(case, dtype, impl, grad):
    t = case.inputs(dtype)
    with use_impl("group_norm", impl), use_impl("group_norm_backward", impl):
        got = run(case, t, grad=grad)
    truth, baseline = defined(case, t, torch.float64, grad=grad), defined(case, t, dtype, grad=grad)
    for name, value in got.items():
        assert_matches(value, truth[name], baseline[name], name=name)


@every_dtype
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_agrees_with_torch(dtype, layout):
    x = torch.randn(2, 64, 9, 9).to(dtype).contiguous(memory_format=layout)
    parameters = accumulate_dtype(dtype)
    w, b = torch.randn(64, dtype=parameters), torch.randn(64, dtype=parameters)
    eager = F.relu(F.group_norm(x.to(parameters), 32, w, b, GN_EPS)).to(dtype)
    torch.testing.assert_close(group_norm_act(x, w, b), eager)


@pytest.mark.parametrize("case", [c for c in GROUP_NORM if c.shape[0]], ids=lambda case: case.name)
@every_impl
def test_layout_is_kept(case, impl):
    t = case.inputs(torch.float32)
    with use_impl("group_norm", impl), use_impl("group_norm_backward", impl):
        out = run(case, t) | run(case, t, grad=True)
    layout = torch.contiguous_format if case.layout == "contiguous" else torch.channels_last
    for name in ("y", "s", "dx", "dresidual"):
        assert name not in out or out[name].is_contiguous(memory_format=layout), name


@every_impl
def test_gradcheck(impl):
    x, r = (torch.randn(2, 6, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    w, b = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with use_impl("group_norm", impl), use_impl("group_norm_backward", impl):
        for act in reference.ACTIVATIONS:

            def plain(x, w, b, act=act):
                return group_norm_act(x, w, b, groups=3, act=act)

            def residual(x, r, w, b, act=act):
                return group_norm_act(x, w, b, residual=r, groups=3, act=act)

            assert torch.autograd.gradcheck(plain, (x, w, b))
            assert torch.autograd.gradcheck(residual, (x, r, w, b))


@pytest.mark.parametrize("used", ["y", "s"])
def test_only_one_output_used(used):
    x, r = (torch.randn(2, 32, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    w, b = (torch.randn(32, dtype=torch.float64) for _ in range(2))
    got = dict(zip("ys", group_norm_act(x, w, b, residual=r), strict=True))
    want = dict(zip("ys", reference.forward(x, r, w, b, 32, GN_EPS, "relu")[:2], strict=True))
    for leaf in (x, r):
        (g,) = torch.autograd.grad(got[used].sum(), leaf, retain_graph=True)
        (h,) = torch.autograd.grad(want[used].sum(), leaf, retain_graph=True)
        torch.testing.assert_close(g, h)


def test_gradient_in_another_layout():
    x = torch.randn(2, 64, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    w, b, dy = torch.randn(64), torch.randn(64), torch.randn(2, 64, 5, 5)
    y = group_norm_act(x, w, b)
    (plain,) = torch.autograd.grad(y, x, dy.contiguous(memory_format=torch.channels_last), retain_graph=True)
    (other,) = torch.autograd.grad(y, x, dy.contiguous(), retain_graph=True)
    (expanded,) = torch.autograd.grad(y, x, torch.ones(1, 1, 1, 1).expand(2, 64, 5, 5), retain_graph=True)
    (ones,) = torch.autograd.grad(y, x, torch.ones(2, 64, 5, 5))
    assert torch.equal(plain, other) and torch.equal(expanded, ones)


def test_second_derivative_is_refused():
    x = torch.randn(1, 32, 2, 2, requires_grad=True)
    y = group_norm_act(x, torch.ones(32), torch.zeros(32))
    with pytest.raises(RuntimeError, match="group_norm_act has no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


OPCHECK = [c for c in GROUP_NORM if c.name in {"x3_192", "odd_everything_contiguous", "strided", "one_pixel"}]


@pytest.mark.parametrize("case", OPCHECK, ids=lambda case: case.name)
@every_impl
def test_opcheck(case, impl):
    t = case.inputs(torch.float32)
    x, r = t["x"].clone().requires_grad_(), t["dy"].clone().requires_grad_()
    w, b = t["weight"].requires_grad_(), t["bias"].requires_grad_()
    settings = (case.groups, GN_EPS, case.act)
    with use_impl("group_norm", impl):
        torch.library.opcheck(torch.ops.bitfast.group_norm_act, (x, w, b, *settings))
        torch.library.opcheck(torch.ops.bitfast.add_group_norm_act, (x, r, w, b, *settings))
    with torch.no_grad(), use_impl("group_norm_backward", impl):
        _, mean, rstd = torch.ops.bitfast.group_norm_act(x, w, b, *settings)
        args = [v.detach() for v in (r, x, w, b, mean, rstd)]
        for ds in (None, r.detach()):
            torch.library.opcheck(
                torch.ops.bitfast.group_norm_act_backward, (args[0], ds, *args[1:], case.groups, case.act)
            )


@pytest.mark.parametrize("name", ["x3_192", "one_group", "stage1_residual_contiguous"])
def test_compiles_whole(name):
    case = next(c for c in GROUP_NORM if c.name == name)
    t = case.inputs(torch.float32)

    def whole(case, t):
        y, s = run(case, t).get("y"), run(case, t).get("s")
        return y if s is None else y + s

    compiled = torch.compile(lambda: whole(case, t), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), whole(case, t))


def test_trains_under_compile():
    x = torch.randn(2, 64, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    r, w, b = torch.randn_like(x).requires_grad_(), torch.randn(64, requires_grad=True), torch.randn(64)

    def loss(x, r, w, b):
        y, s = group_norm_act(x, w, b, residual=r)
        return (y * y + s).sum()

    want = torch.autograd.grad(loss(x, r, w, b), (x, r, w))
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, r, w, b), (x, r, w))
    for g, h in zip(got, want, strict=True):
        torch.testing.assert_close(g, h)


@every_case
@every_dtype
def test_bit_equal_for_any_threads_and_again(case, dtype, threads):
    t = case.inputs(dtype)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(run(case, t) | run(case, t, grad=True))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("groups", [1, 2, 32, 192])
def test_one_image_split_between_threads(groups, threads):
    x, dy = (torch.randn(1, 192, 40, 40).contiguous(memory_format=torch.channels_last) for _ in range(2))
    leaves = [t.requires_grad_() for t in (x, torch.randn(192), torch.randn(192))]
    results = []
    for count in (1, 2, 3, 7, 40):
        threads(count)
        y = group_norm_act(*leaves, groups=groups)
        results.append((y, *torch.autograd.grad(y, leaves, dy)))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


CHOSEN = "matches_definition and native or split or statistics_alone"


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets(isa):
    """The tests of this file again, where the kernels of another instruction set are chosen."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", CHOSEN]
    result = subprocess.run(command, env=os.environ | {"BITFAST_CPU_ISA": isa}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@every_dtype
def test_large_results_are_stored_past_the_caches(dtype):
    parameters, n = accumulate_dtype(dtype), 2 if dtype == torch.bfloat16 else 1
    for channels, layout in ((64, torch.channels_last), (40, torch.channels_last), (64, torch.contiguous_format)):
        x = torch.randn(n, channels, 256, 256).to(dtype).contiguous(memory_format=layout)
        w, b = torch.randn(channels, dtype=parameters), torch.randn(channels, dtype=parameters)
        with use_impl("group_norm", "native"):
            y = group_norm_act(x, w, b, groups=8)
        truth = reference.forward(x.double(), None, w.double(), b.double(), 8, GN_EPS, "relu")[0]
        assert_matches(y, truth, reference.forward(x, None, w, b, 8, GN_EPS, "relu")[0])


def statistics_alone(x, residual, groups):
    """(s, mean, rstd) of the operators that norm_conv calls; s is x without a residual."""
    native = torch.ops.bitfast_native
    if residual is None:
        return x, *native.group_norm_statistics(x, groups, GN_EPS)
    return native.add_group_norm_statistics(x, residual, groups, GN_EPS)


STATISTICS = [case for case in GROUP_NORM if case.layout == "channels_last" and case.view == "dense"]


@pytest.mark.parametrize("case", STATISTICS, ids=lambda case: case.name)
def test_statistics_alone(case, threads):
    t = case.inputs(torch.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(statistics_alone(t["x"], t["residual"], case.groups))
    s, mean, rstd = results[0]
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    wanted = t["x"] if t["residual"] is None else t["x"] + t["residual"]
    assert torch.equal(s, wanted)
    assert s.is_contiguous(memory_format=torch.channels_last)

    def truth(dtype):
        ones = torch.ones(case.shape[1], dtype=dtype)
        return reference.forward(wanted.to(dtype), None, ones, ones, case.groups, GN_EPS, "none")[2:]

    for name, got, exact, plain in zip(
        ("mean", "rstd"), (mean, rstd), truth(torch.float64), truth(torch.float32), strict=True
    ):
        assert_matches(got, exact, plain, name=name)


def test_statistics_alone_of_a_large_sum(threads):
    threads(2)
    x, r = (torch.randn(3, 64, 64, 64).contiguous(memory_format=torch.channels_last) for _ in range(2))
    s, mean, rstd = statistics_alone(x, r, 32)
    assert torch.equal(s, x + r)
    grouped = (x + r).double().unflatten(1, (32, 2)).flatten(2)
    torch.testing.assert_close(mean.double(), grouped.mean(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(rstd.double(), (grouped.var(2, unbiased=False) + GN_EPS).rsqrt(), atol=0, rtol=1e-6)


def test_statistics_alone_refuse_what_they_cannot_read():
    x = torch.zeros(2, 32, 4, 4)
    for other in (x, x.contiguous(memory_format=torch.channels_last).double()):
        with pytest.raises(RuntimeError, match="statistics are of channels_last float32 images"):
            statistics_alone(other, None, 32)
    with pytest.raises(RuntimeError, match="residual must have the shape, dtype and layout of x"):
        statistics_alone(x.contiguous(memory_format=torch.channels_last), x, 32)


def test_outlier_in_the_first_pixel():
    x = torch.randn(1, 32, 30, 30, dtype=torch.float64)
    x[:, :, 0, 0] = 1e4
    w, b = torch.ones(32), torch.zeros(32)
    truth = reference.forward(x.float().double(), None, w.double(), b.double(), 32, GN_EPS, "none")[0]
    for layout in (torch.contiguous_format, torch.channels_last):
        x32 = x.float().contiguous(memory_format=layout)
        baseline = reference.forward(x32, None, w, b, 32, GN_EPS, "none")[0]
        assert_matches(group_norm_act(x32, w, b, act="none"), truth, baseline)


def test_not_finite_in_not_finite_out():
    x = torch.randn(2, 32, 8, 8)
    x[0, 3, 2, 2] = float("nan")
    x[1, 4, 0, 0] = float("inf")
    for layout in (torch.contiguous_format, torch.channels_last):
        for dtype in (torch.float32, torch.bfloat16):
            y = group_norm_act(x.to(dtype).contiguous(memory_format=layout), torch.ones(32), torch.zeros(32))
            assert y[0, 3].isnan().all() and y[1, 4].isnan().all()
            assert y[0, :3].isfinite().all() and y[1, 5:].isfinite().all()


X, P = torch.zeros(2, 32, 4, 4), torch.zeros(32)
BAD = {
    "not 4-D": (ValueError, r"\(2, 32, 4\)", (X[..., 0], P, P), {}),
    "no pixels": (ValueError, r"\(2, 32, 0, 4\)", (X[:, :, :0], P, P), {}),
    "dtype of x": (TypeError, "int32", (X.int(), P, P), {}),
    "groups do not divide": (ValueError, "groups is 5 and C is 32", (X, P, P), {"groups": 5}),
    "no groups": (ValueError, "groups is 0", (X, P, P), {"groups": 0}),
    "unknown act": (ValueError, "gelu.*none, relu, silu", (X, P, P), {"act": "gelu"}),
    "weight shape": (ValueError, r"weight has shape \(31,\).*\(32,\)", (X, P[1:], P), {}),
    "bias shape": (ValueError, r"bias has shape \(1, 32\)", (X, P, P[None]), {}),
    "weight dtype": (TypeError, "weight is torch.bfloat16.*torch.float32", (X, P.bfloat16(), P), {}),
    "fp32 parameters of fp64": (TypeError, "weight is torch.float32.*torch.float64", (X.double(), P, P), {}),
    "residual shape": (ValueError, r"residual has shape \(1, 32, 4, 4\)", (X, P, P), {"residual": X[:1]}),
    "residual dtype": (TypeError, "residual is torch.float64", (X, P, P), {"residual": X.double()}),
    "weight device": (ValueError, "weight is on meta", (X, P.to("meta"), P), {}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_what_it_saw(name):
    error, message, args, kwargs = BAD[name]
    with pytest.raises(error, match=message):
        group_norm_act(*args, **kwargs)
