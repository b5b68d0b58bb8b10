"""Names, shapes, counts and edges of the network."""

import subprocess
import sys

import pytest
import torch

import bitfast
from bitfast.errors import UsageError
from bitfast.variants import VARIANTS

PARAMETERS = {  # with 1000 classes; BiT release and timm
    "resnet50x1": 25.55,
    "resnet101x1": 44.54,
    "resnet50x3": 217.32,
    "resnet101x3": 387.93,
    "resnet152x2": 236.34,
    "resnet152x4": 936.53,
}


@pytest.mark.parametrize("name, millions", PARAMETERS.items())
def test_parameter_counts(name, millions):
    with torch.device("meta"):
        model = getattr(bitfast, name)(num_classes=1000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("name, tensors", [("resnet50x1", 153), ("resnet101x3", 306), ("resnet152x4", 459)])
def test_number_of_tensors(name, tensors):
    with torch.device("meta"):
        assert len(bitfast.create_model(name).state_dict()) == tensors


def test_first_and_last_names_and_shapes():
    with torch.device("meta"):
        state = bitfast.resnet50x3(num_classes=7).state_dict()
    assert state["stem.conv.weight"].shape == (192, 3, 7, 7)
    assert state["stages.0.blocks.0.downsample.conv.weight"].shape == (768, 192, 1, 1)
    assert state["stages.3.blocks.2.conv2.weight"].shape == (1536, 1536, 3, 3)
    assert state["norm.bias"].shape == (6144,)
    assert state["head.fc.weight"].shape == (7, 6144, 1, 1)
    assert "stages.1.blocks.1.downsample.conv.weight" not in state


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (31, 33), (224, 64)])
def test_any_image_size(size):
    model = bitfast.resnet26x0_5(num_classes=4)
    torch.nn.init.normal_(model.head.fc.weight)
    out = model(torch.randn(2, 3, *size))
    assert out.shape == (2, 4) and out.isfinite().all()


def test_zero_head_and_no_head():
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(bitfast.resnet26x0_5(num_classes=4)(images), torch.zeros(2, 4))
    assert bitfast.resnet26x0_5(num_classes=0)(images).shape == (2, 1024)


def test_fractional_width_and_channels():
    model = bitfast.ResNetV2((1, 1), 1.5, num_classes=3, in_chans=1)
    assert model.stem.conv.weight.shape == (96, 1, 7, 7)
    assert model(torch.randn(1, 1, 40, 40)).shape == (1, 3)


@pytest.mark.parametrize("width", [0, -1, 0.3, 0.25, 0.75])
def test_width_that_does_not_divide_into_groups(width):
    with pytest.raises(ValueError, match="multiple of 0.5"):
        bitfast.ResNetV2((1,), width)


def test_eps_is_settable():
    model = bitfast.ResNetV2((1,), 0.5, eps=1e-8)
    assert model.ws_eps == 1e-8
    model.ws_eps = 1e-5
    assert model.stages[0].blocks[0].conv2.ws_eps == 1e-5


def test_unknown_name_has_a_suggestion():
    with pytest.raises(UsageError, match="did you mean resnet50x1"):
        bitfast.create_model("resnet50")


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
def test_half_precision_module(dtype, bound):
    model = bitfast.resnet26x0_5(num_classes=4).to(dtype)
    torch.nn.init.normal_(model.head.fc.weight, std=0.02)
    images = torch.randn(2, 3, 64, 64)
    wide = model.float()(images)
    narrow = model.to(dtype)(images)
    assert narrow.dtype == dtype
    assert (narrow.float() - wide).norm() / wide.norm() < bound


def test_names_of_the_variants_are_constructors():
    for name in VARIANTS:
        assert callable(getattr(bitfast, name))


def test_compiles_whole():
    model = bitfast.ResNetV2((1, 1), 0.5, num_classes=3)
    torch.nn.init.normal_(model.head.fc.weight)
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(bitfast.fold(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)


def test_public_names_survive_any_import_order():
    """A module named like a public function would replace it once imported."""
    code = "import bitfast, inspect\nfor n in bitfast.__all__[::-1]: getattr(bitfast, n)\n"
    code += "modules = [n for n in bitfast.__all__ if inspect.ismodule(getattr(bitfast, n))]\n"
    code += "assert modules == ['hyperrule', 'pretrain_rule']"
    subprocess.run([sys.executable, "-c", code], check=True)
