"""accelerate(): a timm or HF network with our modules inside gives what it gave."""

import copy

import hf_bit
import peers
import pytest
import torch
from peers import hf_network, import_timm, logits
from torch import nn

import bitfast
from bitfast.acceleration import SummedBottleneck
from bitfast.errors import UsageError
from bitfast.model import set_memory
from bitfast.nn import GroupNormAct, StdConv2d

HALF_WIDTH = {"channels": (128, 256, 512, 1024), "stem_chs": 32, "num_classes": 5}


def timm_network(**options):
    return import_timm().create_model("resnetv2_50x1_bit", **HALF_WIDTH, **options)


def own_hf_network():
    return hf_bit.BitForImageClassification(**peers.HF_SIZES)


@pytest.fixture(params=[timm_network, hf_network, own_hf_network])
def network(request):
    model = request.param()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.5, 0.3)
    return model.eval()


def test_same_outputs_names_and_parameters(network):
    images = torch.randn(2, 3, 65, 48)
    before, names = {id(p): n for n, p in network.named_parameters()}, list(network.state_dict())
    with torch.no_grad():
        truth = logits(copy.deepcopy(network).double()(images.double()))
        assert bitfast.accelerate(network) is network
        got = logits(network(images))
    assert truth.abs().max() > 0.01
    assert (got - truth).norm() <= 1e-5 * truth.norm()
    assert {id(p): n for n, p in network.named_parameters()} == before
    assert list(network.state_dict()) == names
    assert any(isinstance(module, SummedBottleneck) for module in network.modules())
    theirs = ("timm", "transformers", "hf_bit")
    swapped = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.GroupNorm, GroupNormAct))]
    left = [type(m).__name__ for m in swapped if type(m).__module__.startswith(theirs)]
    assert left == [] and sum(isinstance(m, StdConv2d) for m in swapped) >= 13


def test_gradients(network):
    images = torch.randn(2, 3, 40, 33)
    truth = copy.deepcopy(network).double().train()
    logits(truth(images.double())).square().sum().backward()
    bitfast.accelerate(network.train())
    logits(network(images)).square().sum().backward()
    for (name, parameter), wanted in zip(network.named_parameters(), truth.parameters(), strict=True):
        assert (parameter.grad - wanted.grad).norm() <= 1e-4 * wanted.grad.norm(), name


def test_fold_and_standardized_sgd_take_it(network):
    images = torch.randn(2, 3, 40, 33)
    bitfast.accelerate(network)
    optimizer = bitfast.StandardizedSGD(network, lr=0.01)
    with torch.no_grad():
        torch.testing.assert_close(logits(optimizer.network(images)), logits(network(images)), rtol=1e-4, atol=1e-5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    logits(optimizer.network(images)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in network.named_parameters())
    set_memory(network, "save")


def test_timm_features_and_checkpointing():
    network = timm_network().eval()
    images = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        truths = copy.deepcopy(network).double().forward_intermediates(images.double())[1]
        before = network.forward_intermediates(images)[1]
        after = bitfast.accelerate(network).forward_intermediates(images)[1]
    for ours, theirs, truth in zip(after, before, truths, strict=True):
        assert (ours - truth).norm() <= 1e-5 * truth.norm() + 2 * (theirs - truth).norm()
    network.train()(images).sum().backward()
    plain = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    network.set_grad_checkpointing()
    network(images).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), plain, strict=True))


def test_dilated_network():
    network = timm_network(output_stride=16).eval()
    images = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        wanted = copy.deepcopy(network).double()(images.double())
        accelerated = bitfast.accelerate(network)
        for ours in (accelerated, bitfast.fold(accelerated)):
            assert (ours(images) - wanted).norm() <= 1e-5 * wanted.norm()


def test_again_and_ours_are_left_alone():
    network = bitfast.accelerate(own_hf_network())
    modules = dict(network.named_modules())
    assert dict(bitfast.accelerate(network).named_modules()) == modules
    ours = bitfast.ResNetV2((1,), 0.5)
    assert bitfast.accelerate(ours) is ours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.bit.norm, "activation", nn.SiLU()), "bit.norm .*activation is SiLU, BiT's is ReLU"),
        (lambda m: m.bit.norm.register_forward_hook(print), "bit.norm .*hooks.*accelerate first"),
        (lambda m: setattr(m.bit.embedder.convolution, "pad", nn.Identity()), "bit.embedder.convolution .*padding"),
        (
            lambda m: setattr(m.bit.encoder.stages[0].layers[0], "downsample", nn.AvgPool2d(2)),
            "stages.0.layers.0 .*shortcut is a AvgPool2d",
        ),
    ],
)
def test_what_cannot_be_swapped_is_refused_and_nothing_changed(change, message):
    network = own_hf_network()
    change(network)
    modules = dict(network.named_modules())
    with pytest.raises(UsageError, match=message):
        bitfast.accelerate(network)
    assert dict(network.named_modules()) == modules


def test_other_networks():
    with pytest.raises(UsageError, match="Sequential holds nothing to swap.*resnetv2_"):
        bitfast.accelerate(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)))
    with pytest.raises(UsageError, match="pass the network that holds it"):
        bitfast.accelerate(hf_bit.WeightStandardizedConv2d(3, 8, 3))


def test_same_padding_of_timm_is_refused():
    timm = import_timm()
    with pytest.raises(UsageError, match="StdConv2dSame.* cannot be swapped"):
        bitfast.accelerate(nn.Sequential(timm.layers.StdConv2dSame(3, 8, 3)))
