"""report.md: the report for terminals, editors and pages that show Markdown."""

import numpy as np

from .page import MATRIX_SHOWN, METRICS, data_name, memory_kind, verdict

CLASSES_SHOWN, PAIRS_SHOWN, LOSSES_SHOWN = 50, 10, 10


def markdown(record, plots):
    """The whole document as text; `plots` are the names of the pictures there are in plots/."""
    return "\n".join(_lines(record, plots)) + "\n"


def _lines(record, plots):
    yield f"# {record.config.model} on {_cell(record.config.data or data_name(record))}\n"
    yield _cell("".join(verdict(record))) + "\n"
    metrics = record.metrics or {}
    if metrics:
        yield from _table(["validation", "value"], [[METRICS.get(k, k), _value(v)] for k, v in metrics.items()])
    weights = record.config.weights or "none, trained from scratch"
    yield f"Data: {_cell(record.plan.get('data', ''))}. Weights: {_cell(weights)}.\n"
    if record.bad_images:
        yield "Unreadable images were left out, [bad_images.csv](bad_images.csv) lists them.\n"
    yield "## Training\n"
    if "curves" in plots:
        yield "![loss, learning rate and accuracy by step](plots/curves.png)\n"
    steps = [[r["step"], _value(r["loss"]), f"{r['lr']:.3g}"] for r in _some(record.train)]
    yield from _table(["step", "loss", "lr"], steps)
    metric = "mAP" if record.multilabel else "top1"
    if record.evals:
        evals = [[r["step"], _value(r[metric]), _value(r["loss"])] for r in record.evals]
        yield from _table(["after step", metric, "loss"], evals)
    yield from _mistakes(record, plots)
    if record.train:
        yield from _speed(record)
    yield "## Plan\n"
    settings = [[row["name"], row["value"], row["origin"]] for row in record.plan.get("settings", [])]
    yield from _table(["setting", "value", "origin"], settings)
    yield from (f"{note}\n" for note in record.plan.get("notes", []))
    if record.command:
        yield "## Run it again\n"
        yield f"    {record.command}\n"


def _mistakes(record, plots):
    if record.confusion is not None and len(record.per_class) <= MATRIX_SHOWN:
        classes = [row["class"] for row in record.per_class]
        yield "## Confusion matrix\n"
        if "confusion_matrix" in plots:
            yield "![confusion matrix](plots/confusion_matrix.png)\n"
        rows = [[f"**{name}**", *row] for name, row in zip(classes, record.confusion.tolist(), strict=True)]
        yield from _table(["label \\ predicted", *classes], rows)
    if record.most_confused:
        yield "## Most confused\n"
        yield from _table(["label", "predicted", "images"], record.most_confused[:PAIRS_SHOWN])
    if record.multilabel:
        present = [row for row in record.per_class if row["images"]]
        weakest = sorted(present, key=lambda row: row["average_precision"])[:CLASSES_SHOWN]
        yield "## Average precision, the lowest first\n"
        rows = [[row["class"], row["images"], _value(row["average_precision"])] for row in weakest]
        yield from _table(["class", "images", "average precision"], rows)
    if record.top_losses:
        yield "## Top losses\n"
        yield "![the images of the largest loss](plots/top_losses.png)\n"
        rows = [[loss.path, loss.label, loss.predicted, _value(loss.loss)] for loss in record.top_losses[:LOSSES_SHOWN]]
        yield from _table(["image", "label", "predicted", "loss"], rows)
    if "calibration" in plots:
        yield "## Calibration\n"
        yield "![accuracy by confidence](plots/calibration.png)\n"


def _speed(record):
    speed = record.speed
    yield "## Speed\n"
    rows = [["images/s", f"{speed.images_per_second:.1f}"], ["waiting for images", f"{speed.data_wait:.1%}"]]
    if speed.peak_memory_bytes:
        rows.append([f"peak memory {memory_kind(record)}", f"{speed.peak_memory_bytes / 2**30:.2f} GiB"])
    yield from _table(["training", "value"], rows)


def _some(records, count=12):
    if len(records) <= count:
        return records
    return [records[i] for i in np.linspace(0, len(records) - 1, count).round().astype(int)]


def _table(header, rows):
    yield "| " + " | ".join(map(_cell, header)) + " |"
    yield "|" + "---|" * len(header)
    yield from ("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
    yield ""


def _cell(value):
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _value(value):
    return f"{value:.4f}" if isinstance(value, float) else str(value)
