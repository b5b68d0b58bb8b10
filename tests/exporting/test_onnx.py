"""The ONNX file: what is in it, what it computes, and what travels with it."""

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import import_onnx

import bitfast
from bitfast.errors import UsageError


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    import_onnx()
    path = tmp_path_factory.mktemp("onnx") / "export"
    return path, bitfast.export(run, path)


def test_logits_at_any_size_and_batch(folder, network):
    _, onnxruntime = import_onnx()
    session = onnxruntime.InferenceSession(folder[1].file)
    truth, largest = copy.deepcopy(network).double(), 0.0
    for n, height, width in ((1, 64, 64), (3, 64, 64), (1, 97, 45), (2, 224, 160), (2, 33, 40)):
        images = torch.randn(n, 3, height, width)
        with torch.no_grad():
            expected = truth(images.double()).numpy()
        (got,) = session.run(["logits"], {"images": images.numpy()})
        assert got.shape == (n, 3) and got.dtype == np.float32
        largest = max(largest, np.abs(expected).max())
        assert np.abs(got - expected).max() <= 1e-4
    assert largest > 1
    tiny = np.zeros((2, 3, 5, 1), np.float32)
    assert np.isfinite(session.run(None, {"images": tiny})[0]).all()


def test_nodes_are_plain(folder, network):
    onnx, _ = import_onnx()
    model = onnx.load(folder[1].file)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    nodes = Counter(node.op_type for node in model.graph.node)
    assert nodes == {
        "Conv": 30,
        "GroupNormalization": 25,
        "Relu": 25,
        "Add": 8,
        "Pad": 1,
        "MaxPool": 1,
        "ReduceMean": 1,
        "Reshape": 1,
    }
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rows = weights["stages.1.blocks.0.conv2.weight"].reshape(64, -1).astype(np.float64)
    assert np.abs(rows.mean(1)).max() < 1e-6 and np.abs(rows.var(1) - 1).max() < 1e-5
    assert str(Path(bitfast.__file__).parent).encode() not in Path(folder[1].file).read_bytes()
    dims = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]


def test_metadata_config_and_card(folder):
    onnx, _ = import_onnx()
    path, exported = folder
    metadata = {entry.key: entry.value for entry in onnx.load(exported.file).metadata_props}
    assert json.loads(metadata["label_names"]) == ["cat", "dog", "Übersee-Möwe"]
    preprocessing = json.loads(metadata["preprocessing"])
    assert preprocessing["geometry"] == "square" and preprocessing["crop"] == preprocessing["resize"] == 64
    assert (preprocessing["mean"], preprocessing["std"]) == (127.5, 127.5)
    assert metadata["precision"] == "float32" and metadata["bitfast"] == bitfast.__version__
    assert sorted(entry.name for entry in path.iterdir()) == ["README.md", "config.json", "model.onnx"]
    config = json.loads((path / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog", "Übersee-Möwe"] and config["bitfast"]["folded"] is True
    card = (path / "README.md").read_text()
    for text in ("Übersee-Möwe", "64 x 64 px", "(v - 127.5) / 127.5", "| top1 | 0.9250 |", "library_name: onnx"):
        assert text in card
    assert exported.max_logit_difference <= exported.allowed == 1e-4


def test_float16(small, tmp_path):
    onnx, onnxruntime = import_onnx()
    exported = bitfast.export(small, tmp_path / "half.onnx", fp16=True)
    model = onnx.load(exported.file)
    nodes = {node.op_type for node in model.graph.node}
    assert nodes == {"Conv", "GroupNormalization", "Relu", "Add", "Pad", "MaxPool", "ReduceMean", "Reshape", "Cast"}
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer if not tensor.name.startswith("head"))
    assert kinds[onnx.TensorProto.FLOAT16] == 9 + 2 * 7 and onnx.TensorProto.FLOAT not in kinds
    bytes_of_weights = sum(2 * parameter.numel() for parameter in small.parameters())
    assert bytes_of_weights < (tmp_path / "half.onnx").stat().st_size < bytes_of_weights + 30_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["half.onnx"]
    images = torch.randn(2, 3, 80, 64)
    (got,) = onnxruntime.InferenceSession(exported.file).run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = small(images).numpy()
    assert got.dtype == np.float32 and np.abs(got - expected).max() <= 2e-2 * np.abs(expected).max()


def test_features_gray_cut_and_custom(tmp_path):
    """No classes, one channel, two stages, a network without a name; from a folded one."""
    onnx, onnxruntime = import_onnx()
    model = bitfast.ResNetV2((1, 1), 0.5, num_classes=0, in_chans=1)
    bitfast.export(bitfast.fold(model), tmp_path / "features.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "features.onnx")
    images = torch.randn(2, 1, 50, 40)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0]), model(images), rtol=0, atol=1e-4
        )
    assert json.loads(session.get_modelmeta().custom_metadata_map["label_names"]) == []


def test_weights_beyond_protobuf_go_beside(small, tmp_path, monkeypatch):
    _, onnxruntime = import_onnx()
    monkeypatch.setattr("bitfast.exporting.formats.PROTOBUF_BYTES", 1000)
    bitfast.export(small, tmp_path / "large", format="onnx")
    names = sorted(entry.name for entry in (tmp_path / "large").iterdir())
    assert names == ["README.md", "config.json", "model.onnx", "model.onnx.data"]
    session = onnxruntime.InferenceSession(tmp_path / "large" / "model.onnx")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert np.abs(session.run(None, {"images": images.numpy()})[0] - small(images).numpy()).max() <= 1e-4


def test_missing_packages_are_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnx") else object())
    with pytest.raises(UsageError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'bitfast\[onnx\]'"):
        bitfast.export(run, tmp_path / "export", format="onnx")
    assert list(tmp_path.iterdir()) == []
