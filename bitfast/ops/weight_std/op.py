"""torch.ops.bitfast.{weight_standardize, weight_standardize_backward, weight_gradient_norms} and what users call."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from bitfast.numerics import WS_EPS
from bitfast.ops import _cuda, _dispatch, _triton
from bitfast.ops._dtypes import accumulate_dtype, require_dtype
from bitfast.ops._library import LIBRARY, below_autograd, native_missing, needs_graph, refuse_second_derivative
from bitfast.ops.weight_std import reference

_NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)

LIBRARY.define("weight_standardize(Tensor[] weights, float eps, ScalarType? dtype) -> Tensor[]")
LIBRARY.define("weight_standardize_backward(Tensor[] dw_hat, Tensor[] weights, float eps) -> Tensor[]")
_STANDARDIZE = torch.ops.bitfast.weight_standardize.default
LIBRARY.define("weight_gradient_norms(Tensor[] dw_hat, Tensor[] weights, float eps) -> Tensor")
_BACKWARD = torch.ops.bitfast.weight_standardize_backward.default
_NORMS = torch.ops.bitfast.weight_gradient_norms.default


def weight_standardize(
    weights: Sequence[Tensor], eps: float = WS_EPS, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Every row (output filter) of every weight, made zero mean and unit variance.

        w_hat = (w - mean) / sqrt(var + eps), biased variance over the dims after the first

    Shapes:  each weight (O, ...), 2-D or more; results have its shape and memory format
    Dtypes:  fp32 | bf16 | fp16 | fp64; results in `dtype` or that of the weight; statistics fp32 (fp64 for fp64)
    Traffic: reads each weight once, writes the result
    Raises:  TypeError on other dtypes; ValueError on a weight that is not (O, ...) with elements in a row, and on
             another device than the first's
    Source:  Qiao et al. 2019 (1903.10520); eps as in the BiT release
    """
    _check("weights", weights)
    require_device("weights", weights)
    if dtype is not None:
        require_dtype("dtype", dtype)
    return _STANDARDIZE(weights, eps, dtype)


def weight_standardize_backward(
    dw_hat: Sequence[Tensor], weights: Sequence[Tensor], eps: float = WS_EPS
) -> list[Tensor]:
    """The gradient for the weights, given that for the standardized weights.

        g = rstd * (d - mean(d) - w_hat * mean(d * w_hat)), means over a row

    Shapes:  d and w alike (O, ...); results have the shape and memory format of the weights
    Dtypes:  d and w fp32 | bf16 | fp16 | fp64, not necessarily the same; results in the dtype of the weight;
             statistics and sums fp32 (fp64 for fp64 weights)
    Traffic: reads d and w once, writes g
    Raises:  TypeError on other dtypes; ValueError on unlike lists, shapes or devices
    Source:  derivative of weight_standardize; linear in d, so gradients may be summed before it
    """
    _check_gradients(dw_hat, weights)
    return _BACKWARD(dw_hat, weights, eps)


def weight_gradient_norms(dw_hat: Sequence[Tensor], weights: Sequence[Tensor], eps: float = WS_EPS) -> Tensor:
    """The L2 norm of every row of the gradients for the weights, given those for the standardized weights.

        norm = |g| of each row, g = weight_standardize_backward(dw_hat, weights)

    Their own norm is the global one that gradients are clipped by.

    Shapes:  d and w alike (O, ...), at least one; returns (sum of all O,), one weight after another
    Dtypes:  d and w fp32 | bf16 | fp16 | fp64; norms fp32, or fp64 where the first weight is
    Traffic: reads d and w once; g is written and read only where no kernel for the norms alone runs
    Raises:  TypeError on other dtypes; ValueError on unlike or empty lists, shapes or devices
    Source:  norm of the derivative of weight_standardize
    """
    if not weights:
        raise ValueError("weights is empty; there must be at least one")
    _check_gradients(dw_hat, weights)
    return _NORMS(dw_hat, weights, eps)


