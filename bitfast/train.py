"""The training loop: a pure function of (seed, step) on top of StandardizedSGD."""

import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from . import averaging
from .data import check
from .data.loader import images
from .errors import BadImages, BitfastError, DataError, OutOfMemory
from .runtime import compute_dtype, say


class NonFiniteLoss(BitfastError):
    """The loss became infinite or nan; the newest checkpoint is from before that."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: mean loss in nats, learning rate, seconds in all and waiting for images.

    images is less than the batch size where some were left out; with none left the loss is nan and no weight changed.
    """

    step: int
    loss: float
    lr: float
    images: int
    seconds: float
    wait_seconds: float


@dataclass
class Trainer:
    """Everything one step needs. `micro_batch` may be lowered between steps: GroupNorm makes that exact.

    loss       "softmax", or "sigmoid" of each class
    ema_decay  of the weights' average, where the optimizer keeps one; less in the first steps, see `averaging`
    left_out  {position in the split: step from which on its batches go without it}: they get smaller, the loss is the
              mean over those that remain
    on_bad    called with {position: reason} and the step before images are left out from that step on; raises to stop.
              None stops with the BadImages error
    """

    optimizer: torch.optim.Optimizer
    plan: object
    sampler: object
    split: object
    transform: object
    micro_batch: int
    device: torch.device
    engine: str = "auto"
    loss: str = "softmax"
    ema_decay: float | None = None
    left_out: dict[int, int] = field(default_factory=dict)
    on_bad: Callable | None = None

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
            except BadImages as error:
                self._leave_out(error, step)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(error)

    def _steps_from(self, start):
        requests = (micro for step in range(start, self.plan.steps) for micro in self._micros(step))
        stream = images(
            self.split,
            self.transform,
            requests,
            engine=self.engine,
            device=self.device,
            dtype=compute_dtype(self.device),
            largest=self.micro_batch,
        )
        try:
            for step in range(start, self.plan.steps):
                yield self._step(step, stream)
        finally:
            stream.close()

    def _step(self, step, stream):
        began, waited = time.perf_counter(), 0.0
        micros = self._micros(step)
        size = sum(map(len, micros))
        lr = self.plan.lr(step)
        if not size:
            return StepResult(step, math.nan, lr, 0, time.perf_counter() - began, waited)
        self.optimizer.zero_grad()
        losses = []
        for micro in micros:
            asked = time.perf_counter()
            x = next(stream)
            waited += time.perf_counter() - asked
            loss = self._loss(x, micro) / size
            loss.backward()
            losses.append(loss.detach())
        total = float(torch.stack(losses).double().sum())
        if not math.isfinite(total):
            names = ", ".join(self.split.images.name(i) for i in micros[0].indices[:3])
            raise NonFiniteLoss(f"loss {total} at step {step} with lr {lr:g} (images {names}, ...): use a lower --lr")
        rates = {"lr": lr}
        if self.ema_decay is not None:
            rates["ema_decay"] = averaging.decay(step, self.ema_decay)
        for group in self.optimizer.param_groups:
            group.update(rates)
        self.optimizer.step()
        return StepResult(step, total, lr, size, time.perf_counter() - began, waited)

    def _micros(self, step):
        """The micro-batches of a step, without images that are left out, in order; none of them is empty."""
        gone = [index for index, since in self.left_out.items() if since <= step]
        parts = (micro.without(gone) for micro in self.sampler.batch(step).micro(self.micro_batch))
        return [part for part in parts if len(part)]

    def _leave_out(self, error, step):
        """Go without the images that cannot be read, from `step` on, which is done again; or stop."""
        self.optimizer.zero_grad()
        batch = np.concatenate([micro.indices for micro in self._micros(step)])
        scanned = check.scan(self.split.images.take(batch), cache=False)
        found = error.found | {int(i): look.why for i, look in zip(batch, scanned.looks, strict=True) if look.why}
        if self.on_bad is None:
            raise error
        if len(batch) > 1 and found.keys() >= set(batch.tolist()):
            raise DataError(
                f"none of the {len(batch)} images of step {step} can be read any more (first {scanned.bad[0][0]}:"
                f" {scanned.bad[0][1]}): make them readable again, then continue with --resume"
            ) from error
        self.on_bad(found, step)
        self.left_out |= dict.fromkeys(found, step)

    def _loss(self, x, micro):
        """Summed cross-entropy in nats; under MixUp lam * CE(y) + (1 - lam) * CE(y of the partner).

        Softmax cross-entropy, or the sigmoid one, summed over the classes.
        """
        y = torch.as_tensor(self.split.labels[micro.indices], device=self.device)
        if self.loss == "sigmoid" and y.ndim == 1:
            y = F.one_hot(y, len(self.split.classes))
        partner = torch.as_tensor(micro.partner, device=self.device)
        logits = self.optimizer.network(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
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
    return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="sum")


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
