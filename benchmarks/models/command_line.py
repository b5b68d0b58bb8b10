"""What bench_train and bench_infer have in common: their options, and running the cases."""

import argparse

import torch

from benchmarks.harness import save
from benchmarks.models.peers import COMPILED, INSIDE, PROVIDERS, SAVING
from benchmarks.models.rounds import compare, show
from benchmarks.models.setting import Setting
from bitfast.runtime import pick_device
from bitfast.variants import VARIANTS

EAGER = [name for name in PROVIDERS if name not in (*COMPILED, SAVING, INSIDE)]


def parser(description: str, task: str) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--model", choices=VARIANTS, help="one case instead of the usual ones; so do --px and --batch")
    options.add_argument("--px", type=int)
    options.add_argument("--batch", type=int)
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--providers", nargs="+", choices=PROVIDERS, default=EAGER, metavar="NAME", help="%(choices)s")
    options.add_argument("--rounds", type=int, default=7, help="at least")
    options.add_argument("--seconds", type=float, default=10.0, help="per case, at least")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--name", help=f"of the file in benchmarks/results; default {task}_<device>")
    return options


def settings(options: argparse.Namespace, usual: list[Setting]) -> list[Setting]:
    """The usual cases, or the one that was asked for; what it does not say is that of the first usual case."""
    dtype, first = getattr(torch, options.dtype), usual[0]
    if options.model or options.px or options.batch:
        usual = [Setting(options.model or first.model, options.px or first.px, options.batch or first.batch)]
    return [Setting(case.model, case.px, case.batch, dtype, options.device) for case in usual]


def run(task: str, options: argparse.Namespace, usual: list[Setting]) -> None:
    """Check, time, print and save every case."""
    pick_device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, for everyone
    torch.set_num_threads(options.threads)
    rows = []
    for setting in settings(options, usual):
        measured = compare(task, setting, options.providers, rounds=options.rounds, seconds=options.seconds)
        show(measured)
        rows += measured
    print(save(options.name or f"{'train' if task == 'training' else 'infer'}_{options.device}", rows))
