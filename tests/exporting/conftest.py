"""A small trained-looking network and its run folder, for the tests of exports."""

import pytest
import torch

import bitfast
from bitfast.data.transform import Transform
from bitfast.folder import save_model

CLASSES = ("cat", "dog", "Übersee-Möwe")


@pytest.fixture(scope="session")
def network():
    """A resnet26x0_5 with three classes, norms and head random, logits of the order of ten."""
    generator = torch.Generator().manual_seed(1)
    model = bitfast.resnet26x0_5(num_classes=3, eps=1e-8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.dim() == 1))
    return model.eval()


@pytest.fixture
def small():
    """Two stages of one block, head random."""
    model = bitfast.ResNetV2((1, 1), 0.5, num_classes=3)
    torch.nn.init.normal_(model.head.fc.weight)
    model.pretrained_cfg["input_size"] = (3, 48, 48)
    return model.eval()


@pytest.fixture(scope="session")
def run(network, tmp_path_factory):
    """A run folder that holds the network's model folder alone."""
    folder = tmp_path_factory.mktemp("run")
    facts = {"metrics": {"images": 40, "top1": 0.925}, "rule": {}, "weights": None}
    save_model(folder / "model", network, "resnet26x0_5", CLASSES, Transform.test(64), facts)
    return folder
