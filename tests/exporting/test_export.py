"""export() as a whole: torch.export and safetensors, the check, the paths, the Hub, the command."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import bitfast
from bitfast import cli, exporting
from bitfast.data.transform import Transform
from bitfast.errors import BitfastError, UsageError, WeightsError
from bitfast.exporting.plain import PlainNetwork
from bitfast.folder import load_model, save_model


@torch.no_grad()
def test_plain_network(network):
    """The twin that exporters read is the network: stem, pool of zeros, norms, shortcuts."""
    folded = bitfast.fold(network)
    plain = PlainNetwork(folded)
    images = torch.randn(2, 3, 61, 48)
    truth = bitfast.fold(copy.deepcopy(network).double())(images.double())
    assert list(plain.state_dict()) == list(folded.state_dict())
    assert (plain(images) - truth).norm() <= 1e-5 * truth.norm()
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


@torch.no_grad()
def test_pt2_runs_without_bitfast(small, tmp_path):
    exported = bitfast.export(small, tmp_path / "pt2", format="pt2", classes=("cat", "dog", "Übersee-Möwe"))
    assert str(Path(bitfast.__file__).parent).encode() not in Path(exported.file).read_bytes()
    images = torch.randn(3, 3, 70, 50)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch, json\n"
        "sys.modules['bitfast'] = None\n"
        "extra = {'metadata.json': ''}\n"
        f"program = torch.export.load({exported.file!r}, extra_files=extra)\n"
        f"logits = program.module()(torch.load({str(tmp_path / 'images.pt')!r}))\n"
        "print(json.dumps([logits.tolist(), json.loads(extra['metadata.json'])]))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    logits, metadata = json.loads(out)
    assert (torch.tensor(logits) - small(images)).abs().max() <= 1e-4
    assert json.loads(metadata["label_names"])[2] == "Übersee-Möwe"
    with pytest.raises(UsageError, match="pt2 takes images from 33 px on, this network's have 32: use onnx"):
        bitfast.export(small, tmp_path / "small", format="pt2", transform=Transform.test(32))


@pytest.mark.parametrize(("fp16", "bound"), [(False, 1e-6), (True, 2e-2)])
@torch.no_grad()
def test_safetensors_is_a_folder_to_load(run, network, tmp_path, fp16, bound):
    exported = bitfast.export(run, tmp_path / "export", format="safetensors", fp16=fp16)
    saved = load_model(tmp_path / "export")
    assert saved.classes == ("cat", "dog", "Übersee-Möwe") and saved.transform == Transform.test(64)
    images = torch.randn(2, 3, 64, 64)
    wanted = bitfast.fold(network)(images)
    assert (saved.network(images) - wanted).abs().max() <= bound * wanted.abs().max()
    assert exported.max_logit_difference <= exported.allowed
    assert type(saved.network.stem.conv) is torch.nn.Conv2d
    with pytest.raises(WeightsError, match="holds folded weights.*run or model folder it was exported from"):
        bitfast.resnet26x0_5(pretrained=tmp_path / "export")
    again = bitfast.export(bitfast.load(tmp_path / "export", device="cpu"), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").is_file() and again.max_logit_difference <= 1e-4


def test_the_network_is_untouched(network, tmp_path):
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in network.state_dict().items()}
    bitfast.export(network.train(), tmp_path / "w.safetensors", fp16=True, classes=["a", "b", "c"])
    assert network.training
    network.eval()
    for name, tensor in network.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1]), name


@pytest.mark.parametrize("format", ["safetensors", "pt2"])
def test_a_wrong_file_is_found_and_not_left(small, tmp_path, monkeypatch, format):
    """One norm of the exported network is off by a tenth."""
    plain = exporting.PlainNetwork

    def wrong(*args):
        network = plain(*args)
        norm = network.stages[1].blocks[0].norm2
        norm.bias = torch.nn.Parameter(norm.bias + 0.1)
        return network

    monkeypatch.setattr(exporting, "PlainNetwork", wrong)
    with pytest.raises(BitfastError, match="other logits than bitfast .largest difference .*nothing was written"):
        bitfast.export(small, tmp_path / "export", format=format)
    assert list(tmp_path.iterdir()) == []


def test_not_finite(small, tmp_path):
    with torch.no_grad():
        small.norm.bias[0] = float("nan")
    with pytest.raises(BitfastError, match="values that are not finite"):
        bitfast.export(small, tmp_path / "w.safetensors")


def test_paths(run, network, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    for path in (tmp_path / "mine", tmp_path / "mine" / "README.md"):
        with pytest.raises(UsageError, match="is there already and is not overwritten: choose another path, or"):
            bitfast.export(run, path, format="safetensors")
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
    (tmp_path / "w.onnx.data").write_text("mine")
    with pytest.raises(UsageError, match="w.onnx.data is there already"):
        bitfast.export(run, tmp_path / "w.onnx")
    with pytest.raises(BitfastError, match="README.md/x cannot be written .*: check the folder"):
        bitfast.export(run, tmp_path / "mine" / "README.md" / "x", format="safetensors")
    (tmp_path / "empty").mkdir()
    bitfast.export(run, tmp_path / "empty", format="safetensors")
    assert len(list((tmp_path / "empty").iterdir())) == 3
    with pytest.raises(UsageError, match="does not name a file of format pt2: write .*w.pt2"):
        bitfast.export(run, tmp_path / "w.onnx", format="pt2")
    with pytest.raises(UsageError, match="unknown export format 'tflite': it must be one of safetensors, onnx, pt2"):
        bitfast.export(run, tmp_path / "w", format="tflite")


def test_sources(network, tmp_path):
    with pytest.raises(WeightsError, match="neither a run nor a model folder"):
        bitfast.export(tmp_path, tmp_path / "w.safetensors")
    for source in (torch.nn.Linear(2, 2), bitfast.create_model("resnet26x0_5", features_only=True)):
        with pytest.raises(UsageError, match="takes a run, a model folder, a Classifier or a ResNetV2, not a"):
            bitfast.export(source, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="starts from float32, this network is torch.bfloat16"):
        bitfast.export(bitfast.ResNetV2((1,), 0.5).bfloat16(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="2 class names and 3 outputs"):
        bitfast.export(network, tmp_path / "w.safetensors", classes=["a", "b"])
    assert list(tmp_path.iterdir()) == []


class Api:
    """Stands for huggingface_hub's client: keeps what it is told."""

    calls = []

    def create_repo(self, repo, exist_ok):
        self.calls.append(("create", repo, exist_ok))
        return f"https://hub.invalid/{repo}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(entry.name for entry in folder_path.iterdir())))


