"""timm as a peer: files go both ways between its BiT models and ours, with equal logits."""

import json

import pytest
import torch
from peers import import_timm
from safetensors.torch import save_file

from bitfast.weights import load_weights, save_weights

DEPTHS = (3, 4, 6, 3)
HALF_WIDTH = {"channels": (128, 256, 512, 1024), "stem_chs": 32}


@pytest.fixture(scope="module")
def timm():
    return import_timm()


def assert_equal_logits(ours, theirs):
    x = torch.randn(2, 3, 65, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.double().eval()(x)
        got = ours.double().eval()(x)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_timm_here(timm, network, tmp_path, suffix):
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=5, **HALF_WIDTH)
    theirs.load_state_dict(network(depths=DEPTHS, seed=1).state_dict())
    path = tmp_path / f"w{suffix}"
    state = theirs.state_dict()
    torch.save({"state_dict": state}, path) if suffix == ".pth" else save_file(state, path)
    ours = network(depths=DEPTHS)
    assert load_weights(ours, path).ws_eps == theirs.stem.conv.eps
    assert_equal_logits(ours, theirs)


def test_our_folder_in_timm(timm, network, tmp_path):
    ours = network(depths=DEPTHS, eps=1e-8)
    save_weights(ours, tmp_path / "model.safetensors")
    config = {"architecture": "resnetv2_50x1_bit", "num_classes": 5, "pretrained_cfg": {}, "model_args": HALF_WIDTH}
    (tmp_path / "config.json").write_text(json.dumps({**config, "bitfast": {"ws_eps": 1e-8}}))
    assert_equal_logits(ours, timm.create_model(f"local-dir:{tmp_path}", pretrained=True))


def test_our_npz_in_timm(timm, network, tmp_path):
    ours = network(depths=DEPTHS)
    save_weights(ours, tmp_path / "w.npz")
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=5, **HALF_WIDTH)
    theirs.load_pretrained(str(tmp_path / "w.npz"))
    ours.ws_eps = theirs.stem.conv.eps
    assert_equal_logits(ours, theirs)
