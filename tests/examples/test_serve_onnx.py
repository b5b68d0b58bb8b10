"""examples/serve_onnx.py: the same classes and probabilities as bitfast, from the file alone."""

import importlib.util
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import import_onnx
from PIL import Image

import bitfast
from bitfast.data import decode
from bitfast.data.transform import Transform
from bitfast.folder import save_model
from bitfast.ops import resample

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_onnx.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(classifier of bitfast, model.onnx, two photos of it, one turned by EXIF)."""
    import_onnx()
    folder = tmp_path_factory.mktemp("serve")
    torch.manual_seed(0)
    model = bitfast.ResNetV2((1, 1), 0.5, num_classes=3)
    torch.nn.init.normal_(model.head.fc.weight, std=0.5)
    save_model(folder / "model", model, "custom", ("cat", "dog", "Möwe"), Transform.test(48), {"temperature": 1.7})
    bitfast.export(folder / "model", folder / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "large.png")
    Image.fromarray(pixels[:40, :30]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(folder / "alpha.png")
    levels = np.random.default_rng(1).integers(0, 65536, (70, 50), dtype=np.uint16)
    Image.fromarray(levels).save(folder / "wide.png")
    return bitfast.load(folder / "model", engine="pillow"), folder / "model.onnx", folder


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    import_onnx()
    spec = importlib.util.spec_from_file_location("serve_onnx", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_agrees_with_bitfast(served, example):
    classifier, model, folder = served
    photos = [str(folder / name) for name in ("large.png", "turned.jpg", "alpha.png")]
    command = [sys.executable, EXAMPLE, model, *photos, "--topk", "3"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    predictions = classifier.top_k(photos, 3)
    prepare = example.OnnxClassifier(model).prepare
    for line, photo, prediction in zip(lines, photos, predictions, strict=True):
        path, *cells = line.split(" ")
        assert path == photo
        got = dict(zip(cells[::2], map(float, cells[1::2]), strict=True))
        with torch.no_grad():
            same_pixels = torch.softmax(classifier.network(torch.from_numpy(prepare(photo))) / 1.7, 1)[0]
        for name, wanted in zip(classifier.classes_, same_pixels.tolist(), strict=True):
            assert abs(got[name] - wanted) < 1.1e-4
        for name, wanted in prediction:  # its pixels differ by a level here and there
            assert abs(got[name] - wanted) < 5e-3


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("transform", [Transform.test, partial(Transform.short_side, 55)])
def test_pixels_are_bitfasts(served, example, transform, interpolation):
    """Every level of every photo, but for some of the sums that end in a half."""
    _, _, folder = served
    spec = transform(48, interpolation=interpolation)
    for name in ("large.png", "turned.jpg", "alpha.png", "wide.png"):
        pixels = decode.pixels((folder / name).read_bytes())
        window, wanted = (*spec.window(*pixels.shape[:2]), 0), torch.empty(1, 48, 48, 3, dtype=torch.uint8)
        resample([pixels], [window], wanted, interpolation=interpolation, mean=0, std=1)
        with Image.open(folder / name) as photo:
            got = example.resized(example.upright_rgb(photo), spec.to_dict())
        apart = np.abs(got - wanted[0].numpy())
        assert apart.max() <= 1 and (apart > 0).mean() < 4e-3


def test_server(served, example):
    classifier, model, folder = served
    server = example.server(example.OnnxClassifier(model), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with urllib.request.urlopen(url, data=(folder / "large.png").read_bytes()) as answer:
            top = json.loads(answer.read())
        wanted = classifier.top_k(folder / "large.png", 3)[0]
        assert [name for name, _ in top] == [name for name, _ in wanted]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, data=b"no image")
        assert refused.value.code == 400 and "error" in json.loads(refused.value.read())
    finally:
        server.shutdown()
        server.server_close()
