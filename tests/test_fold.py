"""fold(): same outputs, shared norms and head, plain convolutions, an untouched model."""

import torch
from torch import nn

import bitfast
from bitfast.nn import StdConv2d


def seeded():
    torch.manual_seed(0)
    model = bitfast.resnet26x0_5(num_classes=5)
    nn.init.normal_(model.head.fc.weight, std=0.05)
    return model


def test_same_output_and_names():
    model, images = seeded(), torch.randn(2, 3, 64, 48)
    folded = bitfast.fold(model)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-5, atol=1e-5)
    assert list(folded.state_dict()) == list(model.state_dict())


def test_plain_channels_last_leaves_in_the_asked_dtype():
    folded = bitfast.fold(seeded(), torch.bfloat16)
    assert not any(isinstance(module, StdConv2d) for module in folded.modules())
    weight = folded.stages[1].blocks[0].conv2.weight
    assert weight.dtype == torch.bfloat16 and weight.is_leaf and weight.requires_grad
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert folded(torch.randn(1, 3, 32, 32)).dtype == torch.float32


def test_norms_and_head_are_shared_and_convolutions_are_not():
    model = seeded()
    folded = bitfast.fold(model)
    for name, parameter in folded.named_parameters():
        raw = model.get_parameter(name)
        standardized = isinstance(model.get_submodule(name.removesuffix(".weight").removesuffix(".bias")), StdConv2d)
        assert (parameter is raw) != standardized


def test_model_is_unchanged():
    model = seeded()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = bitfast.fold(model).eval()
    folded(torch.randn(1, 3, 32, 32)).sum().backward()
    assert model.training and not folded.training
    assert isinstance(model.stem.conv, StdConv2d)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_part_of_a_larger_module():
    backbone = nn.Sequential(seeded(), nn.Linear(5, 2), nn.Identity())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(bitfast.fold(backbone)(images), backbone(images), rtol=1e-5, atol=1e-5)
