"""What the native norm_conv keeps of kernels outside training, and what its parts refuse."""

import copy
import pickle

import pytest
import torch
from torch.nn import Parameter

import bitfast
from bitfast.model import ResNetV2
from bitfast.nn import StdConv2d
from bitfast.ops import norm_conv
from bitfast.ops.norm_conv import native

X = torch.randn(2, 64, 8, 8)


def evaluate(kernel):
    with torch.no_grad():
        return norm_conv(X, torch.ones(64), torch.zeros(64), [kernel], [1])[0]


def count(monkeypatch):
    made, make = [], native._filter
    monkeypatch.setattr(native, "_filter", lambda kernel, name: made.append(name) or make(kernel, name))
    return made


@pytest.mark.parametrize("size", [1, 3])
def test_filter_is_made_once(size, monkeypatch):
    made, kernel = count(monkeypatch), Parameter(torch.randn(64, 64, size, size))
    first, second = evaluate(kernel), evaluate(kernel)
    assert torch.equal(first, second) and len(made) == 1


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("change", ["add_", "copy_", "data", "load_state_dict", "step"])
def test_filter_is_made_again_after_a_change(size, change):
    module = StdConv2d(64, 64, size)
    kernel = module.weight
    before = evaluate(kernel)
    new = torch.randn_like(kernel)
    if change == "add_":
        with torch.no_grad():
            kernel.add_(new)
    elif change == "copy_":
        with torch.inference_mode():
            kernel.copy_(new)
    elif change == "data":
        kernel.data = new
    elif change == "load_state_dict":
        module.load_state_dict({"weight": new})
    else:
        kernel.grad = new
        torch.optim.SGD([kernel], lr=0.1).step()
    after = evaluate(kernel)
    assert torch.equal(after, evaluate(kernel.detach().clone())) and not torch.equal(before, after)


def test_each_algorithm_has_its_own_filter():
    kernel = Parameter(torch.randn(64, 64, 3, 3))
    for x in (X, X[:1, :, :4, :4], X):
        with torch.no_grad():
            got, want = (
                norm_conv(x, torch.ones(64), torch.zeros(64), [k], [1])[0] for k in (kernel, kernel.detach().clone())
            )
        assert torch.equal(got, want)


def test_no_filter_is_kept_of_kernels_that_change_unseen():
    with torch.inference_mode():
        for kernel in (Parameter(torch.randn(64, 64, 3, 3)), torch.randn(64, 64, 3, 3)):
            before = evaluate(kernel)
            kernel.mul_(2)
            assert not torch.equal(before, evaluate(kernel))


def test_no_filter_is_kept_in_training(monkeypatch):
    made, kernel = count(monkeypatch), Parameter(torch.randn(64, 64, 3, 3))
    for _ in range(2):
        norm_conv(X, torch.ones(64), torch.zeros(64), [kernel], [1])
    assert len(made) == 2


def test_filter_dies_with_the_kernel():
    kernel = Parameter(torch.randn(64, 64, 3, 3))
    evaluate(kernel)
    kept = len(native._FILTERS)
    del kernel
    assert len(native._FILTERS) == kept - 1


def test_kernels_made_by_compiled_code_are_read_anew():
    x, w, b = torch.randn(2, 64, 8, 8), torch.ones(64), torch.zeros(64)
    kernels = [torch.randn(64, 64, 3, 3) for _ in range(2)]

    def twice(x, first, second):
        (y,) = norm_conv(x, w, b, [first * 2], [1])
        return norm_conv(y, w, b, [second * 3 + 0 * y.sum()], [1])[0]

    compiled = torch.compile(twice, fullgraph=True)
    with torch.no_grad():
        for order in (kernels, kernels[::-1]):
            torch.testing.assert_close(compiled(x, *order), twice(x, *order), rtol=1e-4, atol=1e-4)


def test_network_can_be_copied_and_pickled_and_trained_on():
    network = bitfast.fold(ResNetV2((1, 1, 1, 1), 0.5, 0)).eval()
    images = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        want = network(images)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(other(images), want)
            other.stages[0].blocks[0].conv2.weight.mul_(-1)
            assert not torch.equal(other(images), want) and torch.equal(network(images), want)
    network(images).sum().backward()


def last(*shape):
    return torch.zeros(shape).contiguous(memory_format=torch.channels_last)


