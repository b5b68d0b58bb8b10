"""The training loop: a pure function of (seed, step) on top of StandardizedSGD."""

import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .data.loader import images
from .errors import BitfastError, OutOfMemory
from .runtime import compute_dtype, say


class NonFiniteLoss(BitfastError):
    """The loss became infinite or nan; the newest checkpoint is from before that."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: mean loss in nats, learning rate, seconds in all and waiting for images."""

    step: int
    loss: float
    lr: float
    images: int
    seconds: float
    wait_seconds: float


@dataclass
class Trainer:
    """Everything one step needs. `micro_batch` may be lowered between steps: GroupNorm makes that exact."""

    optimizer: torch.optim.Optimizer
    plan: object
    sampler: object
    split: object
    transform: object
    micro_batch: int
    device: torch.device
    engine: str = "auto"

    def steps(self, start):
        """Yield a StepResult for each step from `start` to the plan's end; halves the micro-batch on out-of-memory.

        Raises OutOfMemory when the smallest micro-batch does not fit, NonFiniteLoss at the first bad loss.
        """
        step = start
        while step < self.plan.steps:
            try:
                for result in self._steps_from(step):
                    step = result.step + 1
                    yield result
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(error)

    def _steps_from(self, start):
        requests = (
            micro
            for step in range(start, self.plan.steps)
            for micro in self.sampler.batch(step).micro(self.micro_batch)
        )
        dtype = compute_dtype(self.device)
        stream = images(self.split, self.transform, requests, engine=self.engine, device=self.device, dtype=dtype)
        try:
            for step in range(start, self.plan.steps):
                yield self._step(step, stream)
        finally:
            stream.close()

    def _step(self, step, stream):
        began, waited = time.perf_counter(), 0.0
        batch = self.sampler.batch(step)
        size = len(batch.indices)
        self.optimizer.zero_grad()
        losses = []
        for micro in batch.micro(self.micro_batch):
            asked = time.perf_counter()
            x = next(stream)
            waited += time.perf_counter() - asked
            loss = self._loss(x, micro) / size
            loss.backward()
            losses.append(loss.detach())
        total = float(torch.stack(losses).double().sum())
        lr = self.plan.lr(step)
        if not math.isfinite(total):
            names = ", ".join(self.split.images.name(i) for i in batch.indices[:3])
            raise NonFiniteLoss(f"loss {total} at step {step} with lr {lr:g} (images {names}, ...): use a lower --lr")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return StepResult(step, total, lr, size, time.perf_counter() - began, waited)

    def _loss(self, x, micro):
        """Summed cross-entropy in nats; under MixUp lam * CE(y) + (1 - lam) * CE(y of the partner).

        Softmax cross-entropy; with multi-label the sigmoid one, summed over the classes.
        """
        y = torch.as_tensor(self.split.labels[micro.indices], device=self.device)
        partner = torch.as_tensor(micro.partner, device=self.device)
        logits = self.optimizer.network(x).float()
        loss = _cross_entropy(logits, y)
        if micro.lam == 1:
            return loss
        return micro.lam * loss + (1 - micro.lam) * _cross_entropy(logits, y[partner])

    def _halve(self, error):
        smallest = 2 if self.sampler.mixup_alpha else 1
        if self.micro_batch <= smallest:
            raise OutOfMemory(
                f"not even a micro-batch of {self.micro_batch} at {self.transform.crop} px fits into the memory of"
                f" {self.device}: use a smaller --crop or a smaller --model"
            ) from error
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        before, self.micro_batch = self.micro_batch, max(smallest, 1 << ((self.micro_batch - 1).bit_length() - 1))
        say(f"out of memory: micro-batch {before} -> {self.micro_batch}, results unchanged but for rounding")


def _cross_entropy(logits, y):
    if y.ndim == 1:
        return F.cross_entropy(logits, y, reduction="sum")
    return F.binary_cross_entropy_with_logits(logits, y.float(), reduction="sum")


def _is_out_of_memory(error):
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def stop_signals():
    """Yields an Event that SIGINT and SIGTERM set; a second signal acts at once. Off the main thread it stays unset."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number, frame):
        stop.set()
        restore()
        say("stopping after this step; a second signal stops at once")

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
