"""The step of StandardizedSGD in plain torch: the definition in any dtype, and what runs where no kernel fits."""

import torch
from torch import Tensor

from bitfast.ops.weight_std import reference as weight_std


def step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    w_hats: list[Tensor],
    eps: list[float],
    lr: float,
    momentum: float,
    weight_decay: float,
    averages: list[Tensor] = (),
    decoupled: bool = False,
    ema_decay: float = 0.0,
) -> None:
    """m = momentum * m + g + weight_decay * w;  w -= lr * m;  w_hat = standardize(w), in place.

    The first len(w_hats) parameters are weights with the gradient d of w_hat, and g is its projection; of the others
    the gradient is g. Without momenta m is g + weight_decay * w. Decoupled, the decay is not a part of m, but
    w = (1 - lr * weight_decay) * w - lr * m. Averages move to the new w: a += (1 - ema_decay) * (w - a).
    """
    weights, plain = parameters[: len(w_hats)], gradients[len(w_hats) :]
    projected = [weight_std.backward([d], [w], e)[0] for d, w, e in zip(gradients, weights, eps, strict=False)]
    updates = projected + [g.to(p.dtype) for g, p in zip(plain, parameters[len(w_hats) :], strict=True)]
    if weight_decay and not decoupled:
        updates = torch._foreach_add(updates, parameters, alpha=weight_decay)
    if momenta:
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, updates)
        updates = momenta
    if weight_decay and decoupled:
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
    torch._foreach_add_(parameters, updates, alpha=-lr)
    if averages:
        torch._foreach_lerp_(
            averages, [w.to(a.dtype) for w, a in zip(parameters, averages, strict=True)], 1 - ema_decay
        )
    for w_hat, w, e in zip(w_hats, weights, eps, strict=True):
        w_hat.copy_(weight_std.forward([w], e, None)[0])
