"""Logistic regression by L-BFGS in float64, its penalty chosen by cross-validation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .folds import parts
from .scaling import Scaling

# From strong to weak, so that each fit starts from the one before and the costly weak ones are rarely reached.
ALPHAS = tuple(10.0 ** (-k / 2) for k in range(-8, 5))
# Largest entry of the gradient in the scaled coordinates, where the curvature is about 1.
TOLERANCE, ITERATIONS = 1e-7, 500
WITHOUT_FOLDS = 1.0  # one image per class: scikit-learn's default
CHOSEN_ON = 4000  # images: alpha, which belongs to a sum over images, hardly changes with more


@dataclass(frozen=True, eq=False)
class Logistic:
    """logits = x @ weight + bias; weight (D, C), bias (C,) float64, alpha the penalty it was fitted with."""

    weight: np.ndarray
    bias: np.ndarray
    alpha: float

    def __call__(self, features):
        return features @ self.weight + self.bias


def loss(logits, labels, reduction="sum"):
    """Cross-entropy in nats: softmax for labels (n,) int64; for (n, C) bool of sigmoids, summed over the classes."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction=reduction)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction=reduction)


def fit(features, labels, classes, alpha):
    """The Logistic that minimizes  sum_i loss(x_i W + b, y_i) + alpha / 2 |W|^2.

    Shapes:  features (n, D) float64; labels (n,) int64, or (n, C) bool for a sigmoid per class
    The minimum is the only one in W; scikit-learn's LogisticRegression finds it with C = 1 / alpha.
    """
    steps = _Fit(features, labels, classes)
    for stronger in (100 * alpha, 10 * alpha):
        steps.at(stronger)
    return steps.at(alpha)


class _Fit:
    """The fits of one set of images, each started from the one before.

    In the coordinates of the singular vectors, x = u diag(s) v^T, each scaled by its mean curvature at the start,
    1 / sqrt(h s^2 + alpha) with h the mean of p (1 - p), L-BFGS needs tens of steps; in those of the features it needs
    hundreds. What W has outside the span of the images is zero at the minimum.
    """

    def __init__(self, features, labels, classes):
        u, s, self.v = np.linalg.svd(features, full_matrices=False)
        self.x, self.squares, self.labels = torch.as_tensor(u * s), torch.as_tensor(s * s), torch.as_tensor(labels)
        self.weight, self.bias = self.x.new_zeros(self.x.shape[1], classes), self.x.new_zeros(classes)

    def at(self, alpha):
        curvature = self._curvature()
        scale = (self.squares * curvature + alpha).rsqrt()[:, None]
        bias_scale = (len(self.x) * curvature).rsqrt()
        x = self.x * scale.T
        weight, bias = (self.weight / scale).requires_grad_(), (self.bias / bias_scale).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=ITERATIONS,
            max_eval=2 * ITERATIONS,
            tolerance_grad=TOLERANCE,
            tolerance_change=1e-14,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure():
            optimizer.zero_grad()
            total = loss(x @ weight + bias * bias_scale, self.labels) + alpha / 2 * (weight * scale).square().sum()
            total.backward()
            return total

        optimizer.step(closure)
        self.weight, self.bias = (weight * scale).detach(), (bias * bias_scale).detach()
        return Logistic(self.v.T @ self.weight.numpy(), self.bias.numpy(), alpha)

    def _curvature(self):
        logits = self.x @ self.weight + self.bias
        p = torch.softmax(logits, 1) if self.labels.ndim == 1 else torch.sigmoid(logits)
        return (p * (1 - p)).mean().clamp(min=1e-12)


def choose_alpha(features, labels, classes, fold, alphas=ALPHAS):
    """(alpha, mean held-out loss of each alpha tried): the one of least loss on the folds left out.

    alphas run from strong to weak, as far as the loss falls. Features are standardized by the images of the other
    folds. With nothing held out WITHOUT_FOLDS.
    """
    fits = []
    for train, held in parts(fold):
        scale = Scaling.of(features[train])
        fits.append((_Fit(scale(features[train]), labels[train], classes), scale(features[held]), labels[held]))
    losses = []
    for alpha in alphas if fits else ():
        logits = [fit.at(alpha)(held) for fit, held, _ in fits]
        total = loss(*(torch.as_tensor(np.concatenate(values)) for values in (logits, [own for *_, own in fits])))
        losses.append(float(total) / sum(len(own) for *_, own in fits))
        if len(losses) > 1 and losses[-1] > losses[-2]:
            break
    return (alphas[int(np.argmin(losses))] if losses else WITHOUT_FOLDS), losses
