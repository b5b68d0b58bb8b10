"""StandardizedSGD: trains the folded network, updates the raw weights, refreshes the standardized ones."""

from contextlib import contextmanager

import torch

from .folding import fold, std_convs
from .ops import standardized_sgd_step, weight_standardize, weight_standardize_backward
from .sharding import add_up, local, shard


class StandardizedSGD(torch.optim.Optimizer):
    """SGD with momentum on raw weights W, given gradients of the standardized weights W_hat.

        optimizer = StandardizedSGD(model, lr=0.003)
        loss(optimizer.network(x)).backward();  optimizer.step();  optimizer.zero_grad()

    `network` is fold(model): autograd yields d = dL/dW_hat there, and one step does, per output filter,

        g = rstd * (d - mean(d) - W_hat * mean(d * W_hat))     gradient of the standardization, exact
        m = momentum * m + g + weight_decay * W
        W = W - lr * m
        W_hat = standardize(W), in the network's dtype
        A = A + (1 - ema_decay) * (W - A)                      average of the weights, if there is one

    and the same without the first line for norms, head and biases. It equals torch.optim.SGD on `model` with weights
    standardized in every forward; gradients of micro-batches are summed before the projection, which is linear. After
    step() both `model` and `network` are current. `param_groups` holds the raw parameters (lr, momentum, weight_decay
    and ema_decay can be set, schedulers attach); the state is one momentum buffer per parameter, and an average.

    model      module with StdConv2d inside; its parameters must not be replaced while the optimizer lives
    dtype      of the folded convolutions, default the raw weights' own
    memory     "fast" or "save", as `ResNetV2.memory`; default the model's own
    decoupled  the decay as in AdamW: m = momentum * m + g;  W = (1 - lr * weight_decay) * W - lr * m
    decay_on   "all" parameters, or "kernels": those of two and more dimensions, not norms and biases
    clip_norm  largest global norm of the raw weights' gradients, see `clip_grad_norm_`; None for no clipping
    ema_decay  decay of a moving average of the raw weights, see `averages`; None for no average. It begins with the
               weights before the first step
    mesh       a DeviceMesh splits model, network, gradients and state over its processes (`sharding.shard`)
    Raises     ValueError on a negative lr, momentum, weight_decay or clip_norm, an ema_decay outside 0..1, and on
               another memory or decay_on
    """

    def __init__(
        self,
        model,
        lr,
        momentum=0.9,
        weight_decay=0.0,
        *,
        dtype=None,
        memory=None,
        decoupled=False,
        decay_on="all",
        clip_norm=None,
        ema_decay=None,
        mesh=None,
    ):
        if decay_on not in ("all", "kernels"):
            raise ValueError(f"decay_on must be 'all' or 'kernels', got {decay_on!r}")
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"clip_norm must be above 0, or None for no clipping, got {clip_norm}")
        if ema_decay is not None and not 0 <= ema_decay <= 1:
            raise ValueError(f"ema_decay must be from 0 to 1, or None for no average, got {ema_decay}")
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.network = fold(model, dtype, memory)
        if mesh is not None:
            shard(model, self.network, mesh)
        convs = std_convs(model)
        self._eps = {conv.weight: conv.ws_eps for conv in convs.values()}
        self._folded = {conv.weight: self.network.get_submodule(name).weight for name, conv in convs.items()}
        self.clip_norm = clip_norm
        rule = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, decoupled=decoupled, ema_decay=ema_decay)
        super().__init__(_groups([p for p in model.parameters() if p.requires_grad], decay_on), rule)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.clip_norm is not None:
            self.clip_grad_norm_(self.clip_norm)
        for group in self.param_groups:
            self._update(group)
        return loss

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm):
        """Scale the gradients by min(1, max_norm / norm), in place; returns norm, that of before, as a tensor.

        norm is the global L2 norm of the gradients g of the raw weights, of norms, head and biases, without weight
        decay: what `torch.nn.utils.clip_grad_norm_` sees in a network that standardizes in its forward. The gradients d
        of the standardized weights have another norm, about 1 / rstd times theirs; but scaled by one factor they give
        a g scaled by it, since the projection is linear.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        plain = [p for p in parameters if p not in self._folded and p.grad is not None]
        convs = [w for w in parameters if w in self._folded and self._folded[w].grad is not None]
        gradients = [local(p.grad) for p in plain]
        of_raw, owners = list(gradients), list(plain)
        for eps, weights, folded in self._by_eps(convs):
            of_folded = [local(w_hat.grad) for w_hat in folded]
            gradients += of_folded
            of_raw += weight_standardize_backward(of_folded, [local(w) for w in weights], eps)
            owners += weights
        if not of_raw:
            return torch.zeros(())
        norm = torch.linalg.vector_norm(add_up(torch._foreach_norm(of_raw), owners))
        torch._foreach_mul_(gradients, torch.clamp(max_norm / norm, max=1.0))
        return norm

    @contextmanager
    def averages(self):
        """The averages in place of the weights, in model and network, while the block runs; nothing without averages.

        To evaluate, or to save the averaged model. No step may be done inside.
        """
        self._exchange_averages()
        try:
            yield
        finally:
            self._exchange_averages()

    @torch.no_grad()
    def _exchange_averages(self):
        averaged = [(p, state["average"]) for p, state in self.state.items() if "average" in state]
        for p, average in averaged:
            weight = local(p).clone()
            local(p).copy_(local(average))
            local(average).copy_(weight)
        if averaged:
            self.refresh()

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        for w_hat in self._folded.values():
            if set_to_none:
                w_hat.grad = None
            elif w_hat.grad is not None:
                w_hat.grad.zero_()

    def gradients_are_finite(self):
        """Whether step() would change the weights by finite numbers only; one pass over the gradients."""
        others = [p for group in self.param_groups for p in group["params"] if p not in self._folded]
        gradients = [local(p.grad) for p in [*self._folded.values(), *others] if p.grad is not None]
        gradients = [gradient for gradient in gradients if gradient.numel()]  # a share of few filters may be none
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients, torch.inf)))

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.refresh()

    @torch.no_grad()
    def refresh(self):
        """Standardize the raw weights into the network anew; needed only after they were changed from outside."""
        for eps, weights, folded in self._by_eps(self._folded):
            folded = [local(w_hat) for w_hat in folded]
            torch._foreach_copy_(folded, weight_standardize([local(w) for w in weights], eps, folded[0].dtype))

    def _update(self, group):
        weights = [w for w in group["params"] if w in self._folded and self._folded[w].grad is not None]
        others = [p for p in group["params"] if p not in self._folded and p.grad is not None]
        folded = [self._folded[w] for w in weights]
        kept, averaged = weights + others, group["ema_decay"] is not None
        standardized_sgd_step(
            [local(p) for p in kept],
            [local(p.grad) for p in folded + others],
            [self._state(p, "momentum_buffer", torch.zeros_like) for p in kept] if group["momentum"] else [],
            [local(w_hat) for w_hat in folded],
            [self._eps[w] for w in weights],
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            averages=[self._state(p, "average", torch.clone) for p in kept] if averaged else [],
            decoupled=group["decoupled"],
            ema_decay=group["ema_decay"] if averaged else 0.0,
        )

    def _by_eps(self, weights):
        """(epsilon, weights, their w_hats) for each epsilon."""
        for eps in dict.fromkeys(self._eps[w] for w in weights):
            own = [w for w in weights if self._eps[w] == eps]
            yield eps, own, [self._folded[w] for w in own]

    def _state(self, parameter, key, initial):
        state = self.state[parameter]
        if key not in state:
            state[key] = initial(parameter)
        return local(state[key])


def _groups(parameters, decay_on):
    """Parameter groups: one, or kernels and the others, which then do not decay."""
    if decay_on == "all":
        return [{"params": parameters}]
    kernels, others = ([p for p in parameters if (p.dim() > 1) == wanted] for wanted in (True, False))
    return [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