def _check_gradients(dw_hat: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    _check("weights", weights)
    _check("dw_hat", dw_hat)
    require_device("weights", weights)
    if len(dw_hat) != len(weights):
        raise ValueError(f"dw_hat has {len(dw_hat)} tensors; it must have {len(weights)}, one for each weight")
    for i, (d, w) in enumerate(zip(dw_hat, weights, strict=True)):
        if d.shape != w.shape:
            raise ValueError(f"dw_hat[{i}] has shape {tuple(d.shape)}; it must be {tuple(w.shape)}, that of its weight")
    require_device("dw_hat", dw_hat, weights)


def _check(name: str, tensors: Sequence[Tensor]) -> None:
    for i, w in enumerate(tensors):
        require_dtype(f"{name}[{i}]", w.dtype)
        if w.dim() < 2 or 0 in w.shape[1:]:
            raise ValueError(f"{name}[{i}] has shape {tuple(w.shape)}; it must be (O, ...) with elements in every row")


def require_device(name: str, tensors: Sequence[Tensor], like: Sequence[Tensor] = ()) -> None:
    """Raise ValueError unless all are on one device, that of `like`."""
    for i, t in enumerate(tensors):
        device = (*like, *tensors)[0].device
        if t.device != device:
            raise ValueError(
                f"{name}[{i}] is on {t.device}; it must be on {device}, as the first tensor of the call is"
            )


def is_dense(x: Tensor) -> bool:
    """Whether `x` has one of the two layouts in which the rows of a weight lie one after the other."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def dense(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Autograd hands on gradients of any strides: those that are not dense are copied."""
    return [d if is_dense(d) else d.contiguous() for d in gradients]


def _forward(weights, eps, dtype):
    return _dispatch.select("weight_std", *weights, masters=dtypes(weights))(weights, eps, dtype) if weights else []


def _backward(dw_hat, weights, eps):
    dw_hat = dense(dw_hat)
    if not weights:
        return []
    return _dispatch.select("weight_std_backward", *weights, *dw_hat, masters=dtypes(weights))(dw_hat, weights, eps)


def _norms(dw_hat, weights, eps):
    dw_hat = dense(dw_hat)
    return _dispatch.select("weight_gradient_norms", *weights, *dw_hat, masters=dtypes(weights))(dw_hat, weights, eps)


def _composed_norms(dw_hat, weights, eps):
    dtype = accumulate_dtype(weights[0].dtype)
    gradients = _BACKWARD(dw_hat, weights, eps)
    return torch.cat([torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=dtype) for g in gradients])


