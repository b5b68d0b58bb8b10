"""MixUp of a batch with its permuted self (Zhang et al. 2018, 1710.09412)."""

import numpy as np


def mix(images, partner, lam):
    """lam * x + (1 - lam) * x[partner], in place, pair by pair: what is mixed stays in the caches.

    Shapes:  images (N, C, H, W), memory layout kept; partner (N,) integers, an involution; lam a float
    Dtypes:  fp32
    Raises:  ValueError if partner is no involution
    Returns  images
    """
    partner = np.asarray(partner)
    if (partner[partner] != np.arange(len(partner))).any():
        raise ValueError("mixup partners are not pairs: partner[partner[i]] must be i")
    if lam != 1:
        for i in np.flatnonzero(partner > np.arange(len(partner))).tolist():
            a, b = images[i], images[partner[i].item()]
            moved = (a - b).mul_(1 - lam)
            a.sub_(moved)
            b.add_(moved)
    return images
