"""What keeping freed memory is worth: glibc as it comes, bitfast.runtime.keep_freed_memory, environment variables.

    python -m benchmarks.models.bench_allocator [--batch 8]

R50x1, 128 px, fp32, folded, a bare loop on one random batch; settings take turns, each in processes of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn import functional as F

import bitfast
from benchmarks.harness import save
from bitfast.runtime import keep_freed_memory

ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
SETTINGS = ("default", "keep_freed_memory", "environment")
ROUNDS, WARM_UP, SECONDS = 3, 3, 2


@dataclass
class Row:
    """One task under one setting: ms of a step, median, lowest and highest of the rounds' medians.

    faults: page faults of a step; peak_mb: highest resident memory of the process so far, inference comes first.
    """

    setting: str
    task: str
    median_ms: float
    lowest_ms: float
    highest_ms: float
    faults: int
    peak_mb: int


def measure(step):
    """Repeat `step` for SECONDS: its median ms, page faults of one, and the peak of the process's memory."""
    for _ in range(WARM_UP):
        step()
    times, faults, began = [], _usage().ru_minflt, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times), (_usage().ru_minflt - faults) // len(times), _usage().ru_maxrss >> 10


def _usage():
    return resource.getrusage(resource.RUSAGE_SELF)


def child(setting, batch):
    """Both tasks in this process; prints their measurements as JSON."""
    if setting == "keep_freed_memory":
        keep_freed_memory()
    torch.manual_seed(0)
    optimizer = bitfast.StandardizedSGD(bitfast.resnet50x1(num_classes=100), lr=0.003)
    images = torch.randn(batch, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(100, (batch,))

    def infer():
        with torch.inference_mode():
            optimizer.network(images)

    def train():
        optimizer.zero_grad()
        F.cross_entropy(optimizer.network(images), labels).backward()
        optimizer.step()

    print(json.dumps({"inference": measure(infer), "training": measure(train)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--name", default="allocator_cpu_zen4", help="of the file in benchmarks/results")
    parser.add_argument("--setting", choices=SETTINGS, help="measure it in this process; prints JSON")
    options = parser.parse_args()
    if options.setting:
        child(options.setting, options.batch)
        return
    seen = {}
    for _ in range(ROUNDS):
        for setting in SETTINGS:
            command = [sys.executable, "-m", "benchmarks.models.bench_allocator", "--setting", setting]
            command += ["--batch", str(options.batch)]
            unset = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
            environment = {**unset, **(ENVIRONMENT if setting == "environment" else {})}
            result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            for task, values in json.loads(result.stdout).items():
                seen.setdefault((setting, task), []).append(values)
    rows = []
    for (setting, task), rounds in seen.items():
        ms, faults, peak = zip(*rounds, strict=True)
        rows.append(
            Row(
                setting,
                task,
                round(median(ms), 1),
                round(min(ms), 1),
                round(max(ms), 1),
                round(median(faults)),
                round(median(peak)),
            )
        )
    for row in sorted(rows, key=lambda row: row.task):
        print(
            f"{row.task:<10} {row.setting:<18} {row.median_ms:>7} ms [{row.lowest_ms} .. {row.highest_ms}],"
            f" {row.faults:>7} page faults a step, peak {row.peak_mb} MB"
        )
    print(save(options.name, rows))


if __name__ == "__main__":
    main()
