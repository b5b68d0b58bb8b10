"""Multi-label from end to end: the loss by its formula, the metrics by their definitions, the files of a run."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import bitfast
from bitfast.classifier import labelled_split
from bitfast.cli import main
from bitfast.multilabel import MultiLabelPredictions
from bitfast.run import RunFolder
from bitfast.train import Trainer

SMALL = dict(model="resnet26x0_5", batch_size=8, resize=36, crop=32, lr=0.02)
CHANNELS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV of 40 images whose channels are bright where the label names them; one label is given by |."""
    root = tmp_path_factory.mktemp("channels")
    rng = np.random.default_rng(0)
    rows = [("path", "label")]
    for i in range(40):
        marked = rng.integers(0, 2, 3).astype(bool)
        pixels = rng.integers(0, 90, (40, 40, 3)) + 160 * marked[::-1]
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
        rows.append((f"{i}.png", "|".join(np.array(CHANNELS)[marked])))
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "labels.csv"


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "channels"
    return bitfast.finetune(table, out=out, steps=30, label_separator="|", val_split=0.3, save_every=15, **SMALL)


def test_learns_and_leaves_everything_behind(finished, capsys):
    run = RunFolder(finished.out)
    losses = [record["loss"] for record in run.records() if record["kind"] == "train"]
    assert losses[0] == pytest.approx(3 * np.log(2), rel=1e-6), "a zero head gives log(2) for each class"
    metrics = finished.metrics
    assert set(metrics) == {"images", "bad_images", "mAP", "loss", "micro_f1", "macro_f1", "ece"}
    assert metrics["mAP"] > 0.95
    rows = list(csv.DictReader((run.path / "predictions_val.csv").open()))
    assert len(rows) == metrics["images"] >= 12 and {"path", "labels", "predicted", *CHANNELS} == set(rows[0])
    for row in rows:
        assert set(filter(None, row["predicted"].split("|"))) == {c for c in CHANNELS if float(row[c]) >= 0.5}
    per_class = list(csv.DictReader((run.path / "per_class.csv").open()))
    assert [row["class"] for row in per_class] == list(CHANNELS)
    mean = np.mean([float(row["average_precision"]) for row in per_class])
    assert mean == pytest.approx(metrics["mAP"], abs=1e-4)
    report = (run.path / "report.md").read_text()
    assert "Average precision" in report and "sigmoid cross-entropy, sum over classes" in report
    assert json.loads((run.model / "config.json").read_text())["bitfast"]["multilabel"] is True


def test_the_model_is_used_as_multilabel(finished, table, capsys):
    classifier = bitfast.load(finished.out)
    split = labelled_split(classifier, finished.out)
    again = classifier.evaluate(split)
    assert again.metrics() == pytest.approx(finished.metrics, rel=1e-4)
    probabilities = classifier.predict_proba(split.images.paths)
    np.testing.assert_allclose(probabilities, again.probabilities, atol=1e-6)
    assert not np.allclose(probabilities.sum(1), 1)
    capsys.readouterr()
    assert main(["eval", finished.out, str(table), "--label-separator", "|"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 40


def test_resume_is_bit_equal(finished, table, tmp_path):
    options = dict(steps=4, label_separator="|", val_split=0.3, save_every=2, mixup=0.3, **SMALL)
    whole = bitfast.finetune(table, out=tmp_path / "run", **options)
    records = RunFolder(whole.out).records()
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    bitfast.finetune(out=whole.out, resume=True)
    assert [r["loss"] for r in RunFolder(whole.out).records()] == [r["loss"] for r in records]


@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_loss_is_binary_cross_entropy_summed_over_classes(lam):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator)
    labels = np.random.default_rng(0).integers(0, 2, (10, 5)).astype(bool)
    micro = SimpleNamespace(indices=np.array([3, 1, 4, 5, 9, 2]), partner=np.array([1, 0, 3, 2, 4, 5]), lam=lam)
    network = torch.nn.Flatten()
    trainer = Trainer(
        SimpleNamespace(network=network), None, None, SimpleNamespace(labels=labels), None, 6, torch.device("cpu")
    )
    images = logits.reshape(6, 5, 1, 1)
    got = trainer._loss(images, micro)
    z = logits.double().numpy()
    y = labels[micro.indices].astype(float)
    y = lam * y + (1 - lam) * y[micro.partner]
    p = 1 / (1 + np.exp(-z))
    assert got.item() == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(), rel=1e-6)


def average_precision(scores, positive):
    """By its definition: at every threshold, precision times the gain in recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        recall = (chosen & positive).sum() / positive.sum()
        total += (recall - before) * (chosen & positive).sum() / chosen.sum()
        before = recall
    return total


def test_metrics_by_their_definitions():
    rng = np.random.default_rng(1)
    scores = (rng.integers(0, 12, (50, 4)) / 12).astype(np.float32)  # with ties
    labels = rng.random((50, 4)) < [0.5, 0.1, 0.9, 0.0]
    predictions = MultiLabelPredictions(scores, labels, np.arange(50.0), np.arange(50), 0)
    expected = [average_precision(scores[:, c], labels[:, c]) for c in range(3)]
    np.testing.assert_allclose(predictions.average_precision[:3], expected, rtol=1e-12)
    assert np.isnan(predictions.average_precision[3])
    metrics = predictions.metrics()
    assert metrics["mAP"] == pytest.approx(np.mean(expected)) and metrics["loss"] == 24.5
    guessed = scores >= 0.5
    hits, wrong, missed = ((a & b).sum(0) for a, b in ((guessed, labels), (guessed, ~labels), (~guessed, labels)))
    assert metrics["micro_f1"] == pytest.approx(2 * hits.sum() / (2 * hits + wrong + missed).sum())
    assert metrics["macro_f1"] == pytest.approx(np.mean((2 * hits / (2 * hits + wrong + missed))[:3]))
    recall, precision, _, count = predictions.per_class()
    np.testing.assert_allclose(recall[:3], hits[:3] / (hits + missed)[:3])
    np.testing.assert_allclose(precision[:3], hits[:3] / (hits + wrong)[:3])
    assert count.tolist() == labels.sum(0).tolist() and np.isnan(recall[3])
