"""Features brought to mean 0 and standard deviation 1, and a linear map of those as one of the features themselves."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Scaling:
    """z = (x - mean) / std per feature; mean, std (D,) float64. A feature that never varies has std 1."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, features):
        """That of features (n, D)."""
        mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
        constant = std <= 1e-12 * np.abs(mean)  # what rounding leaves of a constant
        return cls(mean, np.where(constant, 1.0, std))

    def __call__(self, features):
        """(n, D) float64."""
        return (features - self.mean) / self.std

    def unscaled(self, weight, bias):
        """(weight (D, C), bias (C,)) for z -> the same outputs for x."""
        weight = weight / self.std[:, None]
        return weight, bias - self.mean @ weight
