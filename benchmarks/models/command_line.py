"""What bench_train and bench_infer have in common: their options, and running the cases."""

import argparse
from importlib.util import find_spec

import torch

from benchmarks.harness import save
from benchmarks.models.peers import COMPILED, INSIDE, PROVIDERS, SAVING, TIMM
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


def installed(providers: list[str]) -> tuple[list[str], list[str]]:
    """(those that can run, those that lack their library); prints the latter."""
    absent = [name for name in providers if name in TIMM and find_spec("timm") is None]
    for name in absent:
        print(
            f"absent: {name}: timm is not installed (pip install --no-deps -r benchmarks/requirements.txt)", flush=True
        )
    return [name for name in providers if name not in absent], absent


def run(task: str, options: argparse.Namespace, usual: list[Setting]) -> None:
    """Check, time, print and save every case."""
    pick_device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, for everyone
    torch.set_num_threads(options.threads)
    rows = []
    present, absent = installed(options.providers)
    for setting in settings(options, usual):
        measured = compare(task, setting, present, rounds=options.rounds, seconds=options.seconds)
        show(measured)
        rows += measured
    print(save(options.name or f"{'train' if task == 'training' else 'infer'}_{options.device}", rows, absent=absent))
