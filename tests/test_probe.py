"""finetune with tune="head", "truncated" and "auto": the head is the best there is, and the run is like any other."""

import csv
import json

import numpy as np
import pytest
import torch
from photos import write_class_folders
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import bitfast
from bitfast.cli import main
from bitfast.config import FinetuneConfig
from bitfast.config_file import load_config
from bitfast.data.dataset import open_dataset
from bitfast.data.loader import images, in_order
from bitfast.errors import BitfastError, UsageError
from bitfast.linear import logistic
from bitfast.recipes import probe
from bitfast.run import RunFolder

MODEL = "resnet26x0_5"
SMALL = dict(model=MODEL, crop=40)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "pretrained.safetensors"
    torch.manual_seed(1)
    model = bitfast.create_model(MODEL, num_classes=7)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    bitfast.save_weights(model, path)
    return path


@pytest.fixture(scope="module")
def finished(photos, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cut"
    return bitfast.finetune(photos, weights=weights, out=out, tune="truncated", stages=2, **SMALL)


def head_of(result):
    weights = load_file(RunFolder(result.out).model / "model.safetensors")
    return weights["head.fc.weight"].flatten(1).numpy(), weights["head.fc.bias"].numpy()


def test_leaves_everything_behind(finished, weights):
    run = RunFolder(finished.out)
    assert finished.metrics["top1"] == 1.0 and finished.metrics["images"] == 3 and finished.train_images == 33
    saved, whole = load_file(run.model / "model.safetensors"), load_file(weights)
    assert not any(name.startswith(("stages.2", "stages.3")) for name in saved)
    assert torch.equal(saved["norm.weight"], whole["stages.2.blocks.0.norm1.weight"])
    shared = [name for name in saved if not name.startswith(("head", "norm"))]
    assert shared and all(torch.equal(saved[name], whole[name]) for name in shared)
    config = json.loads((run.model / "config.json").read_text())
    assert config["bitfast"]["depths"] == [2, 2] and config["num_features"] == 256
    for name in ("config.yaml", "plan.json", "env.json", "splits.csv", "results.csv", "per_class.csv", "report.md"):
        assert (run.path / name).stat().st_size > 0, name
    rows = list(csv.DictReader((run.path / "predictions_val.csv").open()))
    assert len(rows) == 3 and all(row["label"] == row["predicted"] for row in rows)
    assert "truncated: head after stage 2" in (run.path / "report.md").read_text()
    assert len(run.records()) == 1 and run.records()[0]["loss"] < np.log(3)


def test_the_head_is_logistic_regression_on_the_networks_own_features(finished, photos):
    """With the penalty that the run chose; features by forwarding the saved network, the head by scikit-learn."""
    split = open_dataset(photos).train
    classifier = bitfast.load(finished.out)
    network = classifier.network
    with torch.inference_mode():
        (x,) = images(split, classifier.transform, in_order(len(split), len(split)))
        features = network.forward_head(network.forward_features(x), pre_logits=True).double().numpy()
        logits = network(x)
    scale = features.std(0)
    z = (features - features.mean(0)) / np.where(scale > 1e-12, scale, 1)
    best = min(
        (
            LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=100_000).fit(z, split.labels)
            for alpha in logistic.ALPHAS
        ),
        key=lambda model: np.abs(model.predict_proba(z) - torch.softmax(logits, 1).numpy()).max(),
    )
    np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), best.predict_proba(z), atol=2e-4)


def test_resume_and_repeat_give_the_same(finished, photos, weights, tmp_path, capsys):
    before = head_of(finished)
    run = RunFolder(finished.out)
    run.result.unlink()
    capsys.readouterr()
    again = bitfast.finetune(out=finished.out, resume=True)
    assert "all of them from" in capsys.readouterr().err
    assert again.metrics == finished.metrics and len(run.records()) == 1
    assert all(np.array_equal(a, b) for a, b in zip(before, head_of(again), strict=True))
    assert bitfast.finetune(out=finished.out, resume=True) == again, "finished: nothing to do"
    other = bitfast.finetune(photos, weights=weights, out=tmp_path / "b", tune="truncated", stages=2, **SMALL)
    assert all(np.array_equal(a, b) for a, b in zip(before, head_of(other), strict=True))


