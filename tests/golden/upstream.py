"""BiT's upstream recipes a second time, in plain torch: weights standardized in every forward, torch.optim.SGD."""

import math

import torch
from golden import official
from torch.nn import functional as F


def train(p, depths, batches, *, peak, warmup, cosine, boundaries, sigmoid, weight_decay, decoupled, clip_norm):
    """The loss of each step of training official-layout tensors p on the batches, (images, labels) of every step.

    decoupled  kernels alone decay, by lr * weight_decay of what they were; else everything, as SGD does
    """
    kernels = {key for key in p if key.endswith("kernel")}
    optimizer = torch.optim.SGD(p.values(), lr=peak, momentum=0.9, weight_decay=0 if decoupled else weight_decay)
    losses = []
    for step, (images, labels) in enumerate(batches):
        logits = official.forward(p, depths, images)
        if sigmoid:
            targets = F.one_hot(labels, logits.shape[1]).to(logits)
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()
        else:
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        if clip_norm:
            norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in p.values()])
            for tensor in p.values():
                tensor.grad *= min(1, clip_norm / norm)
        lr = peak * min(1, step / warmup)
        if cosine and step >= warmup:
            lr *= (1 + math.cos(math.pi * (step - warmup) / (len(batches) - warmup))) / 2
        elif not cosine:
            lr *= 0.1 ** sum(boundary <= step for boundary in boundaries)
        optimizer.param_groups[0]["lr"] = lr
        before = {key: p[key].detach().clone() for key in kernels}
        optimizer.step()
        if decoupled:
            for key in kernels:
                p[key].data -= lr * weight_decay * before[key]
        losses.append(loss.item())
    return losses
