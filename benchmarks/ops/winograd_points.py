"""Rounding error of Winograd's minimal filtering by its points: python -m benchmarks.ops.winograd_points

A 3x3 convolution of 256 rectified normal channels with standardized weights, in float32 against float64; the root mean
square and the largest error, both relative to the root mean square of the result. No timing, so nothing is saved.
"""

import numpy as np

ROOT2 = 2**0.5
POINTS = {
    "F(2x2)  0, +-1": (2, (0, 1, -1)),
    "F(4x4)  0, +-1, +-2": (4, (0, 1, -1, 2, -2)),
    "F(4x4)  0, +-1, 1/2, -2": (4, (0, 1, -1, 0.5, -2)),
    "F(4x4)  0, +-3/4, +-3/2": (4, (0, 0.75, -0.75, 1.5, -1.5)),
    "F(4x4)  0, +-1/sqrt2, +-sqrt2": (4, (0, 1 / ROOT2, -1 / ROOT2, ROOT2, -ROOT2)),
    "F(6x6)  0, +-1, +-2, +-1/2": (6, (0, 1, -1, 2, -2, 0.5, -0.5)),
}


def transforms(outputs, points):
    """Cook and Toom's AT (m, n), G (n, 3), BT (n, n) for finite points and infinity, n = m + 2."""
    n = outputs + 2
    at, g, bt = np.zeros((outputs, n)), np.zeros((n, 3)), np.zeros((n, n))
    at[-1, -1] = g[-1, -1] = 1
    for j, a in enumerate([*points, None]):
        others = [b for b in points if b != a]
        polynomial = np.array([1.0])
        for b in others:
            polynomial = np.convolve(polynomial, [-b, 1.0])
        bt[j, : len(polynomial)] = polynomial
        if a is not None:
            at[:, j] = [float(a) ** i for i in range(outputs)]
            g[j] = np.array([1, a, a * a]) / np.prod([a - b for b in others])
    return at, g, bt


def convolve(x, w, outputs, points, dtype):
    """One tile of `outputs` x `outputs` of every image of x (N, n, n, C), weights w (C, 3, 3, K)."""
    at, g, bt = (m.astype(dtype) for m in transforms(outputs, points))

    def both(m, t):
        return np.einsum("ai,bj,nijc->nabc", m, m, t, optimize=True)

    u = np.einsum("ai,bj,cijk->abck", g, g, w.astype(dtype), optimize=True)
    return both(at, np.einsum("nabc,abck->nabk", both(bt, x.astype(dtype)), u, optimize=True))


def main():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(256, 3, 3, 32))
    w = ((w - w.mean((0, 1, 2))) / w.std((0, 1, 2))).astype(np.float32)
    for name, (outputs, points) in POINTS.items():
        x = np.maximum(rng.normal(size=(200, outputs + 2, outputs + 2, 256)), 0).astype(np.float32)
        truth = convolve(x, w, outputs, points, np.float64)
        error, scale = np.abs(convolve(x, w, outputs, points, np.float32) - truth), np.sqrt((truth**2).mean())
        print(f"{name:32} rms {np.sqrt((error**2).mean()) / scale:.2e}  largest {error.max() / scale:.2e}")


if __name__ == "__main__":
    main()
