"""How far two training steps raise the resident memory of a fresh process over what the built network takes. Linux.

Both steps count, so gradients and momentum are in it for everyone. "bitfast memory=save" gives freed memory back, as
our recipe does in that mode; MALLOC_* variables overrule that.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import save
from benchmarks.models.command_line import installed, settings
from benchmarks.models.peers import FLOOR, PROVIDERS, SAVING
from benchmarks.models.rounds import keeps_memory, times_of
from benchmarks.models.setting import Setting
from bitfast.runtime import return_freed_memory

RELATIVE_TO = ("timm", "timm channels_last")


@dataclass
class Row:
    """MiB over the built network, and over that of timm in both layouts; None where that one was not measured."""

    case: str
    provider: str
    built_mib: float
    step_mib: float
    of_timm: float | None
    of_timm_channels_last: float | None
    keeps_memory: bool


def run(task: str, options: argparse.Namespace, usual: list[Setting]) -> None:
    """Measure, print and save every case."""
    rows = []
    present, absent = installed(options.providers)
    for setting in settings(options, usual):
        names = [name for name in present if name != FLOOR]
        measured = {name: _in_new_process(setting, name, options.threads) for name in names}
        for name, (built, step) in measured.items():
            ratios = [round(step / measured[peer][1], 3) if peer in measured else None for peer in RELATIVE_TO]
            row = Row(f"{task} {setting}", name, built, step, *ratios, keeps_memory())
            print(
                f"{row.case}  {name:26} {step:8.0f} MiB over {built:.0f} MiB"
                + "".join(map(times_of, ratios, RELATIVE_TO)),
                flush=True,
            )
            rows.append(row)
    print(save(options.name or "train_cpu_memory", rows, absent=absent))


def _in_new_process(setting: Setting, name: str, threads: int) -> tuple[float, float]:
    command = [sys.executable, "-m", __spec__.name, setting.model, str(setting.px), str(setting.batch)]
    command += [str(setting.dtype).removeprefix("torch."), name, str(threads)]
    root = Path(__file__).parents[2]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=root).stdout
    built, step = output.split()
    return float(built), float(step)


def _measure(model: str, px: str, batch: str, dtype: str, name: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    if name == SAVING:
        return_freed_memory()  # as the recipe does
    call = PROVIDERS[name].training(Setting(model, int(px), int(batch), getattr(torch, dtype)))
    Path(f"/proc/{os.getpid()}/clear_refs").write_text("5")  # the peak is counted from here
    built = _status_mib("VmRSS")
    call()
    call()
    print(built, round(_status_mib("VmHWM") - built, 1))


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024, 1)


if __name__ == "__main__":
    _measure(*sys.argv[1:])
