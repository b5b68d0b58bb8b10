"""create_model: names, aliases, cut networks, other channels; list_models."""

import numpy as np
import pytest
import torch
from golden import official as golden
from peers import import_timm

import bitfast
from bitfast.errors import UsageError, WeightsError
from bitfast.variants import VARIANTS
from bitfast.weights import identify, save_weights, timm_names

OFFICIAL = [name for name in VARIANTS if name != "resnet26x0_5"]


@pytest.fixture
def whole(tmp_path):
    """A resnet26x0_5 with every parameter random, and its weights file."""
    model = bitfast.resnet26x0_5(num_classes=7, eps=1e-8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2, 0.5)
    save_weights(model, tmp_path / "whole.safetensors")
    return model, tmp_path / "whole.safetensors"


@pytest.mark.parametrize("name", OFFICIAL)
def test_state_dict_is_timms(name):
    timm = import_timm()
    with torch.device("meta"):
        ours = bitfast.create_model(name, num_classes=1000)
        theirs = timm.create_model(f"resnetv2_{name.removeprefix('resnet')}_bit", num_classes=1000)
    shapes = [{key: tuple(value.shape) for key, value in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1] and list(shapes[0]) == list(shapes[1])


@pytest.mark.parametrize(
    ("name", "network", "classes", "size"),
    [
        ("BiT-M-R50x1", "resnet50x1", 21843, 224),
        ("BiT-S-R101x3", "resnet101x3", 1000, 224),
        ("BiT-M-R152x4-ILSVRC2012", "resnet152x4", 1000, 480),
        ("BiT-M-R50x1-CIFAR10", "resnet50x1", 10, 128),
        ("resnetv2_50x1_bit", "resnet50x1", 1000, 224),
        ("resnetv2_50x1_bit.goog_in21k", "resnet50x1", 21843, 224),
        ("resnetv2_152x4_bit.goog_in21k_ft_in1k", "resnet152x4", 1000, 480),
        ("resnetv2_101x1_bitm", "resnet101x1", 1000, 448),
        ("distill/R152x2_T_pet128", "resnet152x2", 37, 128),
    ],
)
def test_aliases(name, network, classes, size):
    with torch.device("meta"):
        model = bitfast.create_model(name)
    assert (model.depths, model.width) == VARIANTS[network] and model.num_classes == classes
    assert model.pretrained_cfg["input_size"] == (3, size, size) and model.default_cfg is model.pretrained_cfg


def test_every_name_of_timm_means_what_timm_means():
    timm = import_timm()
    tagged = {name for name in timm.list_pretrained("resnetv2_*_bit.*")}
    assert tagged == {name for name in timm_names() if "." in name}
    for name in tagged:
        cfg = timm.get_pretrained_cfg(name)
        with torch.device("meta"):
            ours = bitfast.create_model(name).pretrained_cfg
        assert ours["num_classes"] == cfg.num_classes and ours["input_size"] == cfg.input_size
        assert ours["interpolation"] == cfg.interpolation
        assert (ours["first_conv"], ours["classifier"]) == (cfg.first_conv, cfg.classifier)
        assert ours["mean"] == cfg.mean and ours["std"] == cfg.std


def test_constructors_of_distilled_and_teacher():
    with torch.device("meta"):
        students = bitfast.resnet50x1_distilled(), bitfast.resnet152x2_teacher(), bitfast.resnet152x2_teacher_384()
    assert [model.num_classes for model in students] == [1000] * 3
    tags = [model.pretrained_cfg["tag"] for model in students]
    assert tags == ["distill/R50x1_224", "distill/R152x2_T_224", "distill/R152x2_T_384"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("BiT-M-R50x2", "did you mean BiT-M-R50x"),
        ("resnetv2_50x1_bit.goog_in22k", "did you mean resnetv2_50x1_bit.goog_in21k"),
        ("resnet50x2", "did you mean resnet50x"),
    ],
)
def test_unknown_names(name, hint):
    with pytest.raises(UsageError, match=f"unknown model '{name}': {hint}"):
        bitfast.create_model(name)
    with pytest.raises(UsageError, match="unknown model"):
        identify("nothing like it")


def test_list_models():
    assert bitfast.list_models() == list(VARIANTS)
    assert bitfast.list_models("*50*") == ["resnet50x1", "resnet50x3"]
    assert bitfast.list_models(["*x1", "*x4"], exclude_filters="*101*") == ["resnet50x1", "resnet152x4"]
    assert bitfast.list_models("bit-m-*50x1", pretrained=True) == ["BiT-M-R50x1"]
    released = bitfast.list_models(pretrained=True)
    assert {"distill/R50x1_224", "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384"} < set(released)
    assert bitfast.list_models("*vit*") == []


