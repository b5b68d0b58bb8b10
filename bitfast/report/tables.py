"""The CSV files of a run: every number that a report shows, once, for people and programs to read."""

import csv
import io

import numpy as np

from ..calibration import BINS, reliability
from ..files import write_text
from ..multilabel import THRESHOLD

MATRIX_CLASSES = 2000  # a matrix of more classes is never made: 21,843 of them would be 3.8 GB
TOPK, PAIRS, LOSSES = 5, 100, 100


def write_tables(path, dataset, evals, predictions):
    """Write the CSV files of a run's evaluations into its folder; returns the rows of top_losses.csv as positions.

    results.csv           one row for each evaluation
    predictions_val.csv   path, label, predicted, probability, loss and the next classes up to TOPK; multi-label:
                          path, labels and predicted joined by |, the probability of every class
    per_class.csv         class, images, train_images, recall, precision, f1[, average_precision]; empty: undefined
    top_losses.csv        the LOSSES images of the largest loss
    calibration.csv       low, high, images, confidence, accuracy of BINS ranges of the best probability; multi-label:
                          of all probabilities, and images counts these
    Not with multi-label:
    confusion_matrix.csv  counts, row = label, column = prediction; up to MATRIX_CLASSES classes
    most_confused.csv     label, predicted, images: the PAIRS most frequent mistakes
    """
    split, classes = dataset.val, dataset.train.classes
    header = list(dict.fromkeys(key for record in evals for key in record if key != "kind"))
    write_csv(path / "results.csv", header, [[record.get(key, "") for key in header] for record in evals])
    write_csv(path / "per_class.csv", *_per_class(dataset.train, predictions))
    losses = _losses(predictions)
    worst = np.argsort(-losses, kind="stable")[:LOSSES]
    write_predictions(path / "predictions_val.csv", split, predictions)
    if split.multilabel:
        rows = [[*_sets(split, predictions, row), "", f"{losses[row]:.6g}"] for row in worst]
        confidence, right = predictions.probabilities.ravel(), predictions.labels.ravel()
    else:
        best = predictions.probabilities.argmax(1)
        confidence, right = predictions.probabilities.max(1), best == predictions.labels
        rows = [
            [classes[predictions.labels[row]], classes[best[row]], f"{confidence[row]:.6f}", f"{losses[row]:.6g}"]
            for row in worst
        ]
        if len(classes) <= MATRIX_CLASSES:
            matrix = [[name, *row] for name, row in zip(classes, predictions.confusion.tolist(), strict=True)]
            write_csv(path / "confusion_matrix.csv", ["label \\ predicted", *classes], matrix)
        write_csv(
            path / "most_confused.csv", ["label", "predicted", "images"], _pairs(predictions.labels, best, classes)
        )
    write_csv(path / "calibration.csv", *_calibration(confidence, right))
    positions = predictions.positions[worst]
    named = [[split.images.name(i), *row] for i, row in zip(positions, rows, strict=True)]
    write_csv(path / "top_losses.csv", ["path", "label", "predicted", "probability", "loss"], named)
    return positions


def write_predictions(path, split, predictions):
    """Write the predictions of a Split as CSV, a row for each image by its name; see predictions_val.csv above."""
    write_csv(path, *(_label_sets if split.multilabel else _predictions)(split, predictions))


def write_csv(path, header, rows):
    """Replace the CSV file at `path`; UTF-8, file names that are not keep their bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _losses(predictions):
    """Cross-entropy in nats of each image (n,)."""
    if predictions.labels.ndim == 2:
        return predictions.losses
    own = np.take_along_axis(predictions.probabilities, predictions.labels[:, None], 1)[:, 0]
    return -np.log(np.maximum(own, 1e-38))


def _predictions(split, predictions):
    classes, k = split.classes, min(TOPK, len(split.classes))
    more = [column for i in range(2, k + 1) for column in (f"predicted_{i}", f"probability_{i}")]
    rows = []
    for i, label, p, loss in zip(
        predictions.positions, predictions.labels, predictions.probabilities, _losses(predictions), strict=True
    ):
        top = _top(p, k)
        cells = [[classes[c], f"{p[c]:.6f}"] for c in top]
        following = [cell for pair in cells[1:] for cell in pair]
        rows.append([split.images.name(i), classes[label], *cells[0], f"{loss:.6g}", *following])
    return ["path", "label", "predicted", "probability", "loss", *more], rows


def _top(p, k):
    """Positions of the k largest, the first of equal ones first."""
    kth = np.partition(p, -k)[-k]
    candidates = np.flatnonzero(p >= kth)
    return candidates[np.argsort(-p[candidates], kind="stable")][:k]


def _label_sets(split, predictions):
    rows = [
        [split.images.name(i), *_sets(split, predictions, row), *(f"{value:.6f}" for value in p)]
        for row, (i, p) in enumerate(zip(predictions.positions, predictions.probabilities, strict=True))
    ]
    return ["path", "labels", "predicted", *split.classes], rows


def _sets(split, predictions, row):
    """The names of an image's classes and of those predicted with THRESHOLD or more, joined by |."""
    marked = (predictions.labels[row], predictions.probabilities[row] >= THRESHOLD)
    return ["|".join(split.classes[c] for c in np.flatnonzero(which)) for which in marked]


def _per_class(train, predictions):
    recall, precision, f1, count = predictions.per_class()
    columns = {"recall": recall, "precision": precision, "f1": f1}
    if train.multilabel:
        columns["average_precision"] = predictions.average_precision
        trained = train.labels.sum(0)
    else:
        trained = np.bincount(train.labels, minlength=len(train.classes))
    rows = [
        [name, n, seen, *("" if np.isnan(value) else f"{value:.4f}" for value in values)]
        for name, n, seen, *values in zip(train.classes, count, trained, *columns.values(), strict=True)
    ]
    return ["class", "images", "train_images", *columns], rows


def _calibration(confidence, right):
    bins = zip(*reliability(confidence, right), strict=True)
    rows = [
        [f"{b / BINS:.6g}", f"{(b + 1) / BINS:.6g}", n, f"{c:.6g}", f"{a:.6g}"] for b, (n, c, a) in enumerate(bins) if n
    ]
    return ["low", "high", "images", "confidence", "accuracy"], rows


def _pairs(labels, best, classes):
    """(label, predicted, images) of the most frequent mistakes, without a matrix of all of them."""
    wrong = labels != best
    codes, counts = np.unique(labels[wrong] * len(classes) + best[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PAIRS]
    return [
        [classes[i], classes[j], n]
        for i, j, n in zip(codes[order] // len(classes), codes[order] % len(classes), counts[order], strict=True)
    ]
