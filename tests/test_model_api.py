"""The parts of timm's model API, against timm where it is installed and against the network's own definition."""

import pytest
import torch
from peers import import_timm
from torch import nn

import bitfast
from bitfast.errors import UsageError
from bitfast.features import FeatureNetwork

HALF_WIDTH = {"channels": (128, 256, 512, 1024), "stem_chs": 32}


def seeded(**options):
    model = bitfast.ResNetV2((1, 2, 1, 1), 0.5, num_classes=5, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or parameter.shape[0] == 5:
                parameter.normal_(0.3, 0.2)
    return model.eval()


@pytest.fixture
def pair():
    """Ours and timm's network with the same weights, float64."""
    timm = import_timm()
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=5, **HALF_WIDTH).double().eval()
    ours = bitfast.ResNetV2((3, 4, 6, 3), 0.5, num_classes=5, eps=1e-8).double().eval()
    nn.init.normal_(theirs.head.fc.weight, std=0.1)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 2, "norm": True},
        {"indices": [0, -2]},
        {"indices": [2], "stop_early": True},
        {"indices": (1, 3), "intermediates_only": True},
        {"indices": [0], "stop_early": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_intermediates_are_timms(pair, options):
    images = torch.randn(2, 3, 61, 48, dtype=torch.float64)
    got, wanted = (network.forward_intermediates(images, **options) for network in pair)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_features_head_and_embedding_are_timms(pair):
    images = torch.randn(2, 3, 61, 48, dtype=torch.float64)
    ours, theirs = pair
    features = ours.forward_features(images)
    torch.testing.assert_close(features, theirs.forward_features(images), rtol=1e-9, atol=1e-9)
    for options in ({}, {"pre_logits": True}):
        got, wanted = ours.forward_head(features, **options), theirs.forward_head(features, **options)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert torch.equal(ours.forward_head(features), ours(images))
    for name in ("num_classes", "num_features", "head_hidden_size", "in_chans"):
        assert getattr(ours, name) == getattr(theirs, name)
    wanted = [(info["num_chs"], info["reduction"], info["module"]) for info in theirs.feature_info]
    info = ours.feature_info
    assert list(zip(info.channels(), info.reduction(), info.module_name(), strict=True)) == wanted
    for module in info.module_name():
        ours.get_submodule(module)


@pytest.mark.parametrize("coarse", [False, True])
def test_parameter_groups_are_timms(pair, coarse):
    manipulate = import_timm().models._manipulate
    got, wanted = (manipulate.group_parameters(network, network.group_matcher(coarse=coarse)) for network in pair)
    assert got == wanted and len(got) > 4


@pytest.mark.parametrize("indices", [None, (1, 3), (-1,), 2, (0,)])
@torch.no_grad()
def test_feature_network_is_timms(pair, indices):
    timm = import_timm()
    ours, whole = pair
    theirs = timm.create_model(
        "resnetv2_50x1_bit", features_only=True, out_indices=indices or (0, 1, 2, 3, 4), **HALF_WIDTH
    )
    features = FeatureNetwork((3, 4, 6, 3), 0.5, eps=1e-8, out_indices=indices).double()
    missing, _ = features.load_state_dict(ours.state_dict(), strict=False)
    assert missing == []
    assert features.feature_info.channels() == theirs.feature_info.channels()
    assert features.feature_info.reduction() == theirs.feature_info.reduction()
    images = torch.randn(1, 3, 61, 48, dtype=torch.float64)
    wanted = whole.forward_intermediates(images, features.feature_info.out_indices, intermediates_only=True)
    got = features(images)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert [feature.shape[1] for feature in got] == features.feature_info.channels()
    assert torch.equal(features.forward_features(images), features.forward_intermediates(images, [0])[0])
    for ours, theirs in zip(bitfast.fold(features)(images), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_feature_network_builds_no_later_stages():
    network = bitfast.create_model("resnet26x0_5", features_only=True, out_indices=(0, 2))
    assert len(network.stages) == 2 and network.feature_info.get_dicts(["reduction"]) == [
        {"reduction": 2},
        {"reduction": 8},
    ]
    assert network.feature_info.channels(1) == 128 and network.feature_info[-1]["num_chs"] == 256
    sum(feature.sum() for feature in network(torch.randn(1, 3, 32, 32))).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("indices", "message"), [(6, "has 5"), (0, "1 to 5"), ([5], "from 0 to 4"), ([], "no feature")]
)
def test_features_that_are_not_there(indices, message):
    with pytest.raises(UsageError, match=message):
        bitfast.create_model("resnet26x0_5", features_only=True, out_indices=indices)
    with pytest.raises(UsageError, match=message):
        seeded().forward_intermediates(torch.randn(1, 3, 32, 32), indices)


@torch.no_grad()
def test_all_of_it_on_a_folded_network():
    model, images = seeded(), torch.randn(2, 3, 64, 48)
    folded = bitfast.fold(model)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(folded.forward_features(images), model.forward_features(images), **close)
    for got, wanted in zip(
        folded.forward_intermediates(images)[1], model.forward_intermediates(images)[1], strict=True
    ):
        torch.testing.assert_close(got, wanted, **close)
    assert folded.ws_eps is None and folded.feature_info == model.feature_info
    folded.reset_classifier(2)
    assert folded(images).shape == (2, 2) and model(images).shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_reset_classifier_keeps_dtype_device_and_mode(dtype):
    model = seeded().to(dtype)
    model.reset_classifier(3)
    assert model.get_classifier().weight.shape == (3, 1024, 1, 1) and not model.head.training
    assert {p.dtype for p in model.parameters()} == {dtype} and model.num_classes == 3
    assert torch.equal(model(torch.randn(1, 3, 32, 32)), torch.zeros(1, 3, dtype=dtype))
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity) and model(torch.randn(1, 3, 32, 32)).shape == (1, 1024)
    model.reset_classifier(2)
    assert model.head.fc.weight.dtype == dtype
    meta = seeded().to("meta")
    meta.reset_classifier(4)
    assert meta.head.fc.weight.is_meta


