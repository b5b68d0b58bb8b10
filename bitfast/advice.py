"""Which way of transfer suits a dataset: what was measured, and the rule that follows from it. No torch."""

import html
import json
from dataclasses import asdict, dataclass

import numpy as np

from .errors import DataError
from .linear import ridge
from .linear.folds import parts

# From this many training images on a dataset is large.
LARGE_FROM = 20_000
# An earlier stage counts as better from this many standard errors of the difference on, of the same images.
CLEARLY = 2.0


@dataclass(frozen=True)
class StageScore:
    """How well a linear classifier does on the features after a stage.

    stage                1 to the number of stages
    features             how many
    score                mean over the held-out images of Advice.metric
    standard_error       of score, over images
    gain                 score less the last stage's
    gain_standard_error  of gain: smaller than of the two scores, because the images are the same
    """

    stage: int
    features: int
    score: float
    standard_error: float
    gain: float
    gain_standard_error: float


@dataclass(frozen=True)
class Advice:
    """What `advise` found. Prints itself as a table; to_dict and to_json for programs, _repr_html_ for notebooks.

    tune       "head", "truncated", "all" or "scratch", as finetune's tune
    stages     how many stages "truncated" keeps, else None
    situation  "small, similar", "small, different", "large, similar", "large, different", or "no weights"
    reason     one line
    metric     what scores are: "accuracy", "balanced accuracy", or with several labels per image "ranking precision"
    scores     a StageScore per stage, none without weights
    chance     the score of guessing by how frequent classes are
    images     training images there are; measured, how many of them were scored
    classes    how many
    command    what carries it out
    """

    tune: str
    stages: int | None
    situation: str
    reason: str
    metric: str
    scores: tuple[StageScore, ...]
    chance: float | None
    images: int
    measured: int
    classes: int
    command: str

    @property
    def best_earlier(self):
        """The StageScore of the best stage but the last."""
        return max(self.scores[:-1], key=lambda score: score.score)

    def to_dict(self):
        """JSON-ready."""
        return asdict(self)

    def to_json(self):
        """One line."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values):
        return cls(**{**values, "scores": tuple(StageScore(**score) for score in values["scores"])})

    def __str__(self):
        lines = [f"{self.images:,} training images, {self.classes:,} classes"]
        if self.scores:
            lines[0] += f"; {self.metric} of a linear classifier on {self.measured:,} of them, each held out once"
            header, rows = self._table()
            widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
            lines += [
                "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
                for row in [header, *rows]
            ]
            lines.append(f"  chance: {self.chance:.1%}")
        return "\n".join([*lines, f"{self.situation}: {self.reason}", f"  {self.command}"])

    def _repr_html_(self):
        header, rows = self._table()
        cells = [("th", header)] * bool(rows) + [("td", row) for row in rows]
        table = "".join(
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>" for tag, row in cells
        )
        said = "".join(f"<p>{html.escape(text)}</p>" for text in (f"{self.situation}: {self.reason}", self.command))
        return f"<table>{table}</table>{said}"

    def _table(self):
        header = ["after stage", "features", self.metric, "better than the last stage by"]
        rows = [
            [
                str(s.stage),
                f"{s.features:,}",
                f"{s.score:.1%} +- {s.standard_error:.1%}",
                f"{s.gain:+.1%} +- {s.gain_standard_error:.1%}" if s is not self.scores[-1] else "",
            ]
            for s in self.scores
        ]
        return header, rows


def measure(features, labels, classes, fold, balanced=False):
    """(metric, StageScores, chance, images scored) by ridge regression on the features of each stage.

    features  {stage: (n, C) float32}
    labels    (n,) int64, or (n, classes) bool
    fold      (n,) of linear.folds.stratified
    balanced  every class counts the same, in the fit and in the score
    Raises    DataError if no class has two images
    """
    if not any(len(held) for _, held in parts(fold)):
        raise DataError(
            "every class has one training image, so none can be held out to measure on: add images, or choose by"
            " hand with --tune head or --tune all"
        )
    scored = fold >= 0
    targets = labels.astype(np.float64) if labels.ndim == 2 else np.eye(classes)[labels]
    weights = len(labels) / targets.sum(0).clip(1)[labels] / classes if balanced else np.ones(len(labels))
    stages = sorted(features)
    found = {}
    for stage in stages:
        outputs = ridge.held_out(features[stage].astype(np.float64), targets, fold, weights if balanced else None)
        found[stage] = score_images(outputs[scored], labels[scored])
    guesses = np.empty_like(targets)
    for train, held in parts(fold):
        guesses[held] = (weights[train, None] * targets[train]).sum(0)
    share = weights[scored] / weights[scored].sum()

    def mean(values):
        center = float(share @ values)
        return center, float(np.sqrt(np.square(share) @ np.square(values - center)))

    scores = tuple(
        StageScore(stage, features[stage].shape[1], *mean(found[stage]), *mean(found[stage] - found[stages[-1]]))
        for stage in stages
    )
    metric = "ranking precision" if labels.ndim == 2 else "balanced accuracy" if balanced else "accuracy"
    return metric, scores, mean(score_images(guesses[scored], labels[scored]))[0], int(scored.sum())


def score_images(outputs, labels):
    """(n,) float64 score of each image: whether its label has the largest output; of several labels the ranking
    precision, the mean over them of the share of own labels among those with at least its output.

    An image without a label, or with all, scores 1.
    Source: Schapire & Singer 2000 (label ranking average precision)
    """
    if labels.ndim == 1:
        return (outputs.argmax(1) == labels).astype(np.float64)
    scores = np.ones(len(labels))
    for i, (output, own) in enumerate(zip(outputs, labels, strict=True)):
        if own.any() and not own.all():
            values = np.sort(output[own])
            above = own.sum() - np.searchsorted(values, values)
            all_above = len(output) - np.searchsorted(np.sort(output), values)
            scores[i] = (above / all_above).mean()
    return scores


def decide(scores, images):
    """(tune, stages, situation, reason): the rule.

    Large: everything is trained, from the pretrained weights. Small: a linear head, on the final features if they are
    as good as any (similar), else on the best earlier ones (different).
    """
    last, best = scores[-1], max(scores[:-1], key=lambda score: score.score, default=None)
    different = best is not None and best.gain > CLEARLY * best.gain_standard_error
    size, kind = "large" if images >= LARGE_FROM else "small", "different" if different else "similar"
    situation = f"{size}, {kind}"
    if size == "large":
        return (
            "all",
            None,
            situation,
            f"from {LARGE_FROM:,} images on fine-tune every weight, starting from pretraining",
        )
    if different:
        reason = f"stage {best.stage} transfers better than the last: cut there, train a linear head"
        return "truncated", best.stage, situation, reason
    return "head", None, situation, f"no earlier stage is clearly better than stage {last.stage}: train a linear head"


def read_advice(path):
    """The Advice saved in a run, None if there is none."""
    return Advice.from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
