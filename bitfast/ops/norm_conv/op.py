"""torch.ops.bitfast.{norm_conv, add_norm_conv, norm_conv_backward} and the function the network calls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitfast.numerics import GN_EPS, GN_GROUPS
from bitfast.ops import _dispatch
from bitfast.ops._dtypes import accumulate_dtype
from bitfast.ops._library import LIBRARY, below_autograd, needs_graph, refuse_second_derivative
from bitfast.ops.group_norm.op import check, group_norm_act
from bitfast.ops.norm_conv import composed, native
from bitfast.ops.norm_conv.reference import convolve

_ARGUMENTS = "Tensor weight, Tensor bias, Tensor[] kernels, int[] strides, int groups, float eps"
LIBRARY.define(f"norm_conv(Tensor x, {_ARGUMENTS}, bool keep_filters) -> (Tensor[] y, Tensor mean, Tensor rstd)")
LIBRARY.define(
    f"add_norm_conv(Tensor x, Tensor residual, {_ARGUMENTS}, bool keep_filters)"
    " -> (Tensor[] y, Tensor s, Tensor mean, Tensor rstd)"
)
LIBRARY.define(
    "norm_conv_backward(Tensor[] dy, Tensor? ds, Tensor s, Tensor mean, Tensor rstd, "
    f"{_ARGUMENTS}, bool[] wanted) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor[] dkernels)"
)
_NORM_CONV = torch.ops.bitfast.norm_conv.default
_ADD_NORM_CONV = torch.ops.bitfast.add_norm_conv.default
_BACKWARD = torch.ops.bitfast.norm_conv_backward.default


def norm_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    kernels: Sequence[Tensor],
    strides: Sequence[int],
    *,
    residual: Tensor | None = None,
    groups: int = GN_GROUPS,
    eps: float = GN_EPS,
    save_memory: bool = False,
) -> Any:
    """GroupNorm, affine, ReLU, then one or more convolutions of the result; optionally of x + residual.

        s = x + residual;  a = relu((s - mean_g) / sqrt(var_g + eps) * weight + bias);  y_i = conv(a, kernel_i)

    Shapes:  x, residual (N, C, H, W); weight, bias (C,); kernels (O, C, KH, KW), odd, padded by KH // 2 and KW // 2,
             each with its stride; returns [y_i (N, O, H', W')], or ([y_i], s) with a residual; channels_last
    Dtypes:  as group_norm_act; kernels that of x; native on the CPU in fp32, and in bf16 where that is emulated
    Memory:  native keeps s, mean and rstd for backward. Elsewhere a is kept too, or with `save_memory` made again there
    Raises:  ValueError on shapes, C % groups, strides or device; TypeError on dtypes
    Source:  the pre-activation of He et al. 2016 (1603.05027) as in the BiT release, models.py; the 3x3 by Winograd's
             minimal filtering (Lavin & Gray 2015, 1509.09308)
    """
    check(x, weight, bias, residual, groups, "relu")
    _check_kernels(x, kernels, strides)
    whole = True if x.shape[1] % 32 == 0 else False  # a constant, also where the channels are symbols of a compiler
    if not save_memory and not _is_native(x.device.type, x.dtype, whole):
        a = group_norm_act(_last(x), weight, bias, residual=residual, groups=groups, eps=eps)
        a, *s = [a] if residual is None else a
        ys = [convolve(a, k, stride) for k, stride in zip(kernels, strides, strict=True)]
        return (ys, *s) if s else ys
    # Outside training a kernel stays as it is, and what is made of it once is kept.
    settings = weight, bias, kernels, strides, groups, eps, not torch.is_grad_enabled()
    if residual is None:
        return _NORM_CONV(x, *settings)[0]
    return _ADD_NORM_CONV(x, residual, *settings)[:2]


@torch.compiler.assume_constant_result
def _is_native(device: str, dtype: torch.dtype, whole: bool) -> bool:
    if device != "cpu":
        return False
    return _dispatch.select("norm_conv", torch.empty(1, 32 if whole else 1, 1, 1, dtype=dtype)) is native.forward


def _check_kernels(x: Tensor, kernels: Sequence[Tensor], strides: Sequence[int]) -> None:
    if not kernels or len(kernels) != len(strides):
        raise ValueError(
            f"there are {len(kernels)} kernels and {len(strides)} strides; give one stride for each kernel"
        )
    for i, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        shape = tuple(kernel.shape)
        if kernel.dim() != 4 or shape[1] != x.shape[1] or shape[2] % 2 == 0 or shape[3] % 2 == 0 or shape[0] == 0:
            raise ValueError(f"kernels[{i}] has shape {shape}; it must be (O, {x.shape[1]}, KH, KW) with odd KH and KW")
        if kernel.dtype != x.dtype:
            raise TypeError(f"kernels[{i}] is {kernel.dtype}; it must be {x.dtype}, the dtype of x")
        if kernel.device != x.device:
            raise ValueError(f"kernels[{i}] is on {kernel.device}; it must be on {x.device}, where x is")
        if stride < 1:
            raise ValueError(f"strides[{i}] is {stride}; it must be at least 1")


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _forward(x, weight, bias, kernels, strides, groups, eps, keep_filters):
    run = _dispatch.select("norm_conv", x, *kernels)
    ys, _, mean, rstd = run(_last(x), None, weight, bias, kernels, strides, groups, eps, keep_filters)
    return ys, mean, rstd


def _add_forward(x, residual, weight, bias, kernels, strides, groups, eps, keep_filters):
    run = _dispatch.select("norm_conv", x, *kernels)
    return run(_last(x), _last(residual), weight, bias, kernels, strides, groups, eps, keep_filters)


def _backward(dy, ds, s, mean, rstd, weight, bias, kernels, strides, groups, eps, wanted):
    run = _dispatch.select("norm_conv_backward", s, *kernels)
    ds = ds if ds is None else _last(ds)
    return run([_last(d) for d in dy], ds, _last(s), weight, bias, mean, rstd, kernels, strides, groups, eps, wanted)


LIBRARY.impl("norm_conv", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("add_norm_conv", _add_forward, "CompositeExplicitAutograd")
LIBRARY.impl("norm_conv_backward", _backward, "CompositeExplicitAutograd")


def _empty(x, channels, height, width):
    return x.new_empty((x.shape[0], channels, height, width)).contiguous(memory_format=torch.channels_last)


def _results(x, kernels, strides):
    height, width = x.shape[2:]
    return [
        _empty(x, k.shape[0], (height - 1) // stride + 1, (width - 1) // stride + 1)
        for k, stride in zip(kernels, strides, strict=True)
    ]


@torch.library.register_fake("bitfast::norm_conv", lib=LIBRARY)
def _(x, weight, bias, kernels, strides, groups, eps, keep_filters):
    statistics = x.new_empty((x.shape[0], groups), dtype=accumulate_dtype(x.dtype))
    return _results(x, kernels, strides), statistics, torch.empty_like(statistics)


@torch.library.register_fake("bitfast::add_norm_conv", lib=LIBRARY)
def _(x, residual, weight, bias, kernels, strides, groups, eps, keep_filters):
    statistics = x.new_empty((x.shape[0], groups), dtype=accumulate_dtype(x.dtype))
    return _results(x, kernels, strides), _empty(x, *x.shape[1:]), statistics, torch.empty_like(statistics)


@torch.library.register_fake("bitfast::norm_conv_backward", lib=LIBRARY)
def _(dy, ds, s, mean, rstd, weight, bias, kernels, strides, groups, eps, wanted):
    dkernels = [
        torch.empty_like(k, memory_format=torch.channels_last) for k, w in zip(kernels, wanted, strict=True) if w
    ]
    return _empty(s, *s.shape[1:]), torch.empty_like(weight), torch.empty_like(bias), dkernels


class _NormConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, groups, eps, strides, *kernels):
        arguments = weight, bias, kernels, strides, groups, eps, False
        if residual is None:
            ys, mean, rstd = below_autograd(_NORM_CONV, x, *arguments)
            s, results = x, ys
        else:
            ys, s, mean, rstd = below_autograd(_ADD_NORM_CONV, x, residual, *arguments)
            results = [*ys, s]
        ctx.save_for_backward(s, mean, rstd, weight, bias, *kernels)
        ctx.groups, ctx.eps, ctx.strides = groups, eps, strides
        ctx.shapes = [(y.shape, y.dtype, y.device) for y in ys]
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        return *results, mean, rstd

    @staticmethod
    def backward(ctx, *gradients):
        refuse_second_derivative("norm_conv")
        s, mean, rstd, weight, bias, *kernels = ctx.saved_tensors
        dys, others = gradients[: len(kernels)], gradients[len(kernels) : -2]
        ds = others[0] if others else None
        if all(dy is None for dy in dys):
            return ds, (ds if others else None), *(None,) * (5 + len(kernels))
        dys = [
            torch.zeros(shape, dtype=dtype, device=device) if dy is None else dy
            for dy, (shape, dtype, device) in zip(dys, ctx.shapes, strict=True)
        ]
        wanted = list(ctx.needs_input_grad[7:])
        dx, dweight, dbias, dkernels = _BACKWARD(
            dys, ds, s, mean, rstd, weight, bias, kernels, ctx.strides, ctx.groups, ctx.eps, wanted
        )
        made = iter(dkernels)
        of_kernels = [next(made) if wants else None for wants in wanted]
        return dx, (dx if others else None), dweight, dbias, None, None, None, *of_kernels


def _autograd(x, weight, bias, kernels, strides, groups, eps, keep_filters):
    if needs_graph(x, weight, bias, *kernels):
        *ys, mean, rstd = _NormConv.apply(x, None, weight, bias, groups, eps, strides, *kernels)
        return ys, mean, rstd
    return below_autograd(_NORM_CONV, x, weight, bias, kernels, strides, groups, eps, keep_filters)


def _add_autograd(x, residual, weight, bias, kernels, strides, groups, eps, keep_filters):
    if needs_graph(x, residual, weight, bias, *kernels):
        *ys, s, mean, rstd = _NormConv.apply(x, residual, weight, bias, groups, eps, strides, *kernels)
        return ys, s, mean, rstd
    return below_autograd(_ADD_NORM_CONV, x, residual, weight, bias, kernels, strides, groups, eps, keep_filters)


LIBRARY.impl("norm_conv", _autograd, "Autograd")
LIBRARY.impl("add_norm_conv", _add_autograd, "Autograd")

_dispatch.register(
    "norm_conv",
    _dispatch.Impl("native", native.forward, native.supports, devices=("cpu",)),
    _dispatch.Impl("composed", composed.forward, _dispatch.anything),
)
_dispatch.register(
    "norm_conv_backward",
    _dispatch.Impl("native", native.backward, native.supports, devices=("cpu",)),
    _dispatch.Impl("composed", composed.backward, _dispatch.anything),
)
