"""What a network costs: parameters, multiply-adds, and seconds on this machine."""

import math
import time
from collections import Counter
from statistics import median
from typing import NamedTuple

import torch
from torch import nn

from .model import Bottleneck, ResNetV2
from .optim import StandardizedSGD

BLOCK_MACS = 2e9  # of one timed call
BLOCK_SECONDS = 0.3  # of the timing of one stage
STEM_STRIDE = 4


class Speed(NamedTuple):
    """Seconds of one image's forward and backward, and of one optimizer step."""

    image_seconds: float
    step_seconds: float


def on_meta(model):
    """A network like `model` without memory: its shapes alone."""
    with torch.device("meta"):
        return ResNetV2(model.depths, model.width, model.num_classes, model.in_chans)


def parameters(model):
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model, crop):
    """Multiply-adds of convolutions and classifier for one crop x crop image: a Counter by "stem", "stages.I", "head".

    Counted on the meta device; norms and pools are left out, as is usual.
    """
    counts = Counter()
    network = on_meta(model)

    def count(part):
        def hook(module, inputs, output):
            counts[part] += math.prod(output.shape[2:]) * module.weight.numel()

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            part = name.split(".")
            module.register_forward_hook(count(".".join(part[:2]) if part[0] == "stages" else part[0]))
    with torch.no_grad():
        network(torch.empty(1, model.in_chans, crop, crop, device="meta"))
    return counts


def speed(model, crop, micro_batch, device, dtype):
    """The Speed of training `model`, estimated: one block of each stage is timed, and scaled by multiply-adds.

    The stem counts as the first stage. Blocks are built one at a time, with random weights; nothing of the model is
    touched.
    """
    by_part = macs(model, crop)
    image_seconds = step_seconds = 0.0
    for i in range(len(model.depths)):
        channels = int(256 * model.width) * 2**i
        side = max(1, math.ceil(crop / (STEM_STRIDE * 2**i)))
        block = Bottleneck(channels, channels, 1, model.ws_eps).to(device)
        block.memory = model.memory
        block_macs = side**2 * sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
        images = max(1, min(micro_batch, round(BLOCK_MACS / block_macs)))
        seconds, step = _time(block, (images, channels, side, side), device, dtype)
        part = by_part[f"stages.{i}"] + (by_part["stem"] if i == 0 else 0)
        image_seconds += part / block_macs * seconds / images
        step_seconds += step * _weight(model, i) / parameters(block)
    return Speed(image_seconds, step_seconds)


def _weight(model, i):
    return parameters(on_meta(model).stages[i])


def _time(block, shape, device, dtype):
    """Median seconds of (forward and backward, optimizer step)."""
    optimizer = StandardizedSGD(block, lr=0.001, dtype=dtype)
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    laps, began = [], time.perf_counter()
    while len(laps) < 4 or time.perf_counter() - began < BLOCK_SECONDS:
        optimizer.zero_grad()
        start = _now(device)
        branch, shortcut = optimizer.network(x)
        (branch + shortcut).sum().backward()
        middle = _now(device)
        optimizer.step()
        laps.append((middle - start, _now(device) - middle))
    return tuple(median(times) for times in zip(*laps[1:], strict=True))


def _now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Measured(NamedTuple):
    """Seconds of real steps: median, fastest and slowest, from so many forwards and backwards of a micro-batch."""

    median: float
    fastest: float
    slowest: float
    micro_batches: int


def measure(model, crop, batch_size, micro_batch, device, dtype, *, seconds=20.0):
    """Train `model` on random images of crop x crop and return the Measured seconds of a step of `batch_size` images.

    A step is its micro-batches and one optimizer step. At least three micro-batches are timed after one that is not,
    more while `seconds` last; a step longer than that is put together of the timed ones.
    """
    optimizer = StandardizedSGD(model.to(device), lr=0.0, dtype=dtype)
    x = torch.randn(micro_batch, model.in_chans, crop, crop, device=device, dtype=dtype)
    y = torch.zeros(micro_batch, dtype=torch.int64, device=device)
    laps, steps, began = [], [], time.perf_counter()
    while len(laps) < 4 or time.perf_counter() - began < seconds:
        optimizer.zero_grad()
        start = _now(device)
        nn.functional.cross_entropy(optimizer.network(x).float(), y).backward()
        middle = _now(device)
        optimizer.step()
        laps.append(middle - start)
        steps.append(_now(device) - middle)
    laps, count, step = laps[1:], batch_size / micro_batch, median(steps[1:])
    return Measured(*(count * lap + step for lap in (median(laps), min(laps), max(laps))), len(laps))