def test_push_to_hub(run, tmp_path, monkeypatch, capsys):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    bitfast.export(run, tmp_path / "export", format="safetensors", push_to_hub="me/flowers")
    files = ["README.md", "config.json", "model.safetensors"]
    assert Api.calls == [("create", "me/flowers", True), ("upload", "me/flowers", files)]
    assert "uploaded" in capsys.readouterr().err
    with pytest.raises(UsageError, match="'flowers' is no name on the Hub: --push-to-hub takes OWNER/NAME"):
        bitfast.export(run, tmp_path / "other", format="safetensors", push_to_hub="flowers")
    with pytest.raises(UsageError, match="uploads a folder"):
        bitfast.export(run, tmp_path / "w.safetensors", push_to_hub="me/flowers")
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]


def test_a_refused_push_keeps_the_folder(run, tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    class Offline(Api):
        def create_repo(self, repo, exist_ok):
            raise OSError("cannot connect\nto the hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    with pytest.raises(BitfastError, match="could not be uploaded to me/x .cannot connect to the hub.; it is kept"):
        bitfast.export(run, tmp_path / "export", format="safetensors", push_to_hub="me/x")
    assert (tmp_path / "export" / "model.safetensors").is_file()


def test_command(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--format", "safetensors", "--fp16", "--out", str(tmp_path / "e")]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["file"] == str(tmp_path / "e" / "model.safetensors") and result["precision"] == "float16"
    assert "max logit difference to bitfast" in printed.err
    assert cli.main(["export", str(run), "--format", "safetensors"]) == 0
    assert (run / "export" / "safetensors" / "config.json").is_file()
    assert cli.main(["export", str(run), "--format", "safetensors"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "no")]) == 2
    assert "give --out FOLDER" in capsys.readouterr().err


def test_preprocessing_and_labels_travel_with_the_file(small, tmp_path):
    """A central crop and several classes per image are in the metadata, the card, and what is loaded again."""
    spec = Transform.short_side(56, 48, "bicubic")
    save_model(tmp_path / "model", small, "custom", ("a", "b", "c"), spec, {"multilabel": True})
    classifier = bitfast.load(tmp_path / "model")
    for source, folder in ((tmp_path / "model", tmp_path / "a"), (classifier, tmp_path / "b")):
        bitfast.export(source, folder, format="safetensors")
        with safe_open(folder / "model.safetensors", "pt") as file:
            metadata = file.metadata()
        preprocessing = json.loads(metadata["preprocessing"])
        assert metadata["probabilities"] == "sigmoid"
        assert (preprocessing["resize"], preprocessing["short_side"], preprocessing["size"]) == (
            "short_side",
            56,
            [48, 48],
        )
        assert preprocessing["interpolation"] == "bicubic"
        card = (folder / "README.md").read_text()
        assert "short side to 56 px (bicubic, antialiased), take the central 48 x 48 px" in card and "sigmoid" in card
        again = bitfast.load(folder)
        assert again.multilabel and again.transform == spec
    bitfast.export(small, tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert file.metadata()["probabilities"] == "softmax"
        assert json.loads(file.metadata()["preprocessing"])["resize"] == "squash"
