"""norm_conv of the operators it is made of: group_norm_act, then torch's convolutions."""

from bitfast.ops import _dispatch
from bitfast.ops.norm_conv.reference import convolve, convolve_backward


def forward(x, residual, weight, bias, kernels, strides, groups, eps, keep_filters):
    norm = _dispatch.select("group_norm", x)
    a, s, mean, rstd = norm(x, residual, weight, bias, groups, eps, "relu")
    return [convolve(a, k, stride) for k, stride in zip(kernels, strides, strict=True)], s, mean, rstd


def backward(dys, ds, s, weight, bias, mean, rstd, kernels, strides, groups, eps, wanted):
    a = _dispatch.select("group_norm", s)(s, None, weight, bias, groups, eps, "relu")[0]
    da, dkernels = None, []
    for dy, kernel, stride, wants in zip(dys, kernels, strides, wanted, strict=True):
        part, dkernel = convolve_backward(dy, a, kernel, stride, (True, wants))
        da = part if da is None else da.add_(part)
        dkernels += [dkernel] if wants else []
    gradients = _dispatch.select("group_norm_backward", s)
    return *gradients(da, ds, s, weight, bias, mean, rstd, groups, "relu"), dkernels
