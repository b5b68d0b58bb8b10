"""How far the plan's estimate of a training's time is from real steps: networks and crops in turn.

    python -m benchmarks.models.bench_estimate

fp32, random images, one micro-batch per step; the estimate times a block of each stage (bitfast/cost.py).
"""

import time
from dataclasses import dataclass

import torch

import bitfast
from benchmarks.harness import save
from bitfast import cost
from bitfast.runtime import keep_freed_memory

CASES = (("resnet26x0_5", 128, 8), ("resnet50x1", 128, 16), ("resnet50x1", 224, 8), ("resnet50x1", 480, 4))
CASES += (("resnet101x1", 224, 8),)


@dataclass
class Row:
    """Milliseconds of a step: estimated, and measured (median, fastest, slowest); seconds that the estimate took."""

    case: str
    estimated_ms: float
    measured_ms: float
    fastest_ms: float
    slowest_ms: float
    estimate_took_s: float


def row(name, crop, batch):
    """The Row of one network."""
    cpu, dtype = torch.device("cpu"), torch.float32
    model = bitfast.create_model(name)
    began = time.perf_counter()
    speed = cost.speed(model, crop, batch, cpu, dtype)
    took = time.perf_counter() - began
    real = cost.measure(model, crop, batch, batch, cpu, dtype, seconds=1)
    estimated = batch * speed.image_seconds + speed.step_seconds
    milliseconds = (round(1e3 * seconds, 1) for seconds in (estimated, real.median, real.fastest, real.slowest))
    return Row(f"{name} {crop} px b{batch}", *milliseconds, round(took, 2))


def main():
    print(keep_freed_memory())
    rows = []
    for name, crop, batch in CASES:
        rows.append(row(name, crop, batch))
        r = rows[-1]
        measured = f"{r.measured_ms:.0f} [{r.fastest_ms:.0f}, {r.slowest_ms:.0f}]"
        ratio = f"{r.estimated_ms / r.measured_ms:.2f}"
        print(f"{r.case}: estimated {r.estimated_ms:.0f} ms, measured {measured}, ratio {ratio}")
    print(save("estimate_cpu_zen4", rows))


if __name__ == "__main__":
    main()
