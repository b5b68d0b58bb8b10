"""What a report shows of a run, read from the run's files and nothing else."""

import csv
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..config import RunFields
from ..config_file import load_config
from ..data import decode
from ..data.source import Files
from ..errors import DataError, UsageError
from ..run import RunFolder
from . import sheet
from .tables import LOSSES, MATRIX_CLASSES


class TopLoss(NamedTuple):
    """An image of large loss (nats); probability is that of the predicted class, None with multi-label."""

    path: str
    label: str
    predicted: str
    probability: float | None
    loss: float


@dataclass(frozen=True)
class Speed:
    """What the training steps took: images/s over all steps, share of time waiting for images, seconds, peak bytes.

    None where the records do not tell.
    """

    images_per_second: float | None
    data_wait: float | None
    seconds: float | None
    peak_memory_bytes: int | None


class Record:
    """The files of a run, finished or not.

    Raises:  DataError, from any of its properties, if a file is not what the run wrote
    """

    def __init__(self, folder):
        self.folder = RunFolder(folder)
        if not self.folder.exists:
            raise DataError(
                f"{decode.shown(folder)} is not a run (it has no config.yaml): name a folder that finetune wrote"
            )

    @cached_property
    def config(self):
        return load_config(RunFields, self.folder.config)

    @cached_property
    def plan(self):
        return self._json("plan.json")

    @cached_property
    def environment(self):
        return self._json("env.json")

    @cached_property
    def command(self):
        path = self.folder.path / "command.txt"
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip() if path.is_file() else ""

    @cached_property
    def records(self):
        """Those of metrics.jsonl."""
        try:
            return self.folder.records()
        except ValueError as error:
            raise DataError(f"{self.folder.metrics}: not what the run wrote ({error}): put it back") from error

    @cached_property
    def train(self):
        """Records of training steps that had images."""
        return [r for r in self.records if r["kind"] == "train" and r["loss"] is not None]

    @cached_property
    def evals(self):
        """[{"step": ..., metric: value}] of all evaluations, the last one included once the run is finished."""
        rows = self._csv("results.csv")
        if not rows:
            records = (r for r in self.records if r["kind"] == "eval")
            return [{name: value for name, value in r.items() if name != "kind"} for r in records]
        return [{name: _number(value) for name, value in row.items() if value != ""} for row in rows]

    @property
    def finished(self):
        return self.folder.model.is_dir() and self.steps_done == self.plan.get("steps")

    @property
    def steps_done(self):
        records = [r for r in self.records if r["kind"] == "train"]
        return records[-1]["step"] + 1 if records else 0

    @cached_property
    def metrics(self):
        """Of the newest evaluation; None without one."""
        return {k: v for k, v in self.evals[-1].items() if k != "step"} if self.evals else None

    @property
    def multilabel(self):
        return self.metrics is not None and "mAP" in self.metrics

    @cached_property
    def per_class(self):
        """Rows of per_class.csv, numbers as numbers, None where undefined."""
        rows = self._csv("per_class.csv")
        return [{k: v if k == "class" else _number(v) if v else None for k, v in row.items()} for row in rows]

    @cached_property
    def most_confused(self):
        """(label, predicted, images), the most frequent mistake first."""
        return [(row["label"], row["predicted"], int(row["images"])) for row in self._csv("most_confused.csv")]

    @cached_property
    def top_losses(self):
        """TopLoss of the images of the largest loss, which comes first."""
        rows = self._csv("top_losses.csv")
        return [
            TopLoss(
                row["path"],
                row["label"],
                row["predicted"],
                float(row["probability"]) if row["probability"] else None,
                float(row["loss"]),
            )
            for row in rows
        ]

    @cached_property
    def calibration(self):
        """(low, high, images, confidence, accuracy) of each range of confidence that has images."""
        rows = self._csv("calibration.csv")
        return [
            (float(r["low"]), float(r["high"]), int(r["images"]), *_floats(r, "confidence", "accuracy")) for r in rows
        ]

    @cached_property
    def confusion(self):
        """(C, C) int64 counts, row = label, column = prediction; None where there is no file."""
        rows = self._csv("confusion_matrix.csv", rows=True)
        return np.array([row[1:] for row in rows[1:]], dtype=np.int64) if rows else None

    @cached_property
    def train_batch(self):
        return sheet.read_sheet(self.folder.train_batch)

    @cached_property
    def photos(self):
        """(TopLoss, Tile or None, why its image cannot be read now) of the top losses that have a picture."""
        tiles = sheet.read_sheet(self.folder.top_losses)
        pairs = zip(self.top_losses[: sheet.SHOWN], [*tiles, *[None] * sheet.SHOWN], strict=False)
        return [(loss, tile, (tile.why if tile else "") or _unreadable(loss.path)) for loss, tile in pairs]

    @cached_property
    def speed(self):
        timed = [r for r in self.train if "seconds" in r]
        seconds = sum(r["seconds"] for r in timed)
        rates = [r["images_per_second"] for r in self.train]
        rate = sum(r["images"] for r in timed) / seconds if seconds else float(np.median(rates)) if rates else None
        waits = [r["data_wait"] for r in self.train]
        peaks = [r["peak_memory_bytes"] for r in self.train if r.get("peak_memory_bytes")]
        return Speed(rate, float(np.mean(waits)) if waits else None, seconds or None, max(peaks, default=None))

    @cached_property
    def bad_images(self):
        """How many images were left out."""
        return len(self._csv("bad_images.csv"))

    def _json(self, name):
        path = self.folder.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise DataError(f"{path}: not what the run wrote ({error}): put it back") from error

    def _csv(self, name, rows=False):
        path = self.folder.path / name
        if not path.is_file():
            return []
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.reader(file) if rows else csv.DictReader(file))


