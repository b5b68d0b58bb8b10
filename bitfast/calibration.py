"""Whether probabilities mean what they say: the expected calibration error, and the temperature that lowers it."""

import math
from typing import NamedTuple

import numpy as np

BINS = 15
LIMITS = (0.05, 20.0)  # of a temperature; beyond, the images say nothing of it
_ROWS = 4096
_HALVINGS = 64


class Reliability(NamedTuple):
    """What BINS equal bins of (0, 1] hold, three (BINS,) arrays: count of predictions, their mean probability and the
    share of them that is true, both nan in an empty bin."""

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(probabilities, true):
    """The Reliability of predictions: probabilities (n,) and whether each came true (n,) bool.

    Bin b holds b / BINS < p <= (b + 1) / BINS, the first one 0 too.
    """
    probabilities = np.asarray(probabilities, np.float64)
    edges = np.arange(1, BINS) / BINS
    bins = np.searchsorted(edges, probabilities, side="left")
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, values, BINS) / count for values in (probabilities, np.asarray(true, np.float64))]
    return Reliability(count, *means)


def expected_calibration_error(probabilities, true):
    """Mean over the predictions of |share that came true - mean probability| of their bin, BINS equal bins.

        sum_b count_b / n * |accuracy_b - confidence_b|

    Source:  Guo et al. 2017 (1706.04599), section 2
    """
    count, confidence, accuracy = reliability(probabilities, true)
    gaps = np.abs(accuracy - confidence)[count > 0]
    return float((count[count > 0] * gaps).sum() / max(count.sum(), 1))


def fit_temperature(logits, labels):
    """The T that minimizes the mean cross-entropy of softmax(logits / T), or sigmoid for multi-label, within LIMITS.

    The cross-entropy is convex in 1 / T, so its derivative is bisected, in float64 whatever the logits are. A limit is
    returned if it falls up to there: if all images are right, the smaller T the better. 1.0 if T changes nothing.

    Shapes:  logits (n, C) numpy; labels (n,) int64, or multi-label (n, C) bool
    Source:  Guo et al. 2017 (1706.04599), section 4.2
    """

    def slope(beta):
        parts = range(0, len(logits), _ROWS)
        return math.fsum(_slope(logits[i : i + _ROWS], labels[i : i + _ROWS], beta) for i in parts)

    if slope(1.0) == 0:
        return 1.0
    low, high = -math.log(LIMITS[1]), -math.log(LIMITS[0])  # of log(1 / T)
    if slope(math.exp(high)) <= 0:
        return LIMITS[0]
    if slope(math.exp(low)) >= 0:
        return LIMITS[1]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)


def _slope(logits, labels, beta):
    """Derivative by beta = 1 / T of the summed cross-entropy of these rows."""
    z = np.asarray(logits, np.float64)
    if labels.ndim == 2:
        margins = np.where(labels, -z, z)
        return float((margins * _sigmoid(beta * margins)).sum())
    margins = z - np.take_along_axis(z, labels[:, None], 1)
    weights = np.exp(beta * (margins - margins.max(1, keepdims=True)))
    return float(((margins * weights).sum(1) / weights.sum(1)).sum())


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))
