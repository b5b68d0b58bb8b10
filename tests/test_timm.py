"""An optional peer: timm loads our model folder and gives the same logits."""

import json
import math

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


@pytest.mark.parametrize("resize, crop", [(256, 224), (14, 9), (40, 32), (48, 48)])
def test_timm_reads_the_central_crop_from_the_model_folder(tmp_path, resize, crop):
    import_timm()
    from timm.data import resolve_data_config

    save_model(
        tmp_path, bitfast.resnet26x0_5(num_classes=2), "resnet26x0_5", "ab", Transform.short_side(resize, crop), {}
    )
    config = json.loads((tmp_path / "config.json").read_text())
    theirs = resolve_data_config(pretrained_cfg=config["pretrained_cfg"])
    assert theirs["crop_mode"] == "center" and list(theirs["input_size"]) == [3, crop, crop]
    assert math.floor(crop / theirs["crop_pct"]) == resize
    assert f"short side to {resize} (bilinear, antialias) -> central crop" in (tmp_path / "README.md").read_text()