LIBRARY.impl("weight_gradient_norms", _norms, "CompositeExplicitAutograd")
LIBRARY.impl("weight_standardize", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("weight_standardize_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("bitfast::weight_standardize", lib=LIBRARY)
def _(weights, eps, dtype):
    return [torch.empty_like(w, dtype=dtype or w.dtype) for w in weights]


@torch.library.register_fake("bitfast::weight_standardize_backward", lib=LIBRARY)
def _(dw_hat, weights, eps):
    return [torch.empty_like(w) for w in weights]


@torch.library.register_fake("bitfast::weight_gradient_norms", lib=LIBRARY)
def _(dw_hat, weights, eps):
    return weights[0].new_empty(sum(len(w) for w in weights), dtype=accumulate_dtype(weights[0].dtype))


class _WeightStandardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, eps, dtype, *weights):
        ctx.save_for_backward(*weights)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return tuple(below_autograd(_STANDARDIZE, weights, eps, dtype))

    @staticmethod
    def backward(ctx, *dw_hat):
        refuse_second_derivative("weight_standardize")
        used = [i for i, d in enumerate(dw_hat) if d is not None]
        grads = _BACKWARD([dw_hat[i] for i in used], [ctx.saved_tensors[i] for i in used], ctx.eps)
        of = dict(zip(used, grads, strict=True))
        return None, None, *(of.get(i) for i in range(len(dw_hat)))


def _autograd(weights, eps, dtype):
    if needs_graph(*weights):
        return list(_WeightStandardize.apply(eps, dtype, *weights))
    return below_autograd(_STANDARDIZE, weights, eps, dtype)


LIBRARY.impl("weight_standardize", _autograd, "Autograd")


def dtypes(tensors: Sequence[Tensor]) -> frozenset[torch.dtype]:
    return frozenset(t.dtype for t in tensors)


def native_supports(x: Tensor, masters: Collection[torch.dtype] = ()) -> str:
    """Why the native kernels cannot take a tensor like `x`, a weight or what goes with one; "" if they can."""
    if x.dtype not in _NATIVE_DTYPES:
        return f"it has no {x.dtype}"
    if not is_dense(x):
        return "a tensor is neither contiguous nor channels_last"
    return native_missing()


def _native_forward(weights, eps, dtype):
    if dtype == torch.float16:
        return [w_hat.to(dtype) for w_hat in _native_forward(weights, eps, torch.float32)]
    return torch.ops.bitfast_native.weight_standardize.default(weights, eps, dtype)


def _native_backward(dw_hat, weights, eps):
    return torch.ops.bitfast_native.weight_standardize_backward.default(dw_hat, weights, eps)


def triton_supports(x: Tensor, masters: Collection[torch.dtype] = ()) -> str:
    """Why the Triton kernels cannot take a tensor like `x`, a weight or what goes with one; "" if they can."""
    return _triton.supports(x) or ("" if is_dense(x) else "a tensor is neither contiguous nor channels_last")


def _triton_forward(weights, eps, dtype):
    from bitfast.ops.weight_std import triton_impl

    if dtype == torch.float64:
        return [w_hat.to(dtype) for w_hat in triton_impl.forward(weights, eps, torch.float32)]
    return triton_impl.forward(weights, eps, dtype)


def _triton_backward(dw_hat, weights, eps):
    from bitfast.ops.weight_std import triton_impl

    return triton_impl.backward(dw_hat, weights, eps)


def cuda_supports(x: Tensor, masters: Collection[torch.dtype] = ()) -> str:
    """Why the CUDA kernels cannot take a tensor like `x`, a weight or what goes with one; "" if they can.

    `masters`: the dtypes of the weights, or of what an optimizer keeps.
    """
    for dtype in masters:
        if dtype != torch.float32:
            return f"it keeps weights in torch.float32, one is {dtype}"
    return _cuda.supports(x) or ("" if is_dense(x) else "a tensor is neither contiguous nor channels_last")


def _cuda_forward(weights, eps, dtype):
    if dtype == torch.float64:
        return [w_hat.to(dtype) for w_hat in _cuda_forward(weights, eps, torch.float32)]
    return _cuda.operators(weights[0]).weight_standardize.default(weights, eps, dtype)


def _cuda_norms(dw_hat, weights, eps):
    return _cuda.operators(weights[0]).weight_gradient_norms.default(dw_hat, weights, eps)


def _cuda_backward(dw_hat, weights, eps):
    return _cuda.operators(weights[0]).weight_standardize_backward.default(dw_hat, weights, eps)


_dispatch.register(
    "weight_std",
    _dispatch.Impl("native", _native_forward, native_supports, devices=("cpu",)),
    _dispatch.Impl("cuda", _cuda_forward, cuda_supports, devices=(), on_request=_cuda.ON_REQUEST),
    _dispatch.Impl("triton", _triton_forward, triton_supports, devices=("cuda",), on_request=_triton.ON_REQUEST),
    _dispatch.Impl("reference", reference.forward, _dispatch.anything),
)
_dispatch.register(
    "weight_std_backward",
    _dispatch.Impl("native", _native_backward, native_supports, devices=("cpu",)),
    _dispatch.Impl("cuda", _cuda_backward, cuda_supports, devices=(), on_request=_cuda.ON_REQUEST),
    _dispatch.Impl("triton", _triton_backward, triton_supports, devices=("cuda",), on_request=_triton.ON_REQUEST),
    _dispatch.Impl("reference", reference.backward, _dispatch.anything),
)
_dispatch.register(
    "weight_gradient_norms",
    _dispatch.Impl("cuda", _cuda_norms, cuda_supports, devices=(), on_request=_cuda.ON_REQUEST),
    _dispatch.Impl("composed", _composed_norms, _dispatch.anything),
)
