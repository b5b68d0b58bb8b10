"""torch.ops.bitfast.{group_norm_act, add_group_norm_act, group_norm_act_backward} and the function users call."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bitfast.numerics import GN_EPS, GN_GROUPS
from bitfast.ops import _cuda, _dispatch, _triton
from bitfast.ops._dtypes import accumulate_dtype, require_dtype
from bitfast.ops._library import LIBRARY, below_autograd, native_missing, needs_graph, refuse_second_derivative
from bitfast.ops.group_norm import reference

_NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_NATIVE_ACT = {"none": 0, "relu": 1, "silu": 2}

LIBRARY.define(
    "group_norm_act(Tensor x, Tensor weight, Tensor bias, int groups, float eps, str act)"
    " -> (Tensor y, Tensor mean, Tensor rstd)"
)
LIBRARY.define(
    "add_group_norm_act(Tensor x, Tensor residual, Tensor weight, Tensor bias, int groups, float eps, str act)"
    " -> (Tensor y, Tensor s, Tensor mean, Tensor rstd)"
)
LIBRARY.define(
    "group_norm_act_backward(Tensor dy, Tensor? ds, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd,"
    " int groups, str act) -> (Tensor dx, Tensor dw, Tensor db)"
)
_GROUP_NORM_ACT = torch.ops.bitfast.group_norm_act.default
_ADD_GROUP_NORM_ACT = torch.ops.bitfast.add_group_norm_act.default
_BACKWARD = torch.ops.bitfast.group_norm_act_backward.default


def group_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    groups: int = GN_GROUPS,
    eps: float = GN_EPS,
    act: str = "relu",
) -> Any:
    """GroupNorm, affine, activation; optionally of x + residual.

        s = x + residual;  y = act((s - mean_g) / sqrt(var_g + eps) * weight + bias)

    Shapes:  x, residual (N, C, H, W), channels_last or contiguous, kept; other strides are copied to the nearer of the
             two; weight, bias (C,); returns y, or (y, s) with a residual
    Dtypes:  x, residual fp32 | bf16 | fp16 | fp64; weight, bias fp32 (fp64 for fp64); statistics and sums fp32 (fp64)
    Traffic: forward reads x (and residual) once and writes y (and s) while a slab fits the cache; saves x (or s),
             mean and rstd (N, G) for backward
    Raises:  ValueError on shapes, C % groups, act or device; TypeError on dtypes
    Source:  Wu & He 2018 (1803.08494); eps and groups as in the BiT release
    """
    check(x, weight, bias, residual, groups, act)
    if residual is None:
        return _GROUP_NORM_ACT(x, weight, bias, groups, eps, act)[0]
    return _ADD_GROUP_NORM_ACT(x, residual, weight, bias, groups, eps, act)[:2]


def check(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, act: str) -> None:
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be 4-D (N, C, H, W)")
    if 0 in x.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)}; only N may be 0")
    require_dtype("x", x.dtype)
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups is {groups} and C is {channels}; groups must divide C")
    if act not in reference.ACTIVATIONS:
        raise ValueError(f"act is {act!r}; it must be one of {', '.join(reference.ACTIVATIONS)}")
    parameter_dtype = accumulate_dtype(x.dtype)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter.dtype != parameter_dtype:
            raise TypeError(f"{name} is {parameter.dtype}; it must be {parameter_dtype} when x is {x.dtype}")
        if parameter.shape != (channels,):
            raise ValueError(f"{name} has shape {tuple(parameter.shape)}; it must be ({channels},), the channels of x")
        if parameter.device != x.device:
            raise ValueError(f"{name} is on {parameter.device}; it must be on {x.device}, where x is")
    if residual is not None:
        if residual.shape != x.shape:
            raise ValueError(f"residual has shape {tuple(residual.shape)}; it must be {tuple(x.shape)}, that of x")
        if residual.dtype != x.dtype:
            raise TypeError(f"residual is {residual.dtype}; it must be {x.dtype}, the dtype of x")
        if residual.device != x.device:
            raise ValueError(f"residual is on {residual.device}; it must be on {x.device}, where x is")


def _layout(x: Tensor) -> torch.memory_format:
    """The layout that the results have: that of x, or the nearer one where x is strided."""
    if x.is_contiguous() or (x.stride(1) != 1 and not x.is_contiguous(memory_format=torch.channels_last)):
        return torch.contiguous_format
    return torch.channels_last


def _forward(x, weight, bias, groups, eps, act):
    x = x.contiguous(memory_format=_layout(x))
    y, _, mean, rstd = _dispatch.select("group_norm", x, groups=groups)(x, None, weight, bias, groups, eps, act)
    return y, mean, rstd


def _add_forward(x, residual, weight, bias, groups, eps, act):
    layout = _layout(x)
    x, residual = x.contiguous(memory_format=layout), residual.contiguous(memory_format=layout)
    return _dispatch.select("group_norm", x, groups=groups)(x, residual, weight, bias, groups, eps, act)


def _backward(dy, ds, x, weight, bias, mean, rstd, groups, act):
    layout = _layout(x)
    if layout == torch.channels_last and dy.is_contiguous() and not dy.is_contiguous(memory_format=layout):
        _dispatch.say_once("group_norm_backward got a gradient that is not channels_last, as x is: it is copied")
    x, dy = x.contiguous(memory_format=layout), dy.contiguous(memory_format=layout)
    ds = ds if ds is None else ds.contiguous(memory_format=layout)
    run = _dispatch.select("group_norm_backward", x, groups=groups)
    return run(dy, ds, x, weight, bias, mean, rstd, groups, act)


LIBRARY.impl("group_norm_act", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("add_group_norm_act", _add_forward, "CompositeExplicitAutograd")
LIBRARY.impl("group_norm_act_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("bitfast::group_norm_act", lib=LIBRARY)
def _(x, weight, bias, groups, eps, act):
    statistics = x.new_empty((x.shape[0], groups), dtype=accumulate_dtype(x.dtype))
    return torch.empty_like(x, memory_format=_layout(x)), statistics, torch.empty_like(statistics)


@torch.library.register_fake("bitfast::add_group_norm_act", lib=LIBRARY)
def _(x, residual, weight, bias, groups, eps, act):
    statistics = x.new_empty((x.shape[0], groups), dtype=accumulate_dtype(x.dtype))
    y = torch.empty_like(x, memory_format=_layout(x))
    return y, torch.empty_like(y), statistics, torch.empty_like(statistics)


@torch.library.register_fake("bitfast::group_norm_act_backward", lib=LIBRARY)
def _(dy, ds, x, weight, bias, mean, rstd, groups, act):
    return torch.empty_like(x, memory_format=_layout(x)), torch.empty_like(weight), torch.empty_like(bias)


class _GroupNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, act):
        y, mean, rstd = below_autograd(_GROUP_NORM_ACT, x, weight, bias, groups, eps, act)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.act = groups, act
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        return y, mean, rstd

    @staticmethod
    def backward(ctx, dy, _dmean, _drstd):
        refuse_second_derivative("group_norm_act")
        if dy is None:
            return (None,) * 6
        dx, dw, db = _BACKWARD(dy, None, *ctx.saved_tensors, ctx.groups, ctx.act)
        return dx, dw, db, None, None, None


class _AddGroupNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, groups, eps, act):
        y, s, mean, rstd = below_autograd(_ADD_GROUP_NORM_ACT, x, residual, weight, bias, groups, eps, act)
        ctx.save_for_backward(s, weight, bias, mean, rstd)
        ctx.groups, ctx.act = groups, act
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        return y, s, mean, rstd

    @staticmethod
    def backward(ctx, dy, ds, _dmean, _drstd):
        refuse_second_derivative("group_norm_act")
        if dy is None:
            return ds, ds, None, None, None, None, None
        dx, dw, db = _BACKWARD(dy, ds, *ctx.saved_tensors, ctx.groups, ctx.act)
        return dx, dx, dw, db, None, None, None


def _autograd(x, weight, bias, groups, eps, act):
    if needs_graph(x, weight, bias):
        return _GroupNormAct.apply(x, weight, bias, groups, eps, act)
    return below_autograd(_GROUP_NORM_ACT, x, weight, bias, groups, eps, act)


def _add_autograd(x, residual, weight, bias, groups, eps, act):
    if needs_graph(x, residual, weight, bias):
        return _AddGroupNormAct.apply(x, residual, weight, bias, groups, eps, act)
    return below_autograd(_ADD_GROUP_NORM_ACT, x, residual, weight, bias, groups, eps, act)


LIBRARY.impl("group_norm_act", _autograd, "Autograd")
LIBRARY.impl("add_group_norm_act", _add_autograd, "Autograd")


def _native_forward(x, residual, weight, bias, groups, eps, act):
    native = torch.ops.bitfast_native
    if residual is None:
        y, mean, rstd = native.group_norm_act.default(x, weight, bias, groups, eps, _NATIVE_ACT[act])
        return y, x, mean, rstd
    return native.add_group_norm_act.default(x, residual, weight, bias, groups, eps, _NATIVE_ACT[act])


def _native_backward(dy, ds, x, weight, bias, mean, rstd, groups, act):
    backward = torch.ops.bitfast_native.group_norm_act_backward.default
    return backward(dy, ds, x, weight, bias, mean, rstd, groups, _NATIVE_ACT[act])


def _native_supports(x: Tensor, groups: int = GN_GROUPS) -> str:
    if x.dtype not in _NATIVE_DTYPES:
        return f"it has no {x.dtype}"
    return native_missing()


def _triton_forward(*arguments):
    from bitfast.ops.group_norm import triton_impl

    return triton_impl.forward(*arguments)


def _triton_backward(*arguments):
    from bitfast.ops.group_norm import triton_impl

    return triton_impl.backward(*arguments)


def _triton_supports(x: Tensor, groups: int = GN_GROUPS) -> str:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return _triton.supports(x) or ("" if last else "the tensor is not channels_last")


def _cuda_forward(x, residual, weight, bias, groups, eps, act):
    cuda = _cuda.operators(x)
    if residual is None:
        y, mean, rstd = cuda.group_norm_act.default(x, weight, bias, groups, eps, _NATIVE_ACT[act])
        return y, x, mean, rstd
    return cuda.add_group_norm_act.default(x, residual, weight, bias, groups, eps, _NATIVE_ACT[act])


def _cuda_backward(dy, ds, x, weight, bias, mean, rstd, groups, act):
    backward = _cuda.operators(x).group_norm_act_backward.default
    dx, dw, db = backward(dy, ds, x, weight, bias, mean, rstd, groups, _NATIVE_ACT[act])
    return dx, dw.sum(0), db.sum(0)


def _cuda_supports(x: Tensor, groups: int = GN_GROUPS) -> str:
    return _cuda_objection(x, groups, backward=False)


def _cuda_backward_supports(x: Tensor, groups: int = GN_GROUPS) -> str:
    return _cuda_objection(x, groups, backward=True)


def _cuda_objection(x: Tensor, groups: int, backward: bool) -> str:
    if _cuda.supports(x):
        return _cuda.supports(x)
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "the tensor is not channels_last"
    if x.data_ptr() % 16:
        return "the tensor begins at an address that 16 does not divide"
    return slab_objection(x.shape, x.dtype, x.device, groups, backward)


@lru_cache(maxsize=1024)
def slab_objection(shape: torch.Size, dtype: torch.dtype, device: torch.device, groups: int, backward: bool) -> str:
    """Why shared memory cannot hold slabs of such images, or ""."""
    like = torch.empty(0, dtype=dtype, device=device)
    n, channels, height, width = shape
    return _cuda.operators(like).group_norm_objection.default(like, n, channels, height * width, groups, backward)


_dispatch.register(
    "group_norm",
    _dispatch.Impl("native", _native_forward, _native_supports, devices=("cpu",)),
    _dispatch.Impl("cuda", _cuda_forward, _cuda_supports, devices=(), on_request=_cuda.ON_REQUEST),
    _dispatch.Impl("triton", _triton_forward, _triton_supports, devices=("cuda",), on_request=_triton.ON_REQUEST),
    _dispatch.Impl("reference", reference.forward, _dispatch.anything),
)
_dispatch.register(
    "group_norm_backward",
    _dispatch.Impl("native", _native_backward, _native_supports, devices=("cpu",)),
    _dispatch.Impl("cuda", _cuda_backward, _cuda_backward_supports, devices=(), on_request=_cuda.ON_REQUEST),
    _dispatch.Impl("triton", _triton_backward, _triton_supports, devices=("cuda",), on_request=_triton.ON_REQUEST),
    _dispatch.Impl("reference", reference.backward, _dispatch.anything),
)
