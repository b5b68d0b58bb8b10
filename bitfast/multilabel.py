"""Evaluation where an image carries any number of labels: every class is its own yes or no."""

from dataclasses import dataclass

import numpy as np

from .calibration import expected_calibration_error

THRESHOLD = 0.5


@dataclass(frozen=True)
class MultiLabelPredictions:
    """Sigmoid probabilities (n, C) float32, labels (n, C) bool and losses (n,) of one split, in the split's order.

    losses                  binary cross-entropy in nats, summed over the classes
    positions, bad_images   as in evaluation.Predictions
    """

    probabilities: np.ndarray
    labels: np.ndarray
    losses: np.ndarray
    positions: np.ndarray
    bad_images: int

    @property
    def loss(self):
        """Mean over the images of the cross-entropy summed over the classes, in nats."""
        return float(self.losses.mean())

    @property
    def average_precision(self):
        """Average precision of each class (C,): sum over thresholds of (R_k - R_(k-1)) P_k; nan without a positive.

        Images of equal probability share a threshold, so their order does not matter.
        """
        return np.array([_average_precision(*pair) for pair in zip(self.probabilities.T, self.labels.T, strict=True)])

    def per_class(self):
        """Recall, precision, F1 at 0.5 (nan where undefined) and number of images of each class, four (C,) arrays."""
        guessed, hits, count = self._counts()
        with np.errstate(invalid="ignore"):
            return hits / count, hits / guessed, 2 * hits / (count + guessed), count

    @property
    def ece(self):
        """Expected calibration error of all n * C yes-probabilities (calibration.expected_calibration_error)."""
        return expected_calibration_error(self.probabilities.ravel(), self.labels.ravel())

    def metrics(self):
        """Dict of images, bad_images (left out of the others), mAP, loss, micro_f1 and macro_f1 at 0.5, ece.

        Means are over the classes that have images.
        """
        guessed, hits, count = self._counts()
        f1 = self.per_class()[2]
        present = count > 0
        return {
            "images": len(self.labels),
            "bad_images": self.bad_images,
            "mAP": float(self.average_precision[present].mean()) if present.any() else 0.0,
            "loss": self.loss,
            "micro_f1": float(2 * hits.sum() / max(count.sum() + guessed.sum(), 1)),
            "macro_f1": float(f1[present].mean()) if present.any() else 0.0,
            "ece": self.ece,
        }

    def _counts(self):
        predicted = self.probabilities >= THRESHOLD
        return predicted.sum(0), (predicted & self.labels).sum(0), self.labels.sum(0)


def _average_precision(scores, positive):
    if not positive.any():
        return np.nan
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(positive[order])
    last = np.append(scores[1:] != scores[:-1], True)
    hits, seen = hits[last], np.flatnonzero(last) + 1
    return float((np.diff(hits, prepend=0) * hits / seen).sum() / hits[-1])
