"""Whole networks with every Triton kernel, against the definition: R50x1 on a GPU in the lane `-m gpu`; in the default
lane a small network on the CPU, through the interpreter."""

import copy
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F

import bitfast
from bitfast.ops import _dispatch, use_impl

if not find_spec("triton"):
    pytest.skip("there is no triton for macOS", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# RMS of the error of logits and of all gradients, relative to the RMS of the truth.
BOUND = {torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.03}


@pytest.fixture(autouse=True)
def whole_fp32():
    """Convolutions in fp32 are computed in fp32, and not in TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@contextmanager
def implementations(name):
    """Of every operator that has one of this name; norm_conv is made of the others."""
    with ExitStack() as stack:
        for op, impls in _dispatch._table.items():
            for forced in {name, "composed"} & {impl.name for impl in impls}:
                stack.enter_context(use_impl(op, forced))
        yield


def setting(device):
    """A network with a head that is not zero, and images and labels for it, all on the CPU."""
    if device.type == "cuda":
        model, images = bitfast.resnet50x1(num_classes=10), torch.randn(16, 3, 128, 128)
    else:
        model, images = bitfast.ResNetV2((1, 1), 0.5, num_classes=10), torch.randn(4, 3, 24, 32)
    torch.nn.init.normal_(model.head.fc.weight, std=0.02)
    return model, images, torch.randint(10, (len(images),))


def logits_and_gradients(network, images, labels):
    logits = network(images)
    # Scaled, so that nothing falls below what float16 holds.
    loss = 1024 * F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return [logits.detach(), *gradients]


def error(got, truth):
    """RMS ratio, over the tensors of each."""
    squares = [((g.double().cpu() - t) ** 2).mean() / (t**2).mean() for g, t in zip(got, truth, strict=True)]
    assert all(g.isfinite().all() for g in got)
    return float(torch.stack(squares).mean().sqrt())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_logits_and_gradients(dtype, triton_device):
    model, images, labels = setting(triton_device)
    truth = logits_and_gradients(bitfast.fold(copy.deepcopy(model).double()), images.double(), labels)
    network = bitfast.fold(model.to(triton_device), dtype)
    of = {}
    for name in ("triton", "reference"):
        with implementations(name):
            got = logits_and_gradients(network, images.to(triton_device), labels.to(triton_device))
        of[name] = error(got[:1], truth[:1]), error(got[1:], truth[1:])
    for ours, theirs in zip(of["triton"], of["reference"], strict=True):
        assert ours <= BOUND[dtype] and ours <= 1.5 * theirs + 1e-6, of


def train(model, device, images, labels, steps, dtype=None):
    """The losses."""
    optimizer = bitfast.StandardizedSGD(model.to(device), lr=0.003, momentum=0.9, weight_decay=1e-4, dtype=dtype)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(optimizer.network(images.to(device)).float(), labels.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_training_equals_the_reference(triton_device):
    model, images, labels = setting(triton_device)
    steps, of = 50 if triton_device.type == "cuda" else 4, {}
    for name in ("triton", "reference"):
        with implementations(name):
            of[name] = train(copy.deepcopy(model), triton_device, images, labels, steps)
    assert of["triton"][-1] < of["triton"][0] - 0.01 * steps
    assert of["triton"] == pytest.approx(of["reference"], rel=0.02, abs=2e-3)


def test_compiles_whole(triton_device):
    model, images, _ = setting(triton_device)
    network, images = bitfast.fold(model.to(triton_device)), images.to(triton_device)
    backend = "inductor" if triton_device.type == "cuda" else "aot_eager"
    with implementations("triton"):
        got = torch.compile(network, fullgraph=True, backend=backend)(images)
        torch.testing.assert_close(got, network(images), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_training_step_in_a_graph(dtype):
    device = torch.device("cuda")
    model, images, labels = setting(device)
    images, labels = images.to(device), labels.to(device)
    eager = copy.deepcopy(model)
    expected = train(eager, device, images, labels, 8, dtype)

    optimizer = bitfast.StandardizedSGD(model.to(device), lr=0.003, momentum=0.9, weight_decay=1e-4, dtype=dtype)

    def step():
        loss = F.cross_entropy(optimizer.network(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        losses = [float(step()) for _ in range(3)]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for _ in range(5):
        graph.replay()
        losses.append(float(loss))
    assert losses == pytest.approx(expected, rel=1e-3 if dtype == torch.float32 else 0.02)
    for got, wanted in zip(model.parameters(), eager.parameters(), strict=True):
        assert (got - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6
