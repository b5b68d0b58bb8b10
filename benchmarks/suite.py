"""The CPU suite: every comparison once, short enough for two cores: python -m benchmarks.suite [--name laptop]

Each part is a benchmark of its own and writes benchmarks/results/bench_NAME_PART.json; docs/results.md and the table
of the README are then made from these files (python -m benchmarks.pages). A part that fails is named at the end, the
others run nevertheless. Peers that are not installed are reported as absent (benchmarks/requirements.txt has them).
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
# glibc keeps freed memory, for every provider: otherwise each large tensor is mapped and zeroed anew.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass(frozen=True)
class Part:
    """A benchmark module, its options, and what glibc is told by the environment."""

    module: str
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=lambda: KEEP_MEMORY)


PARTS = {
    "train": Part("models.bench_train", ("--seconds", "0")),
    "infer": Part("models.bench_infer", ("--seconds", "5")),
    "memory": Part(
        "models.bench_train",
        ("--memory", "--px", "128", "--batch", "32", "--providers")
        + ("timm", "timm channels_last", "bitfast", "bitfast memory=save"),
        {},
    ),
    "group_norm": Part("ops.bench_group_norm", ("--seconds", "0.4", "--providers", "eager", "ours")),
    "weight_std": Part("ops.bench_weight_std", ("--seconds", "1")),
    "stem_pool": Part("ops.bench_stem_pool", ("--seconds", "0.4")),
    "conv": Part("ops.bench_conv", ("--seconds", "0.15")),
    "finetune": Part("recipes.bench_finetune"),
    "pretrain": Part("recipes.bench_pretrain"),
    "scaling": Part("models.bench_scaling"),
    "input": Part("data.bench_input", ("--only", "160:128", "448:384")),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="here", help="of this machine, in the names of the files")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z0-9]+", options.name):
        parser.error(f"--name must be of small letters and digits, got {options.name!r}")
    began, failed = time.perf_counter(), []
    for name in options.only:
        part, start = PARTS[name], time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{part.module}", *part.options]
        command += ["--name", f"bench_{options.name}_{name}"]
        print(f"== {name}: {' '.join(command[1:])}", flush=True)
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **part.environment})
        if done.returncode:
            failed.append(name)
        print(f"== {name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(
        f"== all: {(time.perf_counter() - began) / 60:.1f} min" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