def test_pretrained_true_of_an_alias_is_that_release(tmp_path, monkeypatch):
    monkeypatch.setenv("BITFAST_CACHE", str(tmp_path))
    monkeypatch.setenv("BITFAST_WEIGHTS_URL", "http://127.0.0.1:9/never")
    for name, file in (
        ("resnetv2_50x1_bit.goog_in21k_ft_in1k", "BiT-M-R50x1-ILSVRC2012"),
        ("resnet50x1", "BiT-M-R50x1"),
    ):
        with pytest.raises(WeightsError, match=f"^{file} is not on this machine"):
            bitfast.create_model(name, pretrained=True)
    with pytest.raises(WeightsError, match="^distill/R50x1_224 is not on this machine"):
        bitfast.resnet50x1(pretrained="resnetv2_50x1_bit_distilled")


@pytest.mark.parametrize("stages", [1, 2, 3])
@torch.no_grad()
def test_cut_network_from_whole_weights(whole, stages, capsys):
    model, path = whole
    cut = bitfast.create_model("resnet26x0_5", path, stages=stages, num_classes=3)
    said = capsys.readouterr().err
    assert f"the first {stages} of 4 stages, normalized as the next stage does" in said and "zero-initialized" in said
    images = torch.randn(2, 3, 48, 64)
    (features,) = model.forward_intermediates(images, [stages], intermediates_only=True)
    wanted = model.stages[stages].blocks[0].norm1(features)
    torch.testing.assert_close(cut.forward_features(images), wanted, rtol=1e-5, atol=1e-5)
    assert cut.ws_eps == 1e-8 and torch.equal(cut(images), torch.zeros(2, 3))
    assert cut.num_features == features.shape[1]


@torch.no_grad()
def test_cut_network_as_a_folder(whole, tmp_path):
    from bitfast.data.transform import Transform
    from bitfast.folder import load_model, save_model

    cut = bitfast.create_model("resnet26x0_5", whole[1], stages=2, num_classes=3)
    torch.nn.init.normal_(cut.head.fc.weight)
    save_model(tmp_path / "model", cut, "resnet26x0_5", ["a", "b", "c"], Transform.test(64), {})
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(load_model(tmp_path / "model").network(images), cut(images))
    assert torch.equal(bitfast.create_model("resnet26x0_5", tmp_path / "model", stages=2)(images), cut(images))
    with pytest.raises(WeightsError, match=r'first stages of a resnet26x0_5: create_model\("resnet26x0_5", stages=2\)'):
        bitfast.create_model("resnet26x0_5", tmp_path / "model")


@torch.no_grad()
def test_timm_loads_a_cut_folder(tmp_path):
    from bitfast.data.transform import Transform
    from bitfast.folder import save_model

    timm = import_timm()
    cut = bitfast.resnet50x1(stages=2, num_classes=3, eps=1e-8)
    torch.nn.init.normal_(cut.head.fc.weight, std=0.1)
    save_model(tmp_path / "model", cut, "resnet50x1", ["a", "b", "c"], Transform.test(64), {})
    theirs = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval().double()
    images = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    torch.testing.assert_close(theirs(images), cut.double()(images), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_feature_network_from_weights(whole):
    model, path = whole
    images = torch.randn(1, 3, 48, 64)
    for indices in ((1, 3), (4,), (0,)):
        network = bitfast.create_model("resnet26x0_5", path, features_only=True, out_indices=indices)
        wanted = model.forward_intermediates(images, indices, intermediates_only=True)
        torch.testing.assert_close(network(images), wanted)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_input_channels(whole, channels):
    manipulate = import_timm().models._manipulate
    model, path = whole
    got = bitfast.create_model("resnet26x0_5", path, in_chans=channels)
    wanted = manipulate.adapt_input_conv(channels, model.stem.conv.weight.detach())
    assert torch.equal(got.stem.conv.weight, wanted) and got.pretrained_cfg["input_size"] == (channels, 224, 224)
    assert got(torch.randn(1, channels, 32, 32)).shape == (1, 7)


def test_official_npz_with_numbered_names(tmp_path):
    """The layout of the files, layers numbered as in some of them, into the named constructor."""
    arrays = golden.seeded_weights((2, 2, 2, 2), 0.5, 6, seed=1)
    numbered = {
        k.replace("standardized_conv2d/", f"standardized_conv2d_{i}/"): v for i, (k, v) in enumerate(arrays.items())
    }
    np.savez(tmp_path / "numbered.npz", **{key: value.astype(np.float32) for key, value in numbered.items()})
    np.savez(tmp_path / "plain.npz", **{key: value.astype(np.float32) for key, value in arrays.items()})
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        a, b = (bitfast.resnet26x0_5(pretrained=tmp_path / f"{name}.npz")(images) for name in ("numbered", "plain"))
    assert torch.equal(a, b) and a.abs().min() > 0 and a.shape == (1, 6)


@pytest.mark.parametrize("stages", [0, 5, -1, 1.5, "2"])
def test_stages_that_are_not_there(stages):
    with pytest.raises(UsageError, match="can be cut after 1 to 4 of its stages"):
        bitfast.create_model("resnet26x0_5", stages=stages)


def test_out_indices_without_features_only():
    with pytest.raises(UsageError, match="out_indices needs features_only=True"):
        bitfast.create_model("resnet26x0_5", out_indices=(1,))
