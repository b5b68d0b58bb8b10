"""An optional peer: timm loads our model folder and gives the same logits."""

import pytest
import torch
from peers import import_timm

import bitfast
from bitfast.data.transform import Transform
from bitfast.folder import save_model


@pytest.mark.parametrize("eps, tolerance", [(1e-8, 1e-10), (1e-10, 1e-4)])
def test_timm_loads_the_model_folder(tmp_path, eps, tolerance):
    timm = import_timm()
    torch.manual_seed(0)
    model = bitfast.resnet50x1(num_classes=7, eps=eps)
    torch.nn.init.normal_(model.head.fc.weight, std=0.02)
    classes = [f"class {i}" for i in range(7)]
    save_model(tmp_path / "model", model, "resnet50x1", classes, Transform.test(96), {})
    theirs = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval().double()
    images = torch.randn(2, 3, 96, 80, dtype=torch.float64)
    with torch.no_grad():
        expected, got = model.double()(images), theirs(images)
    assert (got - expected).norm() <= tolerance * expected.norm()
    assert tuple(theirs.pretrained_cfg["input_size"]) == (3, 96, 96)
