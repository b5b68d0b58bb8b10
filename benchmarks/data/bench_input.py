"""Images per second of input pipelines on the same JPEGs: ours, bare DALI, and torch's DataLoader with Pillow.

    python -m benchmarks.data.bench_input                       all transforms
    python -m benchmarks.data.bench_input --only 448:384        one of them: RESIZE:CROP, or inception:CROP

Every provider does the same work on the same files: decode, resize, crop, flip, normalise to fp32, batches of 32. Each
round goes through all providers in turn, one cold epoch each, timed from making the pipeline to its last batch, so that
prefetched batches flatter nobody. Before that, ours are checked against each other and Pillow.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch loads

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.data.photos import write_photos
from benchmarks.harness import RESULTS, environment
from bitfast.data.dataset import Split
from bitfast.data.loader import images, usable_cores
from bitfast.data.sampler import Sampler
from bitfast.data.source import Files
from bitfast.data.transform import Transform

BATCH, FILES = 32, 256
TRANSFORMS = ("160:128", "448:384", "512:480", "inception:224")


class PillowDataset(Dataset):
    """What users write for a DataLoader."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        t, rng = self.transform, np.random.default_rng(i)
        with Image.open(self.paths[i]) as file:
            image = file.convert("RGB")
        box = None
        if t.geometry == "inception":
            top, left, height, width = t.window(image.height, image.width, attempts=rng.random((10, 4)))[:4]
            box = (left, top, left + width, top + height)
        edge = t.crop if box else t.resize
        image = image.resize((edge, edge), Image.Resampling.BILINEAR, box=box)
        y, x = rng.integers(0, t.margin + 1, 2)
        image = image.crop((x, y, x + t.crop, y + t.crop))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        return tensor.sub_(0.5).div_(0.5), 0


def data_loader(paths, transform, workers):
    """Workers are forked from a process that has loaded what they need and started no threads: with the threads of the
    others, which are in this one, a forked worker may crash or hang."""
    how = {"num_workers": workers, "multiprocessing_context": "forkserver"} if workers else {}
    for batch, _ in DataLoader(PillowDataset(paths, transform), batch_size=BATCH, **how):
        yield batch


@pipeline_def
def _bare_graph(paths, transform):
    encoded, _ = fn.readers.file(files=paths, random_shuffle=True, pad_last_batch=True, name="files", seed=1)
    if transform.geometry == "inception":
        image = fn.decoders.image_random_crop(encoded, random_area=transform.area, random_aspect_ratio=transform.ratio)
        image = fn.resize(image, size=(transform.crop, transform.crop))
        position = {}
    else:
        image = fn.resize(fn.decoders.image(encoded), size=(transform.resize, transform.resize))
        position = {f"crop_pos_{axis}": fn.random.uniform(range=(0, 1), seed=ord(axis)) for axis in "xy"}
    return fn.crop_mirror_normalize(
        image,
        crop=(transform.crop, transform.crop),
        mirror=fn.random.coin_flip(seed=4),
        mean=[127.5] * 3,
        std=[127.5] * 3,
        output_layout="HWC",
        **position,
    )


def bare_dali(paths, transform):
    pipeline = _bare_graph(paths, transform, batch_size=BATCH, num_threads=usable_cores(), device_id=None)
    for _ in range(-(-len(paths) // BATCH)):
        (output,) = pipeline.run()
        yield torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)


def ours(paths, transform, engine):
    split = Split(Files(paths), np.zeros(len(paths), np.int64), ("a", "b"))
    sampler = Sampler(len(paths), BATCH, transform)
    requests = (sampler.batch(step) for step in range(-(-len(paths) // BATCH)))
    return images(split, transform, requests, engine=engine)


PROVIDERS = {
    "bitfast dali": partial(ours, engine="dali"),
    "bitfast pillow": partial(ours, engine="pillow"),
    "bare DALI": bare_dali,
    **{f"DataLoader, {workers} workers": partial(data_loader, workers=workers) for workers in range(4)},
}


def check(paths, transform):
    """Our engines give the same pixels to the bit, and the other providers batches of the same shape and scale."""
    first = {name: next(iter(make(paths[:BATCH], transform))) for name, make in PROVIDERS.items()}
    assert torch.equal(first["bitfast dali"], first["bitfast pillow"])
    for name, batch in first.items():
        assert batch.shape == (BATCH, 3, transform.crop, transform.crop) and batch.dtype == torch.float32, name
        assert abs(batch.mean() - first["bitfast dali"].mean()) < 0.05 and batch.abs().max() <= 1.001, name


def images_per_second(make, paths, transform):
    start, count = time.perf_counter(), 0
    for batch in make(paths, transform):
        count += len(batch)
    return count / (time.perf_counter() - start)


def measure(name, paths, transform, rounds):
    check(paths, transform)
    rates = {provider: [] for provider in PROVIDERS}
    for _ in range(rounds):
        for provider, make in PROVIDERS.items():
            rates[provider].append(images_per_second(make, paths, transform))
    loader = max((p for p in PROVIDERS if p.startswith("DataLoader")), key=lambda p: statistics.median(rates[p]))
    rows = []
    for provider, values in rates.items():
        ratios = {
            other: [a / b for a, b in zip(values, rates[key], strict=True)]
            for other, key in (("best DataLoader", loader), ("bare DALI", "bare DALI"))
        }
        against = {other: round(statistics.median(of), 2) for other, of in ratios.items()}
        row = {"transform": name, "provider": provider, "images_per_second": round(statistics.median(values), 1)}
        row |= {"rounds": [round(value, 1) for value in values], "against": against}
        rows.append(
            row | {"against_range": {other: [round(f(of), 2) for f in (min, max)] for other, of in ratios.items()}}
        )
        print(f"{name:14} {provider:22} {row['images_per_second']:8.1f} images/s   {against}", flush=True)
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=TRANSFORMS, metavar="RESIZE:CROP")
    parser.add_argument("--images", type=int, default=640, help="of one epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", help="of the file in benchmarks/results, to which the rows are added")
    multiprocessing.set_forkserver_preload(
        ["benchmarks.harness", "bitfast.data.loader", "bitfast.data.dataset", "nvidia.dali"]
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        files = write_photos(Path(folder), min(FILES, arguments.images))
        size = statistics.mean(Path(path).stat().st_size for path in files)
        paths = (files * -(-arguments.images // len(files)))[: arguments.images]
        rows = []
        for name in arguments.only:
            resize, crop = name.split(":")
            spec = Transform.pretrain(int(crop)) if resize == "inception" else Transform.train(int(resize), int(crop))
            rows += measure(name, paths, spec, arguments.rounds)
    if arguments.name:
        path = RESULTS / f"{arguments.name}.json"
        others = json.loads(path.read_text())["rows"] if path.exists() else []
        record = {"benchmark": arguments.name, "time": datetime.now(UTC).isoformat(timespec="seconds"), **environment()}
        record |= {"cores": usable_cores(), "images": arguments.images, "mean_file_bytes": round(size)}
        record["rows"] = [row for row in others if row["transform"] not in arguments.only] + rows
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
