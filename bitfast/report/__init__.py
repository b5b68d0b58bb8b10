"""What a run leaves behind for people: report.md, plots, and CSV files of results and predictions."""

import csv
import importlib.util
import io
from pathlib import Path

import numpy as np

from ..files import write_text
from ..multilabel import THRESHOLD
from ..runtime import say
from . import plots

CLASSES_SHOWN = 50


def write_report(folder, config, dataset, settings, predictions):
    """Write report.md, results.csv, per_class.csv, predictions_val.csv and plots/ into the run; returns report.md.

    predictions  of the validation split after the last step, or None without one
    """
    records = folder.records()
    train = [record for record in records if record["kind"] == "train" and record["loss"] is not None]
    evals = [record for record in records if record["kind"] == "eval"]
    if predictions is not None:
        evals.append({"kind": "eval", "step": settings.plan.steps, **predictions.metrics()})
        _write_csv(folder.path / "results.csv", list(evals[-1])[1:], [list(record.values())[1:] for record in evals])
        write_predictions(folder.path / "predictions_val.csv", dataset.val, predictions)
        _write_per_class(folder.path / "per_class.csv", dataset.train.classes, predictions)
    drawn = importlib.util.find_spec("matplotlib") is not None
    if drawn:
        plots.draw_curves(folder.path / "plots" / "curves.png", train, evals)
        single = predictions is not None and not dataset.val.multilabel
        if single and len(dataset.train.classes) <= CLASSES_SHOWN:
            plots.draw_confusion(
                folder.path / "plots" / "confusion_matrix.png", predictions.confusion, dataset.train.classes
            )
    else:
        say("matplotlib is not installed: the report has no plots (pip install 'bitfast[plots]' adds them)")
    path = folder.path / "report.md"
    write_text(path, "\n".join(_markdown(folder, config, dataset, settings, predictions, train, evals, drawn)) + "\n")
    return path


def write_predictions(path, split, predictions):
    """Write the Predictions of a Split as CSV, a row for each image by its name."""
    write = _write_label_sets if split.multilabel else _write_predictions
    write(Path(path), split, predictions)


def _markdown(folder, config, dataset, settings, predictions, train, evals, drawn):
    classes = dataset.train.classes
    yield f"# {config.model} on {config.data or 'images'}\n"
    if predictions is None:
        yield "No validation split, so no accuracy.\n"
    else:
        yield from _table(["validation", "value"], [[k, _number(v)] for k, v in predictions.metrics().items()])
    yield f"Data: {dataset.origin}. Weights: {config.weights or 'none, trained from scratch'}.\n"
    if folder.bad_images.is_file():
        yield f"Unreadable images were left out, [{folder.bad_images.name}]({folder.bad_images.name}) lists them.\n"
    yield "## Plan\n"
    yield from _table(["setting", "value", "origin"], settings.rows)
    yield from (f"{note}\n" for note in settings.notes)
    yield "## Training\n"
    if drawn:
        yield "![loss, learning rate and accuracy by step](plots/curves.png)\n"
    yield from _table(["step", "loss", "lr"], [[r["step"], _number(r["loss"]), f"{r['lr']:.3g}"] for r in _some(train)])
    if predictions is None:
        return
    metric = "mAP" if dataset.val.multilabel else "top1"
    yield from _table(
        ["after step", metric, "loss"], [[r["step"], _number(r[metric]), _number(r["loss"])] for r in evals]
    )
    if dataset.val.multilabel:
        yield from _average_precisions(predictions, classes)
        return
    yield "## Confusion matrix\n"
    confusion = predictions.confusion
    if len(classes) <= CLASSES_SHOWN:
        if drawn:
            yield "![confusion matrix](plots/confusion_matrix.png)\n"
        rows = [[f"**{_cell(name)}**", *map(str, row)] for name, row in zip(classes, confusion, strict=True)]
        yield from _table(["label \\ predicted", *classes], rows)
    yield "## Most confused\n"
    yield from _table(["label", "predicted", "images"], _most_confused(confusion, classes))


def _average_precisions(predictions, classes):
    values, count = predictions.average_precision, predictions.per_class()[3]
    order = np.argsort(values, kind="stable")[:CLASSES_SHOWN]
    yield "## Average precision, the lowest first\n"
    rows = [[classes[c], str(count[c]), _number(float(values[c]))] for c in order if count[c]]
    yield from _table(["class", "images", "average precision"], rows)


def _most_confused(confusion, classes, top=10):
    off = confusion.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(off, axis=None)[::-1][:top]
    cells = [np.unravel_index(cell, off.shape) for cell in order]
    return [[classes[i], classes[j], str(off[i, j])] for i, j in cells if off[i, j]]


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
    return str(value).replace("|", "\\|").replace("\n", " ")


def _number(value):
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _write_predictions(path, split, predictions):
    best = predictions.probabilities.argmax(1)
    rows = [
        [split.images.name(i), split.classes[label], split.classes[guess], f"{probabilities[guess]:.6f}"]
        for i, label, guess, probabilities in zip(
            predictions.positions, predictions.labels, best, predictions.probabilities, strict=True
        )
    ]
    _write_csv(path, ["path", "label", "predicted", "probability"], rows)


def _write_label_sets(path, split, predictions):
    """Names joined by |, those predicted with 0.5 or more, and the probability of every class."""
    rows = []
    for i, probabilities in zip(predictions.positions, predictions.probabilities, strict=True):
        predicted = [split.classes[c] for c in np.flatnonzero(probabilities >= THRESHOLD)]
        cells = ["|".join(split.names(i)), "|".join(predicted), *(f"{value:.6f}" for value in probabilities)]
        rows.append([split.images.name(i), *cells])
    _write_csv(path, ["path", "labels", "predicted", *split.classes], rows)


def _write_per_class(path, classes, predictions):
    recall, precision, f1, count = predictions.per_class()
    columns = {"recall": recall, "precision": precision, "f1": f1}
    if predictions.labels.ndim == 2:
        columns["average_precision"] = predictions.average_precision
    rows = [
        [name, n, *("" if np.isnan(value) else f"{value:.4f}" for value in values)]
        for name, n, *values in zip(classes, count, *columns.values(), strict=True)
    ]
    _write_csv(path, ["class", "images", *columns], rows)


def _write_csv(path, header, rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