def test_eval_predict_export_and_transfer(finished, photos, tmp_path, capsys):
    assert main(["eval", finished.out]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(finished.metrics, rel=1e-4)
    assert main(["predict", finished.out, str(photos / "apple" / "0.png")]) == 0
    assert ",apple," in capsys.readouterr().out
    for form in ("onnx", "pt2"):
        assert main(["export", finished.out, "--format", form, "--out", str(tmp_path / form)]) == 0
    bitfast.export(finished.out, tmp_path / "folded", format="safetensors")
    classifier = bitfast.load(tmp_path / "folded")
    paths = [str(photos / name / "1.png") for name in ("apple", "lime", "plum")]
    np.testing.assert_allclose(
        classifier.predict_proba(paths), bitfast.load(finished.out).predict_proba(paths), atol=1e-6
    )


def test_head_is_on_the_final_features_and_preset_probe_is_its_name(photos, weights, tmp_path):
    by_tune = bitfast.finetune(photos, weights=weights, out=tmp_path / "a", tune="head", **SMALL)
    by_preset = bitfast.finetune(photos, weights=weights, out=tmp_path / "b", preset="probe", **SMALL)
    assert head_of(by_tune)[0].shape == (3, 1024)
    assert all(np.array_equal(a, b) for a, b in zip(head_of(by_tune), head_of(by_preset), strict=True))
    saved = load_config(FinetuneConfig, RunFolder(by_preset.out).config)
    assert (saved.tune, saved.preset) == ("head", "code")


def test_auto_does_what_advise_says_and_resumes_so(photos, weights, tmp_path, capsys):
    advice = bitfast.advise(photos, MODEL, weights, crop=40)
    result = bitfast.finetune(photos, weights=weights, out=tmp_path / "auto", tune="auto", **SMALL)
    said = capsys.readouterr().err
    assert f"tune: {advice.tune}, as advised" in said and "after stage" in said
    run = RunFolder(result.out)
    assert json.loads(run.advice.read_text())["scores"] == json.loads(advice.to_json())["scores"]
    rows = {row["name"]: row for row in json.loads(run.plan.read_text())["settings"]}
    assert rows["tune"]["value"].startswith(advice.tune) and rows["tune"]["origin"].startswith("advise")
    run.result.unlink()
    saved = json.loads(run.advice.read_text())
    run.advice.write_text(json.dumps(saved | {"tune": "truncated", "stages": 3}))
    resumed = bitfast.finetune(out=result.out, resume=True, tune="auto")
    assert head_of(resumed)[0].shape == (3, 512), "what the run was begun with, not what would be said today"


def test_auto_trains_everything_where_the_dataset_is_large(photos, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bitfast.advice.LARGE_FROM", 30)
    options = dict(steps=2, batch_size=8, resize=44, eval_every=0)
    result = bitfast.finetune(photos, weights=weights, out=tmp_path / "auto", tune="auto", **SMALL, **options)
    assert result.steps == 2 and "tune: all, as advised" in capsys.readouterr().err
    (tmp_path / "auto" / "result.json").unlink()
    assert bitfast.finetune(out=result.out, resume=True).steps == 2


def test_truncated_without_stages_takes_the_best_earlier_one(photos, weights, tmp_path):
    result = bitfast.finetune(photos, weights=weights, out=tmp_path / "cut", tune="truncated", **SMALL)
    best = bitfast.advise(photos, MODEL, weights, crop=40).best_earlier
    assert head_of(result)[0].shape == (3, best.features)


@pytest.mark.parametrize("tune", ["auto", "scratch"])
def test_without_weights_it_is_from_scratch(photos, tmp_path, capsys, tune):
    options = dict(steps=1, batch_size=8, resize=44, tune=tune)
    result = bitfast.finetune(photos, out=tmp_path / "run", **SMALL, **options)
    assert result.steps == 1 and "from scratch" in capsys.readouterr().err
    rows = {row["name"]: row for row in json.loads(RunFolder(result.out).plan.read_text())["settings"]}
    assert rows["tune"]["value"].startswith("scratch")


def test_dry_run_writes_nothing(photos, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", MODEL, "--crop", "40", "--weights", str(weights), "--tune", "head", "--dry-run"]
    assert main(["finetune", str(photos), *arguments]) == 0
    out = capsys.readouterr().out
    assert "head, on the final features" in out and "lr / 10" not in out and not list(tmp_path.iterdir())


def test_few_shot_two_classes_and_a_class_with_one_image(weights, tmp_path):
    root = write_class_folders(tmp_path / "two", per_class=10, classes=("apple", "lime"))
    options = dict(weights=weights, tune="head", val_split=0.3, **SMALL)
    few = bitfast.finetune(root, out=tmp_path / "few", examples_per_class=1, **options)
    assert few.train_images == 2 and head_of(few)[0].shape == (2, 1024) and few.metrics["images"] == 6
    write_class_folders(tmp_path / "one", per_class=1, classes=("plum",))
    (tmp_path / "one" / "plum").rename(root / "plum")
    rare = bitfast.finetune(root, out=tmp_path / "rare", **options)
    assert rare.train_images == 15 and np.isfinite(head_of(rare)[0]).all()


def test_several_labels_per_image(weights, tmp_path):
    rng = np.random.default_rng(0)
    rows = [("path", "label")]
    for i in range(60):
        marked = rng.integers(0, 2, 3).astype(bool)
        pixels = rng.integers(0, 90, (40, 40, 3)) + 160 * marked
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append((f"{i}.png", "|".join(np.array(["blue", "green", "red"])[marked])))
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    options = dict(weights=weights, label_separator="|", val_split=0.3, tune="auto", **SMALL)
    result = bitfast.finetune(tmp_path / "labels.csv", out=tmp_path / "run", **options)
    assert result.metrics["mAP"] > 0.9
    assert json.loads((tmp_path / "run" / "advice.json").read_text())["metric"] == "ranking precision"
    assert bitfast.load(result.out).multilabel
    with pytest.raises(UsageError, match="--balanced needs one label"):
        bitfast.advise(tmp_path / "labels.csv", MODEL, weights, crop=40, label_separator="|", balanced=True)


def test_image_gone_bad_after_the_scan_is_left_out(weights, tmp_path, monkeypatch):
    root = write_class_folders(tmp_path / "data")
    broken = root / "lime" / "5.png"

    def initialize(*arguments):
        broken.write_bytes(b"gone")
        return original(*arguments)

    original = probe._initialize
    monkeypatch.setattr(probe, "_initialize", initialize)
    options = dict(weights=weights, tune="head", val_split=0, **SMALL)
    with pytest.raises(BitfastError, match=f"{broken}.*--bad-images skip"):
        bitfast.finetune(root, out=tmp_path / "run", **options)
    result = bitfast.finetune(out=tmp_path / "run", resume=True, bad_images="skip")
    assert result.metrics is None and str(broken) in (tmp_path / "run" / "bad_images.csv").read_text()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tune": "head"}, "needs pretrained weights.*--weights"),
        ({"tune": "truncated"}, "needs pretrained weights"),
        ({"tune": "scratch", "weights": "w"}, "--tune scratch and the weights w exclude"),
        ({"tune": "none"}, "--tune 'none': it must be one of .*truncated"),
        ({"tune": "head", "weights": "w", "lr": 0.1}, "--lr has no effect on --tune head.*drop it"),
        ({"tune": "truncated", "weights": "w", "no_flip": True}, "--no-flip has no effect"),
        ({"stages": 2}, "--stages needs --tune truncated"),
        ({"tune": "truncated", "weights": "w", "stages": 4}, "--stages must be from 1 to 3, got 4"),
        ({"preset": "probe", "tune": "auto"}, "--preset probe and --tune auto exclude"),
    ],
)
def test_mistakes_are_told_at_once(options, words):
    with pytest.raises(UsageError, match=words):
        FinetuneConfig(data="nowhere", **options).validate()
