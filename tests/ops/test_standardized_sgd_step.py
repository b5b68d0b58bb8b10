import os
import subprocess
import sys

import pytest
import torch
from cases import LAYOUTS

from bitfast.errors import UsageError
from bitfast.numerics import WS_EPS, assert_matches
from bitfast.ops import standardized_sgd_step, use_impl, weight_standardize
from bitfast.ops.standardized_sgd import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
WEIGHTS = [(64, 3, 7, 7), (24, 33, 3, 3), (32, 128, 1, 1), (48, 192, 3, 3), (5, 3, 2, 3), (0, 4, 3, 3), (7, 11)]
PLAIN = [(64,), (10, 1000), (1,), (6, 5, 3, 3), (0,)]
RULE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
EPS = [WS_EPS, 1e-3] * 4


@pytest.fixture(params=["native", "reference"])
def impl(request):
    with use_impl("standardized_sgd", request.param):
        yield request.param


def named(value):
    return str(value).removeprefix("torch.")


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=named)
every_network = pytest.mark.parametrize("network", DTYPES, ids=named)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_order = pytest.mark.parametrize("order", LAYOUTS)


def state(dtype, network, layout, order, momentum=True):
    """The lists of one step, the same on every call: the model in `dtype` and `layout`, the network in its own."""
    generator = torch.Generator().manual_seed(0)

    def normal(shapes, dtype, layout, scale=1.0):
        values = [(torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(dtype) for s in shapes]
        return [v.contiguous(memory_format=LAYOUTS[layout]) if v.dim() == 4 else v for v in values]

    return {
        "parameters": normal(WEIGHTS + PLAIN, dtype, layout, 0.1),
        "gradients": normal(WEIGHTS, network, order) + normal(PLAIN, dtype, order),
        "momenta": normal(WEIGHTS, dtype, layout) + normal(PLAIN, dtype, order) if momentum else [],
        "w_hats": [torch.full_like(w, float("nan")) for w in normal(WEIGHTS, network, order)],
    }


def averaging(lists):
    """The arguments of a step that keeps averages, decays decoupled, as the operator takes them."""
    return [torch.randn(p.shape).to(p) for p in lists["parameters"]], True, 0.9


def as_dtype(lists, dtype):
    return {name: [t.to(dtype, copy=True) for t in tensors] for name, tensors in lists.items()}


def stepped(lists, steps=2, **rule):
    for _ in range(steps):
        standardized_sgd_step(*lists.values(), EPS[: len(WEIGHTS)], **(RULE | rule))
    return lists


def defined(lists, steps=2, **rule):
    for _ in range(steps):
        reference.step(*lists.values(), EPS[: len(WEIGHTS)], **(RULE | rule))
    return lists


@every_dtype
@every_network
@every_layout
@every_order
def test_matches_definition(dtype, network, layout, order, impl):
    before = state(dtype, network, layout, order)
    strides = {name: [t.stride() for t in tensors] for name, tensors in before.items()}
    truth, baseline = defined(as_dtype(before, torch.float64)), defined(as_dtype(before, dtype))
    for name, tensors in stepped(before).items():
        assert [t.stride() for t in tensors] == strides[name]
        for i, (got, t, b) in enumerate(zip(tensors, truth[name], baseline[name], strict=True)):
            assert_matches(got, t, b.to(got.dtype), name=f"{name}[{i}]")


@every_dtype
@pytest.mark.parametrize("rule", [{"weight_decay": 0.0}, {"lr": 0.0}, {"momentum": 0.0, "momenta": False}], ids=str)
def test_every_rule(dtype, rule, impl):
    rule = dict(rule)
    before = state(dtype, dtype, "contiguous", "channels_last", rule.pop("momenta", True))
    truth, baseline = defined(as_dtype(before, torch.float64), **rule), defined(as_dtype(before, dtype), **rule)
    for name, tensors in stepped(before, **rule).items():
        for got, t, b in zip(tensors, truth[name], baseline[name], strict=True):
            assert_matches(got, t, b, name=name)


@every_dtype
@every_layout
@pytest.mark.parametrize("momentum", [True, False])
def test_averages_and_decoupled_decay(dtype, layout, momentum, impl):
    before = state(dtype, dtype, "contiguous", layout, momentum)
    before["averages"] = [torch.randn(p.shape).to(p) for p in before["parameters"]]
    for i, a in enumerate(before["averages"]):
        before["averages"][i] = a.contiguous(memory_format=LAYOUTS[layout]) if a.dim() == 4 else a
    rule = RULE | {"decoupled": True, "ema_decay": 0.9}

    def step(lists, function):
        *lists, averages = lists.values()
        for _ in range(2):
            function(*lists, EPS[: len(WEIGHTS)], averages=averages, **rule)

    truth, baseline = as_dtype(before, torch.float64), as_dtype(before, dtype)
    step(truth, reference.step)
    step(baseline, reference.step)
    step(before, standardized_sgd_step)
    for name, tensors in before.items():
        for i, (got, t, b) in enumerate(zip(tensors, truth[name], baseline[name], strict=True)):
            assert_matches(got, t, b, name=f"{name}[{i}]")


def test_decoupled_decay_is_that_of_adamw():
    w, a = torch.full((3,), 2.0, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    g = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    standardized_sgd_step([w], [g], [], [], [], averages=[a], decoupled=True, ema_decay=0.75, **RULE)
    assert torch.allclose(w, 2 * (1 - 0.1 * 0.01) - 0.1 * g, rtol=1e-15)
    assert torch.allclose(a, 0.75 + 0.25 * w, rtol=1e-15)


@every_dtype
@every_network
def test_w_hats_are_those_of_the_new_weights(dtype, network):
    lists = stepped(state(dtype, network, "contiguous", "channels_last"))
    for w, w_hat, eps in zip(lists["parameters"], lists["w_hats"], EPS, strict=False):
        assert torch.equal(weight_standardize([w], eps, network)[0], w_hat)


@every_dtype
@every_layout
@every_order
def test_bit_equal_for_any_threads_and_again(dtype, layout, order, impl, threads):
    results = []
    for count in (1, 2, 3, 3):
        threads(count)
        results.append(sum(stepped(state(dtype, dtype, layout, order)).values(), []))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("network", [torch.float32, torch.bfloat16], ids=named)
def test_large_results_are_stored_past_the_caches(network, threads):
    threads(2)
    w = torch.randn(512, 1024, 3, 3) * 0.02
    d = torch.randn(w.shape).to(network).contiguous(memory_format=torch.channels_last)
    lists = {"parameters": [w], "gradients": [d], "momenta": [torch.randn(w.shape)], "w_hats": [torch.empty_like(d)]}
    truth, baseline = (as_dtype(lists, dtype) for dtype in (torch.float64, torch.float32))
    for each in (truth, baseline):
        reference.step(*each.values(), [WS_EPS], **RULE)
    with use_impl("standardized_sgd", "native"):
        standardized_sgd_step(*lists.values(), [WS_EPS], **RULE)
    for name, (got,) in lists.items():
        assert_matches(got, truth[name][0], baseline[name][0].to(got.dtype), name=name)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets(isa):
    """The tests of this file again, where the kernels of another instruction set are chosen."""
    wanted = "matches_definition and native or past_the_caches"
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", wanted]
    result = subprocess.run(command, env=os.environ | {"BITFAST_CPU_ISA": isa}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_versions_count_up(impl):
    lists = state(torch.float32, torch.bfloat16, "contiguous", "channels_last")
    lists["averages"] = averaging(lists)[0]
    before = {name: [t._version for t in tensors] for name, tensors in lists.items()}
    *rest, averages = lists.values()
    standardized_sgd_step(*rest, EPS[: len(WEIGHTS)], averages=averages, **RULE)
    for name, tensors in lists.items():
        for t, version in zip(tensors, before[name], strict=True):
            assert (t._version > version) == (name != "gradients"), name


def test_changed_weights_are_not_used_in_a_backward(impl):
    w, w_hat = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3, requires_grad=True)
    loss = w_hat.square().sum()
    standardized_sgd_step([w], [torch.randn_like(w)], [], [w_hat], [WS_EPS], **RULE)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_opcheck(impl):
    lists = state(torch.float32, torch.bfloat16, "contiguous", "channels_last")
    torch.library.opcheck(
        torch.ops.bitfast.standardized_sgd_step,
        (*lists.values(), EPS[: len(WEIGHTS)], *RULE.values(), *averaging(lists)),
    )


def test_compiles_whole(impl):
    got, want = (state(torch.float32, torch.float32, "contiguous", "channels_last") for _ in range(2))
    torch.compile(stepped, fullgraph=True, backend="aot_eager")(got)
    stepped(want)
    for name in want:
        assert all(torch.equal(a, b) for a, b in zip(got[name], want[name], strict=True)), name


def test_nothing_to_do():
    standardized_sgd_step([], [], [], [], [], **RULE)


def test_gradient_of_any_strides(impl):
    w, d = torch.randn(4, 6, 3, 3), torch.randn(4, 6, 3, 6)
    for strided in (d[..., ::2], d[..., :3].transpose(2, 3), torch.ones(()).expand(w.shape)):
        got, want = [w.clone(), w.clone()], [w.clone(), w.clone()]
        standardized_sgd_step(got, [strided] * 2, [], [torch.empty_like(w)], [WS_EPS], **RULE)
        standardized_sgd_step(want, [strided.contiguous()] * 2, [], [torch.empty_like(w)], [WS_EPS], **RULE)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


def test_what_native_cannot_take_runs_as_reference():
    d = torch.randn(4, 6, 3, 3)
    views = [lambda x: x.half(), lambda x: x.transpose(2, 3), lambda x: torch.cat([x, x], 3)[..., ::2]]
    for view in views:
        got, want = view(d.clone()), view(d.clone())
        standardized_sgd_step([got], [d], [], [], [], **RULE)
        reference.step([want], [d], [], [], [], **RULE)
        assert torch.equal(got, want)
        with use_impl("standardized_sgd", "native"), pytest.raises(UsageError, match="cannot run"):
            standardized_sgd_step([got], [d], [], [], [], **RULE)


W, V = torch.zeros(4, 3, 3, 3), torch.zeros(4)
BAD = {
    "gradients": (ValueError, "gradients has 2 tensors.*1", ([V], [V, V], [], [], [])),
    "momenta": (ValueError, "momenta has 1 tensors.*2", ([V, V], [V, V], [V], [], [])),
    "w_hats": (ValueError, "w_hats has 2 tensors.*only 1", ([W], [W], [], [W, W], [0.0, 0.0])),
    "eps": (ValueError, "eps has 2 values.*1", ([W], [W], [], [W], [0.0, 0.0])),
    "weight is 1-D": (ValueError, r"parameters\[0\] has shape \(4,\)", ([V], [V], [], [V], [0.0])),
    "empty rows": (ValueError, r"\(4, 0, 3, 3\)", ([W[:, :0]], [W[:, :0]], [], [W[:, :0]], [0.0])),
    "averages": (ValueError, "averages has 1 tensors.*2", ([V, V], [V, V], [], [], [], [V])),
    "dtype": (TypeError, r"gradients\[0\] is torch.int64", ([V], [V.long()], [], [], [])),
    "shape": (ValueError, r"momenta\[1\] has shape \(3,\).*\(4,\)", ([V, V], [V, V], [V, V[1:]], [], [])),
    "device": (ValueError, r"gradients\[0\] is on meta; it must be on cpu", ([V], [V.to("meta")], [], [], [])),
    "shape of w_hat": (ValueError, r"w_hats\[0\] has shape \(2, 3", ([W], [W], [], [W[:2]], [0.0])),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_what_it_saw(name):
    error, message, args = BAD[name]
    with pytest.raises(error, match=message):
        standardized_sgd_step(*args[:5], averages=args[5] if len(args) > 5 else (), **RULE)