P, OPS = torch.zeros(32), torch.ops.bitfast_native
BAD_NATIVE = {
    "image contiguous": ("channels_last", "gemm_conv", (X, None, torch.zeros(32, 3, 3, 64), 1)),
    "image double": ("float32", "gemm_conv", (last(2, 32, 4, 4).double(), None, torch.zeros(32, 3, 3, 32), 1)),
    "image of 40 channels": ("multiple of 32", "gemm_filter", (last(32, 40, 3, 3),)),
    "image 3-D": ("channels_last", "gemm_conv", (X[0], None, torch.zeros(32, 3, 3, 8), 1)),
    "kernel of 5x5": ("O, I, 3, 3", "gemm_filter", (last(32, 32, 5, 5),)),
    "kernel of 40 outputs": ("32 outputs", "winograd_filter", (last(40, 32, 3, 3), False)),
    "winograd of 1x1": ("O, I, 3, 3", "winograd_filter", (last(32, 32, 1, 1), False)),
    "panels of other channels": ("panels", "gemm_conv", (last(2, 32, 4, 4), None, torch.zeros(32, 3, 3, 64), 1)),
    "panels of 5x5": ("kernel must be", "gemm_conv", (last(2, 32, 4, 4), None, torch.zeros(32, 5, 5, 32), 1)),
    "stride 0": ("stride", "gemm_conv", (last(2, 32, 4, 4), None, torch.zeros(32, 3, 3, 32), 0)),
    "filter too short": ("filter", "winograd_conv", (last(2, 32, 4, 4), None, torch.zeros(32, 36 * 31))),
    "rows of other images": (
        "norm_rows",
        "winograd_conv",
        (last(2, 32, 4, 4), torch.zeros(1, 3, 32), torch.zeros(32, 1152)),
    ),
    "dy of other size": ("dy must", "gemm_weight_gradient", (last(2, 32, 4, 4), None, last(2, 32, 4, 4), 3, 2)),
    "dy of other batch": ("dy must", "winograd_weight_gradient", (last(2, 32, 4, 4), None, last(1, 32, 4, 4))),
    "dy of other outputs": ("dy must", "gemm_input_gradient", (last(2, 64, 4, 4), last(32, 32, 3, 3), 4, 4, 1)),
    "dx of other size": ("dy must", "gemm_input_gradient", (last(2, 32, 4, 4), last(32, 32, 3, 3), 9, 4, 2)),
    "dx to add to, of other size": (
        "dy must",
        "add_gemm_input_gradient",
        (last(2, 32, 9, 4), last(2, 32, 4, 4), last(32, 32, 3, 3), 2),
    ),
    "dx to add to, of other channels": (
        "channels of weight",
        "add_gemm_input_gradient",
        (last(2, 64, 4, 4), last(2, 32, 4, 4), last(32, 32, 3, 3), 1),
    ),
    "dx of no size": ("dy must", "gemm_input_gradient", (last(2, 32, 4, 4), last(32, 32, 3, 3), 0, 4, 1)),
    "bias of norm_rows": ("weight and bias", "norm_rows", (torch.zeros(2, 32), torch.zeros(2, 32), P, P[1:])),
    "groups of norm_rows": ("mean and rstd", "norm_rows", (torch.zeros(2, 5), torch.zeros(2, 5), P, P)),
}


@pytest.mark.parametrize("name", BAD_NATIVE)
def test_native_refuses_what_would_leave_memory(name):
    message, op, args = BAD_NATIVE[name]
    assert not native.native_missing()
    with pytest.raises(RuntimeError, match=message):
        getattr(OPS, op)(*args)


def test_native_weight_gradients_of_no_images_are_zero():
    x = torch.zeros(0, 64, 8, 8).as_strided((0, 64, 8, 8), (4096, 1, 512, 64))
    for dw in (OPS.gemm_weight_gradient(x, None, x, 3, 1), OPS.winograd_weight_gradient(x, None, x)):
        assert torch.equal(dw, torch.zeros(64, 64, 3, 3))


@pytest.mark.parametrize("size, stride, outputs", [(1, 1, 64), (1, 2, 64), (3, 1, 32), (3, 2, 192), (1, 3, 512)])
def test_input_gradient_is_added_to_what_is_there(size, stride, outputs):
    dx, weight = torch.randn(3, 64, 7, 5), torch.randn(outputs, 64, size, size)
    dy = torch.randn(3, outputs, (7 - 1) // stride + 1, (5 - 1) // stride + 1)
    dx, weight, dy = (t.contiguous(memory_format=torch.channels_last) for t in (dx, weight, dy))
    want = dx + OPS.gemm_input_gradient(dy, weight, 7, 5, stride)
    OPS.add_gemm_input_gradient(dx, dy, weight, stride)
    torch.testing.assert_close(dx, want, rtol=1e-5, atol=1e-4)