@torch.no_grad()
def test_no_pool_and_dropout():
    images = torch.randn(2, 3, 64, 96)
    model = seeded()
    features = model.forward_features(images)
    pooled, logits = model.forward_head(features, pre_logits=True), model(images)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(logits, pooled @ model.head.fc.weight[:, :, 0, 0].T + model.head.fc.bias)
    model.head.global_pool = ""
    maps = model(images)
    assert maps.shape == (2, 5, 2, 3)
    torch.testing.assert_close(maps.mean((2, 3)), logits, rtol=1e-4, atol=1e-4)
    model.reset_classifier(0, global_pool="")
    assert torch.equal(model(images), features)
    dropping = seeded(drop_rate=0.5)
    assert torch.equal(dropping(images), dropping(images))
    dropping.train()
    assert not torch.equal(dropping(images), dropping(images))


@pytest.mark.parametrize("memory", ["fast", "save"])
@pytest.mark.parametrize("folded", [False, True])
def test_grad_checkpointing_gives_the_same_bits_and_keeps_less(memory, folded):
    model = bitfast.ResNetV2((2, 5), 0.5, num_classes=5).train()
    nn.init.normal_(model.head.fc.weight)
    model.memory = memory
    network = bitfast.fold(model) if folded else model
    images = torch.randn(2, 3, 64, 64)

    def step(checkpointing):
        network.set_grad_checkpointing(checkpointing)
        network.zero_grad()
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = network(images)
        out.square().sum().backward()
        return out.detach(), [parameter.grad.clone() for parameter in network.parameters()], kept

    out, gradients, kept = step(False)
    again, again_gradients, less = step(True)
    assert torch.equal(out, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again_gradients, strict=True))
    assert less < kept


def test_values_that_cannot_be():
    with pytest.raises(UsageError, match="unknown global_pool 'max'"):
        bitfast.ResNetV2((1,), 0.5, global_pool="max")
    with pytest.raises(UsageError, match="num_classes is -1"):
        seeded().reset_classifier(-1)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 8, 8\); it must be \(N, 3, H, W\)"):
        seeded()(torch.randn(1, 1, 8, 8))
    with pytest.raises(UsageError, match="output_fmt"):
        seeded().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")
    assert seeded().no_weight_decay() == set()
