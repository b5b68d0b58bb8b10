"""How long idle OpenMP threads should spin: training alone, and two trainings at once, on the same cores.

    python -m benchmarks.models.bench_idle_threads

resnet26x0_5, 64 px, batch 64, fp32, a bare training loop on one random batch, images/s; settings take turns.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn import functional as F

import bitfast
from benchmarks.harness import save

SETTINGS = {"default": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "3000 spins": {"GOMP_SPINCOUNT": "3000"}}
ROUNDS, SECONDS = 3, 5


@dataclass
class Row:
    """Images/s of one process, median over rounds and processes, and the lowest and highest seen."""

    setting: str
    processes: int
    images_per_s: float
    lowest: float
    highest: float


def train():
    """Train for SECONDS; images/s."""
    optimizer = bitfast.StandardizedSGD(bitfast.resnet26x0_5(num_classes=14), lr=0.01)
    images = torch.randn(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(14, (64,))
    steps, began = -1, 0.0  # the first step warms up
    while steps < 0 or time.perf_counter() - began < SECONDS:
        optimizer.zero_grad()
        F.cross_entropy(optimizer.network(images), labels).backward()
        optimizer.step()
        steps += 1
        began = began or time.perf_counter()
    return 64 * steps / (time.perf_counter() - began)


def together(processes, setting):
    """Images/s of each of so many processes started at once."""
    command = [sys.executable, "-m", "benchmarks.models.bench_idle_threads", "child"]
    unset = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**unset, **SETTINGS[setting]}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return [float(process.communicate()[0]) for process in running]


def main():
    rates = {(setting, processes): [] for processes in (1, 2) for setting in SETTINGS}
    for _ in range(ROUNDS):
        for (setting, processes), seen in rates.items():
            seen += together(processes, setting)
    rows = [Row(s, p, round(median(r), 1), round(min(r), 1), round(max(r), 1)) for (s, p), r in rates.items()]
    for row in rows:
        print(f"{row.setting:<12} {row.processes} at once  {row.images_per_s:>6} [{row.lowest} .. {row.highest}]")
    print(save("idle_threads_cpu", rows))


if __name__ == "__main__":
    print(train()) if sys.argv[1:] == ["child"] else main()
