"""examples/serve_onnx.py: the same classes and probabilities as bitfast, from the file alone."""

import importlib.util
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import import_onnx
from PIL import Image

import bitfast
from bitfast.data.transform import Transform
from bitfast.folder import save_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_onnx.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(classifier of bitfast, model.onnx, two photos of it, one turned by EXIF)."""
    import_onnx()
    folder = tmp_path_factory.mktemp("serve")
    torch.manual_seed(0)
    model = bitfast.ResNetV2((1, 1), 0.5, num_classes=3)
    torch.nn.init.normal_(model.head.fc.weight, std=0.5)
    save_model(folder / "model", model, "custom", ("cat", "dog", "Möwe"), Transform.test(48), {})
    bitfast.export(folder / "model", folder / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "large.png")
    Image.fromarray(pixels[:40, :30]).save(folder / "turned.jpg", exif=exif)
    return bitfast.load(folder / "model", engine="pillow"), folder / "model.onnx", folder


def test_command_agrees_with_bitfast(served):
    classifier, model, folder = served
    photos = [str(folder / "large.png"), str(folder / "turned.jpg")]
    command = [sys.executable, EXAMPLE, model, *photos, "--topk", "3"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for line, prediction in zip(lines, classifier.predict(photos, topk=3), strict=True):
        path, *cells = line.split(" ")
        assert path == prediction.path and cells[::2] == [name for name, _ in prediction.top]
        np.testing.assert_allclose([float(cell) for cell in cells[1::2]], [p for _, p in prediction.top], atol=1.1e-4)


def test_server(served):
    classifier, model, folder = served
    spec = importlib.util.spec_from_file_location("serve_onnx", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    server = example.server(example.OnnxClassifier(model), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with urllib.request.urlopen(url, data=(folder / "large.png").read_bytes()) as answer:
            top = json.loads(answer.read())
        wanted = classifier.predict([folder / "large.png"], topk=3)[0].top
        assert [name for name, _ in top] == [name for name, _ in wanted]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, data=b"no image")
        assert refused.value.code == 400 and "error" in json.loads(refused.value.read())
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "transform", [Transform.short_side(56, 48), Transform.test(48, "bicubic"), Transform.short_side(48, 40, "lanczos")]
)
@pytest.mark.parametrize("multilabel", [False, True])
def test_other_preprocessing_and_several_classes_per_image(served, tmp_path, transform, multilabel):
    torch.manual_seed(1)
    model = bitfast.ResNetV2((1, 1), 0.5, num_classes=3)
    torch.nn.init.normal_(model.head.fc.weight, std=0.5)
    save_model(tmp_path / "model", model, "custom", ("a", "b", "c"), transform, {"multilabel": multilabel})
    bitfast.export(tmp_path / "model", tmp_path / "model.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (90, 130, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    photos = [served[2] / "large.png", served[2] / "turned.jpg", tmp_path / "clear.png"]
    spec = importlib.util.spec_from_file_location("serve_onnx", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    classifier = example.OnnxClassifier(tmp_path / "model.onnx")
    wanted = bitfast.load(tmp_path / "model", engine="pillow").predict(photos, topk=3)
    for photo, prediction in zip(photos, wanted, strict=True):
        got = dict(classifier.predict(photo, topk=3))
        assert got == pytest.approx(dict(prediction.top), abs=1e-3)
