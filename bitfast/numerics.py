"""The one home of epsilon values, accumulation rules and error bounds.

Sources: the BiT release (bit_pytorch/models.py: 1e-10 inside the square root, GroupNorm 32 groups, eps 1e-5); timm and
HF transformers standardize with 1e-8.
"""

GN_GROUPS = 32
GN_EPS = 1e-5
WS_EPS = 1e-10
WS_EPS_TIMM = 1e-8

# Bounds on the RMS of (got - truth) relative to the RMS of truth, and the absolute floor (in units of the RMS of truth)
# that is added to twice the baseline's own maximum error. About ten units in the last place of the stored dtype.
RMS_BOUND = {"float64": 1e-13, "float32": 2e-6, "bfloat16": 1e-2, "float16": 2e-3}
MAX_FLOOR = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3}

# Largest logit difference of an exported file to the network it was made of; for float16 relative to the largest logit.
EXPORT_BOUND = {"float32": 1e-4, "float16": 2e-2}


def assert_matches(got, truth, baseline, *, name="result"):
    """Raise AssertionError unless `got` is as close to the float64 `truth` as a sound implementation must be.

    got       the tensor under test, any dtype
    truth     the reference computed in float64
    baseline  the reference computed in the dtype under test

    Checks: same shape; finite wherever the truth is; RMS error ratio under the dtype's bound; maximum error at most
    twice the baseline's plus a floor.
    """
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    if truth.numel() == 0:
        return
    dtype = str(got.dtype).removeprefix("torch.")
    got64, truth64, base64 = (
        got.detach().double().cpu(),
        truth.detach().double().cpu(),
        baseline.detach().double().cpu(),
    )
    assert got64.isfinite().all(), f"{name}: {int((~got64.isfinite()).sum())} of {got64.numel()} values are not finite"
    rms = truth64.square().mean().sqrt().clamp_min(1e-30)
    error = (got64 - truth64).abs()
    ratio = float(error.square().mean().sqrt() / rms)
    base_error = (base64 - truth64).abs()
    base_ratio = float(base_error.square().mean().sqrt() / rms)
    bound = max(RMS_BOUND[dtype], 2 * base_ratio)
    assert ratio <= bound, f"{name}: RMS error ratio {ratio:.3g} over {bound:.3g} ({dtype}; baseline {base_ratio:.3g})"
    worst, allowed = float(error.max()), float(2 * base_error.max() + MAX_FLOOR[dtype] * rms)
    assert worst <= allowed, (
        f"{name}: max error {worst:.3g} over {allowed:.3g} ({dtype}; baseline {float(base_error.max()):.3g})"
    )