class Interpreted:
    """What can be asked of a run, by the files in its folder `out`; the base of Run and Result."""

    out: str

    def confusion_matrix(self):
        """(C, C) int64 counts on the validation images, row = label, column = prediction, as per_class.csv orders them.

        Raises:  DataError if the run has none; UsageError above 2,000 classes, where none is made
        """
        record = Record(self.out)
        if record.confusion is None:
            if len(record.per_class) > MATRIX_CLASSES:
                raise UsageError(
                    f"{self.out} has {len(record.per_class):,} classes: above {MATRIX_CLASSES:,} no matrix is made,"
                    " use most_confused()"
                )
            raise DataError(f"{self.out} has no confusion_matrix.csv: {_why_none(record)}")
        return record.confusion

    def most_confused(self, k=10):
        """The k most frequent mistakes on the validation images, as (label, predicted, images)."""
        return self._first(k, "most_confused")

    def top_losses(self, k=9):
        """The k validation images of the largest loss, as (path, label, predicted, probability, loss in nats).

        Raises:  DataError if the run has none; UsageError if k is not from 1 to 100, as many as are kept
        """
        return self._first(k, "top_losses")

    def report(self):
        """Write report.md and report.html anew from the files of the run; returns the path of report.html."""
        from . import render

        return str(render(self.out))

    def _first(self, k, name):
        if not 1 <= k <= LOSSES:
            raise UsageError(f"{name}({k}): k must be from 1 to {LOSSES}, as many as {name}.csv keeps")
        record = Record(self.out)
        if not (record.folder.path / f"{name}.csv").is_file():
            raise DataError(f"{self.out} has no {name}.csv: {_why_none(record)}")
        return getattr(record, name)[:k]


class Run(Interpreted):
    """A run folder, finished or not, for reading: bitfast.Run("runs/flowers").

    metrics  dict of the newest evaluation, None without one
    Raises:  DataError if there is no run
    """

    def __init__(self, out):
        self.out = str(out)
        self.metrics = Record(out).metrics

    def __repr__(self):
        return f"Run({self.out!r})"


def wilson(share, n, z=1.96):
    """The 95% interval of a share seen in n independent trials. Source: Wilson 1927, JASA 22, 209-212."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _why_none(record):
    if record.multilabel:
        return "it is made where an image has one label"
    if not record.finished:
        return f"it is not finished, continue it with bitfast finetune --resume {record.folder.path}"
    return "without validation images there are no mistakes to count"


def _unreadable(name):
    """Why an image that was a file cannot be read now; "" for what can, and for members of shards and objects."""
    if not os.path.isabs(name) or os.path.isfile(name.rpartition(":")[0]):
        return ""
    try:
        decode.load(Files([name]), 0)
    except decode.Unreadable as error:
        return str(error)
    return ""


def _number(text):
    number = float(text)
    return int(number) if number.is_integer() and "." not in text and "e" not in text.lower() else number


def _floats(row, *names):
    return [float(row[name]) for name in names]
