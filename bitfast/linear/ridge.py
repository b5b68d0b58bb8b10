"""Ridge regression in closed form, its penalty chosen by leaving one out: every penalty from one decomposition."""

from dataclasses import dataclass

import numpy as np

from .folds import parts
from .scaling import Scaling

ALPHAS = tuple(10.0 ** (k / 2) for k in range(-4, 13))  # of standardized features: from 0.01 to 10^6


@dataclass(frozen=True, eq=False)
class Ridge:
    """y = x @ weight + bias. alpha is the penalty chosen, errors the mean squared leave-one-out error of each."""

    weight: np.ndarray
    bias: np.ndarray
    alpha: float
    errors: np.ndarray

    def __call__(self, features):
        return features @ self.weight + self.bias


def fit(features, targets, alphas=ALPHAS, weights=None):
    """The Ridge that minimizes, with the best alpha,

        sum_i w_i |y_i - x_i W - b|^2 + alpha |W|^2

    Of the weighted, centred rows X with X X^T = V diag(l) V^T the residuals are V diag(alpha / (l + alpha)) V^T Y, and
    those of models that never saw image i follow from the same row, divided by 1 - h_i with the leverage h_i.

    Shapes:  features (n, D) float64, targets (n, C) float64, weights (n,) positive or None for ones
    Cost:    one eigendecomposition of (n, n), whatever the number of alphas
    Source:  Rifkin & Lippert 2007, "Notes on regularized least squares"
    """
    weights = np.ones(len(features)) if weights is None else weights
    share = weights / weights.sum()
    root = np.sqrt(weights)[:, None]
    mean_x, mean_y = share @ features, share @ targets
    x, y = root * (features - mean_x), root * (targets - mean_y)
    values, vectors = np.linalg.eigh(x @ x.T)
    values, rotated = np.maximum(values, 0.0), vectors.T @ y
    errors = np.empty(len(alphas))
    for k, alpha in enumerate(alphas):
        shrink = alpha / (values + alpha)
        residual = vectors @ (shrink[:, None] * rotated)
        room = np.square(vectors) @ shrink - share  # 1 - h, with the bias's own leverage
        errors[k] = np.square(residual / room[:, None]).sum() / weights.sum()
    alpha = alphas[int(np.argmin(errors))]
    weight = x.T @ (vectors @ (rotated / (values + alpha)[:, None]))
    return Ridge(weight, mean_y - mean_x @ weight, alpha, errors / targets.shape[1])


def held_out(features, targets, fold, weights=None):
    """(n, C) outputs for each image of the Ridge that was fitted without its fold; nan where it is in none.

    Features are standardized, and the penalty is chosen, by the images of the other folds alone.
    """
    outputs = np.full(targets.shape, np.nan)
    for train, held in parts(fold):
        scale = Scaling.of(features[train])
        model = fit(scale(features[train]), targets[train], weights=None if weights is None else weights[train])
        outputs[held] = model(scale(features[held]))
    return outputs
