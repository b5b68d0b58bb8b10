"""Run folders as a training leaves them, without the training: any number of classes, any names, known predictions."""

import json

import numpy as np
from PIL import Image

from bitfast.config import FinetuneConfig
from bitfast.config_file import save_config
from bitfast.data.dataset import Dataset, Split
from bitfast.data.source import Files
from bitfast.evaluation import Predictions
from bitfast.multilabel import MultiLabelPredictions
from bitfast.report import sheet, write_report
from bitfast.run import RunFolder

PLAN = {"steps": 40, "notes": ["--preset paper would change nothing"], "data": "photos, 10 % held out"}
SETTINGS = [{"name": "steps", "value": "40", "origin": "you"}, {"name": "base lr", "value": "0.003", "origin": "rule"}]


def class_names(count):
    return tuple(f"class {i:04d}" for i in range(count))


def predictions_of(count, images, seed=0):
    """Predictions of the right shape that are right about three times in four."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, count, images)
    logits = rng.normal(0, 1, (images, count))
    likeliest = np.where(rng.random(images) < 0.75, labels, rng.integers(0, count, images))
    logits[np.arange(images), likeliest] += 3 + np.log(count)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return Predictions((p / p.sum(1, keepdims=True)).astype(np.float32), labels, np.arange(images), 0)


def label_sets_of(count, images, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random((images, count)) < 0.3
    p = np.clip(rng.normal(0.25, 0.15, (images, count)) + 0.5 * labels, 0.001, 0.999).astype(np.float32)
    losses = -np.where(labels, np.log(p), np.log(1 - p)).sum(1)
    return MultiLabelPredictions(p, labels, losses, np.arange(images), 0)


def write_photos(folder, names, edge=40):
    """One coloured picture for each name; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, name in enumerate(names):
        hue = np.array([60 + 37 * i % 190, 60 + 83 * i % 190, 60 + 131 * i % 190])
        noise = np.random.default_rng(i).normal(0, 25, (edge, edge + i % 3 * 8, 3))
        Image.fromarray(np.clip(hue + noise, 0, 255).astype(np.uint8)).save(folder / name)
        paths.append(str(folder / name))
    return paths


def started(out, steps=40, steps_done=40, model="resnet50x1"):
    """The files of a run after some steps, with an evaluation every ten."""
    folder = RunFolder(out)
    out.mkdir(parents=True)
    save_config(FinetuneConfig(data="/data/photos", model=model), folder.config)
    folder.plan.write_text(json.dumps({**PLAN, "steps": steps, "settings": SETTINGS}))
    ops = [{"op": "norm_conv", "impl": "native", "why": "first choice"}]
    (out / "env.json").write_text(json.dumps({"torch": "2.13.0", "device": "cpu", "command": ["bitfast"], "ops": ops}))
    folder.command.write_text("bitfast finetune /data/photos\n")
    rng = np.random.default_rng(0)
    for step in range(steps_done):
        rate = {"images_per_second": 50 + rng.normal(0, 3), "data_wait": 0.02, "seconds": 0.2}
        record = {"kind": "train", "step": step, "loss": 2.3 * np.exp(-step / 15) + rng.random() / 5, "images": 10}
        folder.log({**record, "lr": 0.003 * min(1, step / 5), **rate, "peak_memory_bytes": 3 << 30})
    return folder


def finished(out, predictions, classes, photos, evaluations=3):
    """A finished run folder with these predictions of `photos`, which are used again and again."""
    folder = started(out)
    folder.model.mkdir()
    n = len(predictions.labels)
    split = Split(Files([photos[i % len(photos)] for i in range(n)]), predictions.labels, classes)
    for k in range(evaluations):
        folder.log({"kind": "eval", "step": 10 * (k + 1), **predictions.metrics()})
    shown = range(min(n, 12))
    tiles = sheet.photos(split.images, shown, [", ".join(split.names(i)) for i in shown])
    sheet.write_sheet(folder.train_batch, tiles)
    write_report(folder, Dataset(split, split, "photos"), predictions)
    return folder
