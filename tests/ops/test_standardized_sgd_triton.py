"""The Triton kernel of the optimizer step: through the interpreter, or with `-m gpu` on a GPU."""

from itertools import product

import pytest
import torch
from cases import LAYOUTS
from test_standardized_sgd_step import RULE, as_dtype, named
from triton_lane import on, stored

from bitfast.errors import UsageError
from bitfast.numerics import WS_EPS, assert_matches
from bitfast.ops import standardized_sgd_step, use_impl, weight_standardize
from bitfast.ops._triton import recorded
from bitfast.ops.standardized_sgd import reference, triton_impl
from bitfast.ops.weight_std import reference as weight_std

# Rows of 5, 27, 64, 256, 297, 576, 1152 and 4608 elements, and plain parameters that begin and end anywhere.
WEIGHTS = [(2, 3, 3, 3), (33, 64, 1, 1), (3, 33, 3, 3), (9, 256, 1, 1), (5, 64, 3, 3), (2, 128, 3, 3), (2, 512, 3, 3)]
WEIGHTS += [(0, 4, 3, 3), (3, 5)]
PLAIN = [(64,), (10, 1000), (1,), (6, 5, 3, 3), (0,), ()]
EPS = [WS_EPS, 1e-3] * 4 + [WS_EPS]
LISTS = ("parameters", "gradients", "momenta", "w_hats")

SINGLE, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
COMBINATIONS = [(SINGLE, BRAIN, *layouts) for layouts in product(LAYOUTS, LAYOUTS)]
COMBINATIONS += [(SINGLE, SINGLE, "contiguous", "channels_last"), (SINGLE, HALF, "channels_last", "channels_last")]
COMBINATIONS += [(BRAIN, BRAIN, "contiguous", "channels_last"), (HALF, SINGLE, "contiguous", "channels_last")]


@pytest.fixture(autouse=True)
def triton():
    with use_impl("standardized_sgd", "triton"), use_impl("weight_std", "triton"):
        yield


