"""Metrics of an evaluation against scikit-learn and cases counted by hand; the temperature against a minimizer."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from bitfast.calibration import BINS, LIMITS, expected_calibration_error, fit_temperature, reliability
from bitfast.evaluation import judged


def drawn(n=500, classes=7, scale=3.0, seed=0):
    """Logits whose labels are drawn from softmax(logits / 2), so that 2 is about the temperature that mends them."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(n, classes))).astype(np.float32)
    noise = rng.gumbel(size=(n, classes))
    return logits, (logits / 2 + noise).argmax(1)


def test_metrics_are_those_of_scikit_learn():
    logits, labels = drawn()
    labels[labels == 3] = 4  # a class without images, which is still predicted
    predictions = judged(torch.from_numpy(logits), labels, np.arange(500), bad_images=2)
    metrics, guess = predictions.metrics(), logits.argmax(1)
    present = np.unique(labels)
    assert metrics["images"] == 500 and metrics["bad_images"] == 2 and metrics["correct"] == (guess == labels).sum()
    assert metrics["top1"] == metrics["correct"] / 500
    assert metrics["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guess))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, guess, labels=present, average="macro"))
    assert metrics["loss"] == pytest.approx(log_loss(labels, predictions.probabilities, labels=range(7)), rel=1e-5)
    precision, recall, f1, count = precision_recall_fscore_support(labels, guess, labels=range(7), zero_division=np.nan)
    got = predictions.per_class()
    for values, expected in zip(got, (recall, precision, f1, count), strict=True):
        np.testing.assert_allclose(values[present], expected[present])


def test_multilabel_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(200, 4)).astype(np.float32)
    labels = rng.random((200, 4)) < 1 / (1 + np.exp(-2 * logits))
    predictions = judged(torch.from_numpy(logits), labels, np.arange(200))
    metrics = predictions.metrics()
    assert metrics["mAP"] == pytest.approx(average_precision_score(labels, logits, average="macro"))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, logits >= 0, average="macro"))
    assert metrics["micro_f1"] == pytest.approx(f1_score(labels, logits >= 0, average="micro"))
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert metrics["ece"] == pytest.approx(counted(probabilities.ravel(), labels.ravel()), abs=1e-6)


def counted(probabilities, true):
    """The error by its definition, one bin after the other."""
    total = 0.0
    for b in range(BINS):
        inside = (probabilities > b / BINS) & (probabilities <= (b + 1) / BINS)
        inside |= (b == 0) & (probabilities == 0)
        if inside.any():
            total += inside.sum() * abs(true[inside].mean() - probabilities[inside].mean())
    return total / len(probabilities)


@pytest.mark.parametrize(
    "probabilities, true, expected",
    [
        ([1.0, 1.0], [1, 1], 0.0),
        ([1.0, 1.0], [1, 0], 0.5),
        ([0.8] * 5, [1, 1, 1, 1, 0], 0.0),
        ([0.9, 0.9, 0.5, 0.5], [1, 1, 0, 0], (2 * 0.1 + 2 * 0.5) / 4),
        ([0.65, 0.61], [1, 0], 0.13),  # one bin, (9/15, 10/15]
        ([0.68, 0.65], [1, 0], (0.32 + 0.65) / 2),  # on either side of 10/15
        ([0.2, 0.21], [0, 1], (0.2 + 0.79) / 2),  # 0.2 = 3/15 ends the third bin
        ([0.0, 1.0], [0, 1], 0.0),
    ],
)
def test_ece_by_hand(probabilities, true, expected):
    assert expected_calibration_error(probabilities, np.array(true, bool)) == pytest.approx(expected, abs=1e-12)


def test_ece_of_many_by_its_definition():
    rng = np.random.default_rng(2)
    probabilities = rng.random(3000)
    true = rng.random(3000) < probabilities**2
    assert expected_calibration_error(probabilities, true) == pytest.approx(counted(probabilities, true), rel=1e-12)
    bins = reliability(probabilities, true)
    assert bins.count.sum() == 3000 and bins.count.shape == (15,)


def mean_loss(logits, labels, temperature):
    z = logits.astype(np.float64) / temperature
    if labels.ndim == 2:
        return np.logaddexp(0, np.where(labels, -z, z)).sum(1).mean()
    z = z - z.max(1, keepdims=True)
    return (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]).mean()


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
def test_temperature_minimizes_the_loss(multilabel, scale):
    logits, labels = drawn(5000, scale=scale, seed=3)
    if multilabel:
        labels = np.random.default_rng(4).random(logits.shape) < 1 / (1 + np.exp(-logits / 2))
    got = fit_temperature(logits, labels)
    found = minimize_scalar(
        lambda t: mean_loss(logits, labels, np.exp(t)), bounds=np.log(LIMITS), method="bounded", options={"xatol": 1e-9}
    )
    assert got == pytest.approx(np.exp(found.x), rel=1e-4) and 1.5 < got < 2.5
    assert mean_loss(logits, labels, got) <= found.fun + 1e-12
    assert fit_temperature(logits, labels) == got


def test_temperature_without_an_answer():
    logits, _ = drawn(20)
    assert fit_temperature(logits, logits.argmax(1)) == LIMITS[0], "all right: the smaller the better"
    assert fit_temperature(logits, logits.argmin(1)) == LIMITS[1], "all wrong: the larger the better"
    assert fit_temperature(np.zeros((5, 3), np.float32), np.array([0, 1, 2, 1, 0])) == 1.0
    assert fit_temperature(np.array([[1e4, -1e4], [1e4, -1e4]], np.float32), np.array([0, 1])) == LIMITS[1]
