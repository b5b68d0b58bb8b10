"""The CUDA kernel of the optimizer step: on the host behind tests/simt, or with `-m gpu` on a GPU."""

import pytest
import torch
from test_standardized_sgd_step import RULE, named
from test_standardized_sgd_triton import BRAIN, COMBINATIONS, EPS, HALF, LISTS, SINGLE, check, state, stepped
from triton_lane import on

from bitfast.errors import UsageError
from bitfast.ops import _cuda, standardized_sgd_step, use_impl, weight_standardize


@pytest.fixture(autouse=True)
def cuda():
    with use_impl("standardized_sgd", "cuda"), use_impl("weight_std", "cuda"):
        yield


OF_SINGLE = [c for c in COMBINATIONS if c[0] == SINGLE]


@pytest.mark.parametrize(("dtype", "network", "layout", "order"), OF_SINGLE, ids=named)
def test_matches_definition(dtype, network, layout, order, cuda_device):
    check(state(dtype, network, layout, order), cuda_device)


@pytest.mark.parametrize("rule", [{"weight_decay": 0.0}, {"lr": 0.0}, {"momentum": 0.0, "momenta": False}], ids=str)
def test_every_rule(rule, cuda_device):
    rule = dict(rule)
    check(state(network=SINGLE, momentum=rule.pop("momenta", True)), cuda_device, **rule)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_averages_and_decoupled_decay(layout, cuda_device):
    """a += (1 - ema_decay) * (w - a) of the new w; w = (1 - lr * weight_decay) * w - lr * m."""
    without, got = state(), on(cuda_device, state())
    averages = [torch.randn_like(p) for p in without["parameters"]]
    averages = [a.contiguous(memory_format=layout) if a.dim() == 4 else a for a in averages]
    own = on(cuda_device, averages)
    assert _cuda.supports(own[0]) == ""
    _cuda.operators(own[0]).standardized_sgd_step.default(*got.values(), EPS, *RULE.values(), own, True, 0.75)
    with use_impl("standardized_sgd", "reference"):
        stepped(without, weight_decay=0.0)
    for before, w, plain, a, old in zip(
        state()["parameters"], got["parameters"], without["parameters"], own, averages, strict=True
    ):
        torch.testing.assert_close(w.cpu(), plain - RULE["lr"] * RULE["weight_decay"] * before)
        torch.testing.assert_close(a.cpu(), old + 0.25 * (w.cpu() - old))


@pytest.mark.parametrize("network", [SINGLE, BRAIN], ids=named)
def test_rows_too_long_for_shared_memory(network, settings):
    settings(shared_per_block=34 << 10)
    check(state(network=network), "cpu")


def test_momenta_in_another_layout(cuda_device):
    before = state()
    for i, m in enumerate(before["momenta"]):
        before["momenta"][i] = m.contiguous(memory_format=torch.channels_last) if m.dim() == 4 else m
    check(before, cuda_device)


def test_gradient_of_another_dtype_than_the_network(cuda_device):
    before = state(network=BRAIN)
    before["w_hats"] = [w.half() for w in before["w_hats"]]
    check(before, cuda_device)


def test_any_order_of_threads_and_blocks_gives_the_same_bits(settings):
    want = stepped(state())
    for schedule in (1, 2, 3):
        settings(schedule)
        got = stepped(state())
        for name in LISTS:
            assert all(map(torch.equal, got[name], want[name])), (name, schedule)


def test_w_hats_are_those_of_the_new_weights(cuda_device):
    lists = stepped(on(cuda_device, state(network=SINGLE)))
    for w, w_hat, eps in zip(lists["parameters"], lists["w_hats"], EPS, strict=False):
        torch.testing.assert_close(weight_standardize([w], eps)[0], w_hat, rtol=1e-5, atol=1e-5)


def test_versions_count_up(cuda_device):
    lists = on(cuda_device, state())
    stepped(lists)
    for name, tensors in lists.items():
        assert all((t._version > 1) == (name != "gradients") for t in tensors), name


def test_what_the_kernel_cannot_take_is_said(on_host):
    w = torch.randn(4, 6, 3, 3)
    for refused, why in ((w.to(HALF), "one is torch.float16"), (w.transpose(2, 3), "neither contiguous nor")):
        with pytest.raises(UsageError, match=why):
            standardized_sgd_step([w, refused], [w, refused], [], [], [], **RULE)
        with pytest.raises(UsageError, match=why):
            standardized_sgd_step([w, w], [w, w], [w, refused], [], [], **RULE)


@pytest.mark.gpu
def test_cuda_graph_of_a_step(on_gpu):
    """Replayed with the gradients and the weights that are there at that time."""
    want, got = (on("cuda", state()) for _ in range(2))
    stepped(on("cuda", state()))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stepped(got)
    for _ in range(2):
        stepped(want)
        graph.replay()
        for name in LISTS:
            assert all(map(torch.equal, got[name], want[name])), name
