"""bench(): how many images per second each stage of the input gives on a user's own images."""

import json
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from ..config import FinetuneConfig
from ..data import decode
from ..data.ahead import ahead
from ..data.check import median_size
from ..data.dataset import open_dataset
from ..data.loader import chosen_engine, images, in_order, is_decoded, usable_cores
from ..data.rows import Rows
from ..data.sampler import Sampler
from ..runtime import compute_dtype, pick_device, say
from ..settings import settle

BATCH, HELD = 32, 64  # images of a batch; decoded images that the resize is measured on


@dataclass(frozen=True)
class Report:
    """images_per_second of each stage; prints itself as a table."""

    images: int
    median_size: tuple[int, int]
    transform: str
    cores: int
    images_per_second: dict[str, float]

    def to_json(self):
        """One line."""
        return json.dumps(self.__dict__)

    def __str__(self):
        head = f"{self.images:,} images, median {self.median_size[0]} x {self.median_size[1]} px, {self.cores} cores"
        width = max(map(len, self.images_per_second))
        lines = [f"  {stage:<{width}}  {rate:>9,.0f} images/s" for stage, rate in self.images_per_second.items()]
        return "\n".join([head, self.transform, *lines])


class _Undone(Rows):
    """Rows that are decoded and left at that."""

    def put(self, rows, images):
        pass


def bench(data, *, count=512, device="auto", fields=None, **options):
    """The Report of up to `count` images of a dataset, drawn with the seed; all of them are read once before.

    data     what `finetune` takes
    options  further fields of FinetuneConfig, such as resize, crop, interpolation
    Raises:  as `finetune`; BadImages naming an image that cannot be read
    """
    config = FinetuneConfig(**options)
    config.validate()
    dataset = open_dataset(data, val_split=0, **({"fields": fields} if fields else {}))
    n = len(dataset.train)
    chosen = np.sort(np.random.default_rng(config.seed).permutation(n)[:count])
    split = dataset.train.take(chosen)
    sizes = _sizes(split)
    settings = settle(config, n, median_size(sizes), split.multilabel)
    device, spec = pick_device(device), settings.train
    engines = ["pillow"] if is_decoded(split.images) or chosen_engine() == "pillow" else ["dali", "pillow"]
    say(f"measuring {len(split):,} of {n:,} images")
    reading = ahead(_parts(split), lambda part, row: split.images.read(part[row]), threads=usable_cores())
    rates = {"read": _rate(split, reading)}
    for engine in engines:
        rates[f"decode ({engine})"] = _rate(split, _decoded(split, spec, engine))
    rates["resize and crop"] = _resample_rate(split, spec)
    sampler = Sampler(len(split), BATCH, spec, settings.plan.mixup_alpha, config.seed)
    for engine in engines:
        rates[f"whole pipeline ({engine})"] = _rate(split, _batches(split, sampler, engine, device))
    engine = "dali" if chosen_engine(config.loader) == "dali" and "dali" in engines else "pillow"
    rates["for the trainer"] = rates[f"whole pipeline ({engine})"]
    rates = {stage: round(rate, 1) for stage, rate in rates.items()}
    return Report(len(split), median_size(sizes), str(spec), usable_cores(), rates)


def _parts(split):
    return [range(start, min(start + BATCH, len(split))) for start in range(0, len(split), BATCH)]


def _sizes(split):
    """(n, 2) heights and widths. The first look also brings the files into the system's cache."""

    def look(part, row):
        try:
            return decode.pixels(decode.read(split.images, part[row])).shape[:2]
        except decode.Unreadable as error:
            raise decode.unreadable(split.images, {part[row]: str(error)}) from error

    return np.array([size for _, sizes in ahead(_parts(split), look, threads=usable_cores()) for size in sizes])


def _decoded(split, spec, engine):
    if engine == "dali":
        from ..data.dali import read
    else:
        from ..data.pillow import read
    batches = (_Undone(request, spec, torch.float32) for request in in_order(len(split), BATCH))
    return read(split.images, spec, batches, largest=BATCH, device=torch.device("cpu"), threads=usable_cores())


def _resample_rate(split, spec):
    held = split.take(np.arange(min(HELD, len(split))))
    arrays = [decode.pixels(decode.read(held.images, i)) for i in range(len(held))]
    batch = Sampler(len(held), len(held), spec).batch(0)
    rows = Rows(batch, spec, torch.float32)
    arrays = [arrays[i] for i in batch.indices]
    rounds, began = 0, time.perf_counter()
    while rounds < 2 or time.perf_counter() - began < 0.5:
        rows.put(range(len(held)), arrays)
        rounds += 1
    return rounds * len(held) / (time.perf_counter() - began)


def _batches(split, sampler, engine, device):
    requests = (sampler.batch(step) for step in range(-(-len(split) // BATCH)))
    return images(split, sampler.transform, requests, engine=engine, device=device, dtype=compute_dtype(device))


def _rate(split, batches):
    """Images per second over one pass, from the start to the last batch, on the device."""
    began = time.perf_counter()
    last = deque(batches, maxlen=1).pop()
    if isinstance(last, torch.Tensor) and last.device.type == "cuda":
        torch.cuda.synchronize(last.device)
    return len(split) / (time.perf_counter() - began)
