"""Time to an accuracy, from JPEG files: ours against the release's algorithm and timm's network in plain PyTorch.

    python -m benchmarks.recipes.bench_finetune [--name NAME]

The demo's photos (groceries) and its hyperparameters, the same for everyone, from the same weights, which are
pretrained here first. Seeds go through all providers in turn, each training in a process of its own. The clock runs in
training: reading, decoding, forward, backward, update; for everyone it stands still in start-up, evaluation and saving.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.harness import ROOT, save
from benchmarks.models.command_line import installed
from benchmarks.models.official import OfficialResNetV2
from benchmarks.models.peers import OURS, timm_network
from benchmarks.recipes import plain
from bitfast.config import FinetuneConfig
from bitfast.demo import DOWNSTREAM, MODEL, UPSTREAM, write_fashion_mnist, write_groceries
from bitfast.recipes.finetune import finetune
from bitfast.settings import settle
from bitfast.variants import variant

PROVIDERS = ["official", "timm channels_last", OURS]
EVAL_EVERY = 15


def ours(photos: Path, weights: Path, seed: int, out: Path) -> list[tuple[float, float]]:
    """[(seconds of training so far, top-1)] of bitfast.finetune, from its metrics.jsonl."""
    result = finetune(photos, MODEL, weights, out, eval_every=EVAL_EVERY, seed=seed, **DOWNSTREAM)
    seconds, curve = 0.0, []
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            seconds += record["seconds"]
        else:
            curve.append((seconds, record["top1"]))
    return [*curve, (seconds, result.metrics["top1"])] if len(curve) * EVAL_EVERY < result.steps else curve


def theirs(provider: str, photos: Path, weights: Path, seed: int) -> list[tuple[float, float]]:
    """The same of a peer's network in a plain loop."""
    classes = len(list((photos / "train").iterdir()))
    depths, width = variant(MODEL)
    official = provider == "official"
    network = OfficialResNetV2(depths, width, classes) if official else timm_network(depths, width, classes)
    state = load_file(weights / "model.safetensors")
    state |= {name: torch.zeros_like(network.state_dict()[name]) for name in ("head.fc.weight", "head.fc.bias")}
    network.load_state_dict(state)
    layout = torch.channels_last if "channels_last" in provider else torch.contiguous_format
    n_examples = sum(1 for _ in (photos / "train").glob("*/*"))
    plan = settle(FinetuneConfig(model=MODEL, **DOWNSTREAM), n_examples, (500, 500)).plan
    return plain.finetune(network, layout, photos, plan, EVAL_EVERY, seed)


def seconds_to(curve: list[tuple[float, float]], accuracy: float) -> float | None:
    """Training seconds until the accuracy was first seen in an evaluation; None if it never was."""
    return next((seconds for seconds, top1 in curve if top1 >= accuracy), None)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.40, help="top-1 to reach")
    parser.add_argument("--name", default="finetune_cpu", help="of the file in benchmarks/results")
    parser.add_argument("--one", nargs=5, metavar=("PROVIDER", "PHOTOS", "WEIGHTS", "SEED", "OUT"), help="prints JSON")
    options = parser.parse_args(arguments)
    if options.one:
        provider, photos, weights, seed, out = options.one
        photos, weights, seed = Path(photos), Path(weights), int(seed)
        curve = ours(photos, weights, seed, Path(out)) if provider == OURS else theirs(provider, photos, weights, seed)
        print(json.dumps(curve))
        return
    present, absent = installed(PROVIDERS)
    with tempfile.TemporaryDirectory() as folder:
        rows = race(Path(folder), present, options.seeds, options.target)
    print(save(options.name, rows, absent=absent))


def race(folder: Path, providers: list[str], seeds: int, target: float) -> list[dict]:
    """Pretrain, then every seed with every provider in turn; a row each."""
    write_fashion_mnist(folder / "fashion")
    write_groceries(folder / "photos")
    upstream = finetune(folder / "fashion", MODEL, out=folder / "upstream", **UPSTREAM)
    rows = []
    for seed in range(seeds):
        for provider in providers:
            out = folder / f"{provider.replace(' ', '_')}-{seed}"
            command = [sys.executable, "-m", __spec__.name, "--one", provider, folder / "photos"]
            command += [upstream.model_folder, str(seed), out]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            curve = json.loads(done.stdout.splitlines()[-1])
            row = {"case": f"{MODEL} photos", "provider": provider, "seed": seed, "target": target, "curve": curve}
            rows.append(row | {"seconds": curve[-1][0], "top1": curve[-1][1], "seconds_to": seconds_to(curve, target)})
            print(f"seed {seed}  {provider:20} {curve[-1][0]:6.1f} s, top-1 {curve[-1][1]:.1%}", flush=True)
    for provider in providers:
        own = [row["seconds"] for row in rows if row["provider"] == provider]
        print(f"{provider:20} median {statistics.median(own):.1f} s of training")
    return rows


if __name__ == "__main__":
    main()
