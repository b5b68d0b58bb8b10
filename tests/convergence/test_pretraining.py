"""A small pretraining on real images learns, and beats no pretraining after transfer to classes it has not seen.

`pytest -m slow tests/convergence/test_pretraining.py -s` prints the table of docs/results.md. Upstream: five garments
of Fashion-MNIST, each in five dyes (25 classes, 5,000 images), recipe bit-s with what `UPSTREAM` says. Downstream: 10
images of each of the other five, undyed, HyperRule with what `DOWNSTREAM` says, once from the pretrained run and once
from scratch; accuracy on 1,000 other images of them.
"""

import statistics

import numpy as np
import pytest
from PIL import Image

import bitfast
from bitfast.demo import GARMENTS, write_fashion_mnist

MODEL, SEEDS = "resnet26x0_5", range(5)
SEEN, UNSEEN = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat"), ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot")
UPSTREAM = dict(steps=300, batch_size=128, lr=0.03, crop=32, min_area=0.3, val_split=0.1)
DOWNSTREAM = dict(steps=60, batch_size=50, lr=0.01, resize=36, crop=32, examples_per_class=10)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """(upstream, downstream train, downstream test): pixels and names; no image is in two of them."""
    root = tmp_path_factory.mktemp("fashion")
    write_fashion_mnist(root)
    upstream, downstream = [], []
    for path in sorted(root.rglob("*.png"), key=lambda path: path.name):
        dye, garment = path.parent.name.split(" ", 1)
        pixels = np.asarray(Image.open(path))
        if garment in SEEN:
            upstream.append((pixels, f"{dye} {garment}"))
        else:
            downstream.append((np.repeat(pixels.mean(2, keepdims=True), 3, 2).astype(np.uint8), garment))
    assert {*SEEN, *UNSEEN} == set(GARMENTS) and len(upstream) == len(downstream) == 5000
    return [columns(part) for part in (upstream, downstream[:1000], downstream[1000:2000])]


def columns(rows):
    pixels, names = zip(*rows, strict=True)
    return np.stack(pixels), list(names)


@pytest.mark.slow
def test_beats_no_pretraining(fashion, tmp_path):
    upstream, train, test = fashion
    results = {"upstream": [], "pretrained": [], "from scratch": []}
    for seed in SEEDS:
        out = tmp_path / str(seed)
        options = DOWNSTREAM | dict(seed=seed, examples_per_class_seed=seed, val=test)
        run = bitfast.pretrain(upstream, MODEL, out=out / "upstream", seed=seed, **UPSTREAM)
        results["upstream"].append(run.metrics["top1"])
        for name, weights in (("pretrained", run.out), ("from scratch", None)):
            result = bitfast.finetune(train, MODEL, weights, out / name, **options)
            assert result.metrics["images"] == 1000 and result.train_images == 50
            results[name].append(result.metrics["top1"])
    for name, values in results.items():
        print(f"{name:<12}  median {statistics.median(values):.1%}  range {min(values):.1%} to {max(values):.1%}")
    assert min(results["upstream"]) > 0.5, "25 classes: chance is 4 %"
    assert all(p > s for p, s in zip(results["pretrained"], results["from scratch"], strict=True))
