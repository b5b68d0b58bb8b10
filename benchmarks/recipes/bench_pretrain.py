"""A small pretraining and its transfer, against no pretraining: accuracies of several seeds.

    python -m benchmarks.recipes.bench_pretrain [--name NAME]

Upstream: five garments of Fashion-MNIST, each in five dyes (25 classes, 5,000 images of which a tenth is held out),
recipe bit-s with what `UPSTREAM` says. Downstream: ten images of each of the other five garments, undyed, HyperRule
with what `DOWNSTREAM` says, once from the pretrained run and once from scratch; accuracy on 1,000 other images.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import bitfast
from benchmarks.harness import save
from bitfast.demo import GARMENTS, MODEL, write_fashion_mnist

SEEN = GARMENTS[:5]
UPSTREAM = dict(steps=300, batch_size=128, lr=0.03, crop=32, min_area=0.3, val_split=0.1)
DOWNSTREAM = dict(steps=60, batch_size=50, lr=0.01, resize=36, crop=32, examples_per_class=10)
PROVIDERS = ("upstream", "pretrained", "from scratch")


def data(folder: Path) -> list[tuple[np.ndarray, list[str]]]:
    """(upstream, downstream train, downstream test), each pixels and names; no image is in two of them."""
    write_fashion_mnist(folder)
    upstream, downstream = [], []
    for path in sorted(folder.rglob("*.png"), key=lambda path: path.name):
        dye, garment = path.parent.name.split(" ", 1)
        pixels = np.asarray(Image.open(path))
        if garment in SEEN:
            upstream.append((pixels, f"{dye} {garment}"))
        else:
            grey = pixels.mean(2, keepdims=True).astype(np.uint8)
            downstream.append((np.repeat(grey, 3, axis=2), garment))
    parts = (zip(*rows, strict=True) for rows in (upstream, downstream[:1000], downstream[1000:2000]))
    return [(np.stack(pixels), list(names)) for pixels, names in parts]


def race(folder: Path, seeds: int) -> list[dict]:
    """A row for each seed and provider: its accuracy on how many images."""
    upstream, train, test = data(folder / "fashion")
    rows = []
    for seed in range(seeds):
        out = folder / str(seed)
        runs = [bitfast.pretrain(upstream, MODEL, out=out / "upstream", seed=seed, **UPSTREAM)]
        options = DOWNSTREAM | dict(seed=seed, examples_per_class_seed=seed, val=test)
        for name, weights in (("pretrained", runs[0].out), ("scratch", None)):
            runs.append(bitfast.finetune(train, MODEL, weights, out / name, **options))
        for provider, run in zip(PROVIDERS, runs, strict=True):
            facts = {"top1": run.metrics["top1"], "images": run.metrics["images"], "train_images": run.train_images}
            rows.append({"case": f"{MODEL} Fashion-MNIST", "provider": provider, "seed": seed, **facts})
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--name", default="pretrain_cpu", help="of the file in benchmarks/results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = race(Path(folder), options.seeds)
    for provider in PROVIDERS:
        own = [row["top1"] for row in rows if row["provider"] == provider]
        print(f"{provider:12}  median {statistics.median(own):.1%}, {min(own):.1%} to {max(own):.1%}")
    print(save(options.name, rows))


if __name__ == "__main__":
    main()
