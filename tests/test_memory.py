"""memory="save" and "fast": the same values, and the bytes that are said to be kept."""

import pytest
import torch
from torch.nn import functional as F

import bitfast
from bitfast.memory import activation_bytes
from bitfast.ops.norm_conv import native

MODES = ["fast", "save"]


def trained(memory, dtype=torch.float32):
    """(logits, optimizer) after a backward of the seeded small network in the mode."""
    torch.manual_seed(0)
    model = bitfast.resnet26x0_5(num_classes=5)
    torch.nn.init.normal_(model.head.fc.weight, std=0.05)
    optimizer = bitfast.StandardizedSGD(model.to(dtype), lr=0.1, memory=memory)
    logits = optimizer.network(torch.randn(4, 3, 64, 48, dtype=dtype))
    F.cross_entropy(logits, torch.arange(4)).backward()
    return logits, optimizer


def gradients(optimizer):
    return {name: parameter.grad for name, parameter in optimizer.network.named_parameters()}


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_both_modes_are_equal(dtype, rtol):
    (fast, a), (save, b) = trained("fast", dtype), trained("save", dtype)
    torch.testing.assert_close(save, fast, rtol=rtol, atol=rtol)
    expected = gradients(a)
    for name, gradient in gradients(b).items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error <= rtol, f"{name}: {error:.2g}"


def test_both_modes_are_one_where_norm_conv_is_native():
    if all((c.op, c.impl) != ("norm_conv", "native") for c in bitfast.ops.report()):
        pytest.fail("the native library is not built")
    (fast, a), (save, b) = trained("fast"), trained("save")
    assert torch.equal(fast, save)
    expected = gradients(a)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(b).items())


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_what_autograd_keeps(dtype, memory):
    model = bitfast.resnet26x0_5(num_classes=5)
    model.memory = memory
    network = bitfast.StandardizedSGD(model, lr=0.1, dtype=dtype).network
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.randn(8, 3, 64, 64))
    got = sum(nbytes for pointer, (nbytes, _) in kept.items() if pointer not in weights)
    assert got == pytest.approx(8 * activation_bytes(model, 64, dtype, torch.device("cpu")), rel=0.02)


def test_saving_keeps_less_where_norm_conv_is_composed(monkeypatch):
    monkeypatch.setattr(native, "bfloat16_is_fast", lambda: True)
    model = bitfast.resnet26x0_5()
    counts = {}
    for model.memory in MODES:
        counts[model.memory] = activation_bytes(model, 64, torch.bfloat16, torch.device("cpu"))
    assert counts["save"] < 0.6 * counts["fast"]


def test_mode_is_that_of_the_model_or_its_own():
    model = bitfast.resnet26x0_5()
    assert model.memory == "fast"
    twin = bitfast.fold(model, memory="save")
    assert (twin.memory, model.memory) == ("save", "fast")
    model.memory = "save"
    assert all(block.memory == "save" for stage in model.stages for block in stage.blocks)
    assert bitfast.fold(model).memory == "save" and bitfast.fold(model, memory="fast").memory == "fast"
    assert bitfast.StandardizedSGD(model, lr=0.1).network.memory == "save"


def test_unknown_mode_names_the_two():
    model = bitfast.resnet26x0_5()
    with pytest.raises(ValueError, match="'slow'.*fast, save"):
        model.memory = "slow"
    with pytest.raises(ValueError, match="'slow'.*fast, save"):
        bitfast.fold(model, memory="slow")
    with pytest.raises(ValueError, match="'slow'.*fast, save"):
        bitfast.StandardizedSGD(model, lr=0.1, memory="slow")
