"""The training loop: a pure function of (seed, step) on top of StandardizedSGD."""

import math
import time
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from . import averaging
from .data import check
from .data.loader import images
from .distributed import exchange, in_lockstep, largest_part, rank, ranks, settled
from .errors import BadImages, BitfastError, DataError, OutOfMemory
from .gradients import GradientSum
from .runtime import compute_dtype, say
from .sharding import is_sharded


class DoesNotFit(BitfastError):
    """A micro-batch needs more memory than there is; a smaller one may do."""


NAMED = 8


class NonFiniteLoss(BitfastError):
    """The loss or a gradient became infinite or nan; no weight was changed by it.

    step, lr, and the names of all the batch's images
    """

    def __init__(self, what, step, lr, images):
        more = f" and {len(images) - NAMED:,} more" if len(images) > NAMED else ""
        super().__init__(f"{what} at step {step} with lr {lr:g} (images {', '.join(images[:NAMED])}{more})")
        self.step, self.lr, self.images = step, lr, images


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

    Each process of a run works on its part of every batch; gradients and losses are added up once per step, and what
    goes wrong in one of them is known to all before any weight changes.

    loss       "softmax", or "sigmoid" of each class
    ema_decay  of the weights' average, where the optimizer keeps one; less in the first steps, see `averaging`
    left_out  {position in the split: step from which on its batches go without it}: they get smaller, the loss is the
              mean over those that remain
    on_bad    called with {position: reason} and the step before images are left out from that step on; raises to stop.
              None stops with the BadImages error
    reduce_dtype  of gradients on their way between processes; default their own
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
    reduce_dtype: torch.dtype | None = None

    def __post_init__(self):
        network = self.optimizer.network
        self._lockstep = is_sharded(network)
        self._sums = GradientSum((p for p in network.parameters() if not isinstance(p, DTensor)), self.reduce_dtype)

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
            except DoesNotFit as error:
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
        began, self._waited = time.perf_counter(), 0.0
        size, lr = len(self._batch(step)), self.plan.lr(step)
        if not size:
            return StepResult(step, math.nan, lr, 0, time.perf_counter() - began, 0.0)
        self.optimizer.zero_grad()
        loss, failure = 0.0, None
        try:
            loss = self._backward(self._micros(step), stream, size)
        except BadImages as error:
            failure = error
        except Exception as error:  # raised below, in all processes
            failure = self._told(error)
        self._sums.finish()
        total = sum(settled(loss, failure))
        if not math.isfinite(total):
            raise self._non_finite(f"loss {total}", step, lr)
        if not self._gradients_are_finite():
            raise self._non_finite(f"loss {total:.4g}, but a gradient that is not finite,", step, lr)
        rates = {"lr": lr}
        if self.ema_decay is not None:
            rates["ema_decay"] = averaging.decay(step, self.ema_decay)
        for group in self.optimizer.param_groups:
            group.update(rates)
        self.optimizer.step()
        return StepResult(step, total, lr, size, time.perf_counter() - began, self._waited)

    def _backward(self, micros, stream, size):
        """Gradients of this process's part of a global batch of `size` images; returns its part of the mean loss."""
        batches, nothing = islice(self._timed(stream), len(micros)), self.sampler.batch(0).part(0, 0)
        if self._lockstep:
            rounds = -(-largest_part(self.sampler.batch_size, self.sampler.mixup_alpha > 0) // self.micro_batch)
            batches = in_lockstep(batches, rounds, self._no_images())
            micros = micros + [nothing] * (rounds - len(micros))
        losses = []
        for number, (x, micro) in enumerate(zip(batches, micros, strict=True), 1):
            if number == len(micros):
                self._sums.last()
            loss = self._loss(x, micro if len(x) else nothing) / size
            loss.backward()
            losses.append(loss.detach())
        return float(torch.stack(losses).double().sum()) if losses else 0.0

    def _timed(self, stream):
        while True:
            asked = time.perf_counter()
            x = next(stream)
            self._waited += time.perf_counter() - asked
            yield x

    def _no_images(self):
        shape = 0, 3, self.transform.crop, self.transform.crop
        return torch.empty(shape, dtype=compute_dtype(self.device), device=self.device)

    def _told(self, error):
        """The error as all processes are to know it. Without more forwards the others cannot be told: then raised."""
        if _is_out_of_memory(error):
            if self._lockstep:
                error = OutOfMemory(
                    f"a micro-batch of {self.micro_batch} at {self.transform.crop} px does not fit into the memory of"
                    f" {self.device}: continue with --resume and a smaller --micro-batch"
                )
                error.alone = True
                raise error
            return DoesNotFit(str(error))
        if self._lockstep:
            raise error
        return error

    def _batch(self, step):
        """All processes' images of a step, without those that are left out."""
        return self.sampler.batch(step).without(self._gone(step))

    def _non_finite(self, what, step, lr):
        return NonFiniteLoss(what, step, lr, [self.split.images.name(i) for i in self._batch(step).indices])

    def _gradients_are_finite(self):
        """Of all processes: where the network is split, each has the gradients of its share."""
        finite = self.optimizer.gradients_are_finite()
        return all(exchange(finite)) if self._lockstep else finite

    def _micros(self, step):
        """This process's micro-batches of a step, without images that are left out, in order; none of them is empty."""
        own = self.sampler.batch(step, rank(), ranks())
        parts = (micro.without(self._gone(step)) for micro in own.micro(self.micro_batch))
        return [part for part in parts if len(part)]

    def _gone(self, step):
        return [index for index, since in self.left_out.items() if since <= step]

    def _leave_out(self, error, step):
        """Go without the images that cannot be read, from `step` on, which is done again; or stop."""
        self.optimizer.zero_grad()
        if self.on_bad is None:
            raise error
        batch = self._batch(step).indices
        own = np.concatenate([micro.indices for micro in self._micros(step)] or [batch[:0]])
        scanned = check.scan(self.split.images.take(own), cache=False)
        found = {int(i): look.why for i, look in zip(own, scanned.looks, strict=True) if look.why}
        found = dict(ChainMap(error.found, *exchange(found)))
        if len(batch) > 1 and found.keys() >= set(batch.tolist()):
            first = int(batch[0])
            raise DataError(
                f"none of the {len(batch)} images of step {step} can be read any more (first"
                f" {self.split.images.name(first)}: {found[first]}): make them readable again, then continue with"
                " --resume"
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
