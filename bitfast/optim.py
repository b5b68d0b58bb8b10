"""StandardizedSGD: trains the folded network, updates the raw weights, refreshes the standardized ones."""

import torch

from .folding import fold, std_convs
from .ops import weight_standardize, weight_standardize_backward


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
    Raises  ValueError on a negative lr, momentum or weight_decay
    """

    def __init__(self, model, lr, momentum=0.9, weight_decay=0.0, *, dtype=None):
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.network = fold(model, dtype)
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
            parameters, gradients = self._gradients(group["params"])
            if parameters:
                self._update(group, parameters, gradients)
        self.refresh()
        return loss

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        for w_hat in self._folded.values():
            if set_to_none:
                w_hat.grad = None
            elif w_hat.grad is not None:
                w_hat.grad.zero_()

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.refresh()

    @torch.no_grad()
    def refresh(self):
        """Standardize the raw weights into the network anew; needed only after they were changed from outside."""
        for weights, eps in self._by_eps(self._folded):
            folded = [self._folded[w] for w in weights]
            w_hats = weight_standardize(weights, eps, folded[0].dtype)
            torch._foreach_copy_(folded, w_hats)

    def _gradients(self, parameters):
        """The parameters that have a gradient, and dL/dW for each in its own dtype."""
        gradients = {w: w.grad for w in parameters if w not in self._folded and w.grad is not None}
        received = [w for w in parameters if w in self._folded and self._folded[w].grad is not None]
        for weights, eps in self._by_eps(received):
            projected = weight_standardize_backward([self._folded[w].grad for w in weights], weights, eps)
            gradients.update(zip(weights, projected, strict=True))
        ordered = [w for w in parameters if w in gradients]
        return ordered, [gradients[w] for w in ordered]

    def _by_eps(self, weights):
        groups = {}
        for w in weights:
            groups.setdefault(self._eps[w], []).append(w)
        return [(members, eps) for eps, members in groups.items()]

    def _update(self, group, parameters, gradients):
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        if group["momentum"]:
            for w in parameters:
                if "momentum_buffer" not in self.state[w]:
                    self.state[w]["momentum_buffer"] = torch.zeros_like(w)
            buffers = [self.state[w]["momentum_buffer"] for w in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            gradients = buffers
        torch._foreach_add_(parameters, gradients, alpha=-group["lr"])
