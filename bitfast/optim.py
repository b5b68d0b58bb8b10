"""StandardizedSGD: trains the folded network, updates the raw weights, refreshes the standardized ones."""

import torch

from .folding import fold, std_convs
from .ops import standardized_sgd_step, weight_standardize
from .sharding import local, shard


class StandardizedSGD(torch.optim.Optimizer):
    """SGD with momentum on raw weights W, given gradients of the standardized weights W_hat.

        optimizer = StandardizedSGD(model, lr=0.003)
        loss(optimizer.network(x)).backward();  optimizer.step();  optimizer.zero_grad()

    `network` is fold(model): autograd yields d = dL/dW_hat there, and one step does, per output filter,

        g = rstd * (d - mean(d) - W_hat * mean(d * W_hat))     gradient of the standardization, exact
        m = momentum * m + g + weight_decay * W
        W = W - lr * m
        W_hat = standardize(W), in the network's dtype

    and the same without the first line for norms, head and biases. It equals torch.optim.SGD on `model` with weights
    standardized in every forward; gradients of micro-batches are summed before the projection, which is linear. After
    step() both `model` and `network` are current. `param_groups` holds the raw parameters (lr, momentum and
    weight_decay can be set, schedulers attach); the state is one momentum buffer per parameter.

    model   module with StdConv2d inside; its parameters must not be replaced while the optimizer lives
    dtype   of the folded convolutions, default the raw weights' own
    memory  "fast" or "save", as `ResNetV2.memory`; default the model's own
    mesh    a DeviceMesh splits model, network, gradients and momentum over its processes (`sharding.shard`)
    Raises  ValueError on a negative lr, momentum or weight_decay, and on another memory
    """

    def __init__(self, model, lr, momentum=0.9, weight_decay=0.0, *, dtype=None, memory=None, mesh=None):
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.network = fold(model, dtype, memory)
        if mesh is not None:
            shard(model, self.network, mesh)
        convs = std_convs(model)
        self._eps = {conv.weight: conv.ws_eps for conv in convs.values()}
        self._folded = {conv.weight: self.network.get_submodule(name).weight for name, conv in convs.items()}
        parameters = [p for p in model.parameters() if p.requires_grad]
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

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
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients, torch.inf)))

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.refresh()

    @torch.no_grad()
    def refresh(self):
        """Standardize the raw weights into the network anew; needed only after they were changed from outside."""
        for eps in set(self._eps.values()):
            weights = [w for w in self._folded if self._eps[w] == eps]
            folded = [local(self._folded[w]) for w in weights]
            torch._foreach_copy_(folded, weight_standardize([local(w) for w in weights], eps, folded[0].dtype))

    def _update(self, group):
        weights = [w for w in group["params"] if w in self._folded and self._folded[w].grad is not None]
        others = [p for p in group["params"] if p not in self._folded and p.grad is not None]
        folded = [self._folded[w] for w in weights]
        standardized_sgd_step(
            [local(p) for p in weights + others],
            [local(p.grad) for p in folded + others],
            [local(self._buffer(p)) for p in weights + others] if group["momentum"] else [],
            [local(w_hat) for w_hat in folded],
            [self._eps[w] for w in weights],
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
        )

    def _buffer(self, parameter):
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]
