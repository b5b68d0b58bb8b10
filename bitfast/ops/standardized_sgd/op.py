"""torch.ops.bitfast.standardized_sgd_step and the function that the optimizer calls."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitfast.ops import _cuda, _dispatch, _triton
from bitfast.ops._dtypes import require_dtype
from bitfast.ops._library import LIBRARY
from bitfast.ops.standardized_sgd import reference
from bitfast.ops.weight_std.op import cuda_supports, dense, dtypes, native_supports, require_device, triton_supports

LIBRARY.define(
    "standardized_sgd_step(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] momenta, Tensor(c!)[] w_hats,"
    " float[] eps, float lr, float momentum, float weight_decay, Tensor(d!)[] averages, bool decoupled,"
    " float ema_decay) -> ()"
)
_STEP = torch.ops.bitfast.standardized_sgd_step.default


@torch.no_grad()
def standardized_sgd_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    w_hats: Sequence[Tensor],
    eps: Sequence[float],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    averages: Sequence[Tensor] = (),
    decoupled: bool = False,
    ema_decay: float = 0.0,
) -> None:
    """One step of SGD in place, of weights given the gradients of the standardized weights, and of plain parameters.

        g = rstd * (d - mean(d) - w_hat * mean(d * w_hat)), means over a row (output filter) of w
        m = momentum * m + g + weight_decay * w
        w = w - lr * m
        w_hat = standardize(w)
        a = a + (1 - ema_decay) * (w - a), with averages

    decoupled: m = momentum * m + g;  w = (1 - lr * weight_decay) * w - lr * m

    The first len(w_hats) parameters are weights: their gradient is d, and w_hat and eps belong to them. The others,
    norms, biases and a head, have no first and last line: their gradient is g. Without momenta, m is not kept.

    Shapes:  each weight (O, ...), 2-D or more, other parameters any; gradients, momenta, w_hats and averages alike,
             each in its own memory format
    Dtypes:  each fp32 | bf16 | fp16 | fp64; statistics and sums fp32 (fp64 for fp64 parameters)
    Traffic: reads parameter, gradient, momentum and average once; writes parameter, momentum, w_hat and average once
    Raises:  TypeError on other dtypes; ValueError on unlike lists, shapes or devices, or a weight that is not
             (O, ...) with elements in a row
    Source:  torch.optim.SGD of standardized weights (dampening 0, no Nesterov): Qiao et al. 2019 (1903.10520);
             decoupled decay as in torch.optim.AdamW: Loshchilov & Hutter 2017 (1711.05101)
    """
    _check(parameters, gradients, momenta, averages, w_hats, eps)
    _STEP(parameters, gradients, momenta, w_hats, eps, lr, momentum, weight_decay, list(averages), decoupled, ema_decay)


def _check(parameters, gradients, momenta, averages, w_hats, eps) -> None:
    lengths = {"gradients": len(gradients), "momenta": len(momenta), "averages": len(averages)}
    for name, length in lengths.items():
        if length != len(parameters) and (length or name == "gradients"):
            raise ValueError(f"{name} has {length} tensors; it must have {len(parameters)}, one for each parameter")
    if len(w_hats) > len(parameters):
        raise ValueError(f"w_hats has {len(w_hats)} tensors; there are only {len(parameters)} parameters")
    if len(eps) != len(w_hats):
        raise ValueError(f"eps has {len(eps)} values; it must have {len(w_hats)}, one for each of w_hats")
    for i, w in enumerate(parameters[: len(w_hats)]):
        if w.dim() < 2 or 0 in w.shape[1:]:
            raise ValueError(
                f"parameters[{i}] has shape {tuple(w.shape)}; it must be (O, ...) with elements in every row"
            )
    lists = {"parameters": parameters, "gradients": gradients, "momenta": momenta, "averages": averages}
    lists["w_hats"] = w_hats
    for name, tensors in lists.items():
        require_device(name, tensors, parameters)
        for i, (t, p) in enumerate(zip(tensors, parameters, strict=False)):
            require_dtype(f"{name}[{i}]", t.dtype)
            if t.shape != p.shape:
                raise ValueError(
                    f"{name}[{i}] has shape {tuple(t.shape)}; it must be {tuple(p.shape)}, that of its parameter"
                )


def _step(parameters, gradients, momenta, w_hats, eps, lr, momentum, weight_decay, averages, *rule):
    if parameters:
        gradients = dense(gradients)
        masters, others = [*parameters, *momenta, *averages], [*gradients, *w_hats]
        run = _dispatch.select("standardized_sgd", *masters, *others, masters=dtypes(masters))
        run(parameters, gradients, momenta, w_hats, eps, lr, momentum, weight_decay, averages, *rule)


LIBRARY.impl("standardized_sgd_step", _step, "CompositeExplicitAutograd")


@torch.library.register_fake("bitfast::standardized_sgd_step", lib=LIBRARY)
def _(*arguments):
    return None


def _native_step(*arguments):
    torch.ops.bitfast_native.standardized_sgd_step.default(*arguments)
    _count_up(*arguments)


def _cuda_step(parameters, *others):
    _cuda.operators(parameters[0]).standardized_sgd_step.default(parameters, *others)
    _count_up(parameters, *others)


def _triton_step(*arguments):
    from bitfast.ops.standardized_sgd import triton_impl

    triton_impl.step(*arguments)
    _count_up(*arguments)


def _count_up(parameters, gradients, momenta, w_hats, eps, lr, momentum, weight_decay, averages, *rule):
    torch.autograd.graph.increment_version([*parameters, *momenta, *w_hats, *averages])


_dispatch.register(
    "standardized_sgd",
    _dispatch.Impl("native", _native_step, native_supports, devices=("cpu",)),
    _dispatch.Impl("cuda", _cuda_step, cuda_supports, devices=(), on_request=_cuda.ON_REQUEST),
    _dispatch.Impl("triton", _triton_step, triton_supports, devices=("cuda",), on_request=_triton.ON_REQUEST),
    _dispatch.Impl("reference", reference.step, _dispatch.anything),
)