def state(dtype=SINGLE, network=BRAIN, layout="contiguous", order="channels_last", momentum=True):
    """The lists of one step, the same on every call: the model in `dtype` and `layout`, the network in its own."""
    generator = torch.Generator().manual_seed(0)

    def normal(shapes, dtype, layout, scale=1.0):
        values = [(torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(dtype) for s in shapes]
        return [v.contiguous(memory_format=LAYOUTS[layout]) if v.dim() == 4 else v for v in values]

    parameters = normal(WEIGHTS + PLAIN, dtype, layout, 0.1)
    gradients = normal(WEIGHTS, network, order) + normal(PLAIN, dtype, order)
    momenta = normal(WEIGHTS + PLAIN, dtype, layout) if momentum else []
    w_hats = [torch.full_like(w, float("nan")) for w in normal(WEIGHTS, network, order)]
    return dict(zip(LISTS, (parameters, gradients, momenta, w_hats), strict=True))


def stepped(lists, **rule):
    standardized_sgd_step(*lists.values(), EPS, **(RULE | rule))
    return lists


def defined(lists, dtype, **rule):
    lists = as_dtype(lists, dtype)
    reference.step(*lists.values(), EPS, **(RULE | rule))
    return lists


def defined_by_cutting_off(before):
    """As the interpreter stores parameters in bf16: m is cut off, then w, of which w_hat is made."""
    exact = defined(before, SINGLE)
    momenta = [stored(m, BRAIN) for m in exact["momenta"]]
    moved = zip(before["parameters"], momenta, strict=True)
    parameters = [stored(w.float() - RULE["lr"] * m.float(), BRAIN) for w, m in moved]
    w_hats = [weight_std.forward([w.float()], eps, None)[0] for w, eps in zip(parameters, EPS, strict=False)]
    return exact | {"parameters": parameters, "momenta": momenta, "w_hats": [stored(w_hat, BRAIN) for w_hat in w_hats]}


def check(before, device, dtype=SINGLE, **rule):
    strides = {name: [t.stride() for t in tensors] for name, tensors in before.items()}
    truth, baseline = (defined(before, each, **rule) for each in (torch.float64, dtype))
    if dtype == BRAIN and torch.device(device).type == "cpu":
        baseline = defined_by_cutting_off(before)
    for name, tensors in stepped(on(device, before), **rule).items():
        assert [t.stride() for t in tensors] == strides[name]
        for i, (got, t, b) in enumerate(zip(tensors, truth[name], baseline[name], strict=True)):
            assert_matches(got, t, b.to(got.dtype), name=f"{name}[{i}]")


@pytest.mark.parametrize(("dtype", "network", "layout", "order"), COMBINATIONS, ids=named)
def test_matches_definition(dtype, network, layout, order, triton_device):
    check(state(dtype, network, layout, order), triton_device, dtype)


@pytest.mark.parametrize("rule", [{"weight_decay": 0.0}, {"lr": 0.0}, {"momentum": 0.0, "momenta": False}], ids=str)
def test_every_rule(rule, triton_device):
    rule = dict(rule)
    check(state(network=SINGLE, momentum=rule.pop("momenta", True)), triton_device, **rule)


@pytest.mark.parametrize("momentum, layout", [(True, "contiguous"), (False, "channels_last")])
def test_averages_and_decoupled_decay(momentum, layout, triton_device):
    before = state(network=SINGLE, momentum=momentum)
    before["averages"] = [torch.randn(p.shape) for p in before["parameters"]]
    for i, a in enumerate(before["averages"]):
        before["averages"][i] = a.contiguous(memory_format=LAYOUTS[layout]) if a.dim() == 4 else a
    rule = RULE | {"decoupled": True, "ema_decay": 0.9}

    def step(lists, function):
        *rest, averages = lists.values()
        function(*rest, EPS, averages=averages, **rule)
        return lists

    truth, baseline = (step(as_dtype(before, each), reference.step) for each in (torch.float64, SINGLE))
    for name, tensors in step(on(triton_device, before), standardized_sgd_step).items():
        for i, (got, t, b) in enumerate(zip(tensors, truth[name], baseline[name], strict=True)):
            assert_matches(got, t, b, name=f"{name}[{i}]")


def test_momenta_in_another_layout(triton_device):
    before = state()
    for i, m in enumerate(before["momenta"]):
        before["momenta"][i] = m.contiguous(memory_format=torch.channels_last) if m.dim() == 4 else m
    check(before, triton_device)


def test_mixed_dtypes_in_one_call(triton_device):
    shapes = [(4, 16, 3, 3), (3, 8, 1, 1), (16,), (5,)]
    dtypes = [(SINGLE, BRAIN), (HALF, SINGLE), (SINGLE, SINGLE), (HALF, BRAIN)]
    parameters = [torch.randn(s).to(d) for s, (d, _) in zip(shapes, dtypes, strict=True)]
    gradients = [torch.randn(s).to(d) for s, (_, d) in zip(shapes, dtypes, strict=True)]
    lists = (parameters, gradients, [torch.randn_like(p) for p in parameters], [g.clone() for g in gradients[:2]])
    truth, baseline = as_dtype(dict(zip(LISTS, lists, strict=True)), torch.float64), on("cpu", lists)
    reference.step(*truth.values(), EPS[:2], **RULE)
    reference.step(*baseline, EPS[:2], **RULE)
    got = on(triton_device, lists)
    with recorded() as launches:
        standardized_sgd_step(*got, EPS[:2], **RULE)
    assert len(launches) == 2, "plain parameters join the weights of their dtype"
    standardized_sgd_step(*got, EPS[:2], **RULE)
    for tensors, exact, base in zip(got, truth.values(), baseline, strict=True):
        for a, t, b in zip(tensors, exact, base, strict=True):
            assert_matches(a, t, b)


def test_lr_on_the_device(triton_device):
    want, got = (on(triton_device, state()) for _ in range(2))
    stepped(want)
    lr = torch.tensor(RULE["lr"], device=triton_device)
    triton_impl.step(*got.values(), EPS, lr, RULE["momentum"], RULE["weight_decay"])
    for name in LISTS:
        assert all(map(torch.equal, got[name], want[name])), name


def test_bit_equal_again(triton_device):
    first, second = (stepped(on(triton_device, state())) for _ in range(2))
    for name in LISTS:
        assert all(map(torch.equal, first[name], second[name])), name


def test_w_hats_are_those_of_the_new_weights(triton_device):
    lists = stepped(on(triton_device, state(network=SINGLE)))
    for w, w_hat, eps in zip(lists["parameters"], lists["w_hats"], EPS, strict=False):
        torch.testing.assert_close(weight_standardize([w], eps)[0], w_hat, rtol=1e-5, atol=1e-5)


def test_versions_count_up(triton_device):
    lists = on(triton_device, state())
    stepped(lists)
    for name, tensors in lists.items():
        assert all((t._version > 1) == (name != "gradients") for t in tensors), name


def test_opcheck(triton_device):
    lists = on(triton_device, {name: tensors[-7:] for name, tensors in state().items()})
    arguments = [lists["parameters"], lists["gradients"], lists["momenta"], lists["w_hats"][-1:]]
    torch.library.opcheck(
        torch.ops.bitfast.standardized_sgd_step, (*arguments, EPS[:1], *RULE.values(), [], False, 0.0)
    )


def test_one_launch_for_a_network():
    with torch.device("meta"):
        lists = [[torch.empty(s) for s in WEIGHTS + PLAIN] for _ in range(3)]
    w_hats = [torch.empty_like(w, dtype=BRAIN) for w in lists[0][: len(WEIGHTS)]]
    lists[1][: len(WEIGHTS)] = w_hats
    with recorded() as launches:
        triton_impl.step(*lists, w_hats, EPS, *RULE.values())
        triton_impl.step([], [], [], [], [], *RULE.values())
    assert len(launches) == 1


def test_what_triton_cannot_take_is_said():
    w = torch.randn(4, 6, 3, 3)
    for refused, why in ((w.double(), "no torch.float64"), (w.transpose(2, 3), "neither contiguous nor channels_last")):
        with pytest.raises(UsageError, match=why):
            standardized_sgd_step([w, refused], [w, refused], [], [], [], **RULE)


@pytest.mark.gpu
def test_cuda_graph_of_a_step():
    """Replayed with the gradients, the weights and the lr that are there at that time."""
    want, got = (on("cuda", state()) for _ in range(2))
    lr = torch.tensor(RULE["lr"], device="cuda")
    rest = EPS, lr, RULE["momentum"], RULE["weight_decay"]
    triton_impl.step(*on("cuda", state()).values(), *rest)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        triton_impl.step(*got.values(), *rest)
    for value in (0.1, 0.05):
        stepped(want, lr=value)
        lr.fill_(value)
        graph.replay()
        for name in LISTS:
            assert all(map(torch.equal, got[name], want[name])), name
        for lists in (want, got):
            for d in lists["gradients"]:
                d.mul_(0.5)
