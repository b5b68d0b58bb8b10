"""Fine-tuning as people write it: the release's algorithm in plain PyTorch around a given network."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

WORKERS = 2


class Folder(Dataset):
    """(image, class) of a folder per class: Pillow, a square resize, random crop and flip, [-1, 1]."""

    def __init__(self, root: Path, resize: int, crop: int, training: bool):
        self.classes = sorted(path.name for path in root.iterdir())
        self.items = [(path, i) for i, name in enumerate(self.classes) for path in sorted((root / name).iterdir())]
        self.resize, self.crop, self.training = resize, crop, training

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path, label = self.items[i]
        edge = self.resize if self.training else self.crop
        with Image.open(path) as file:
            image = file.convert("RGB").resize((edge, edge), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.float32)
        if self.training:
            y, x = torch.randint(self.resize - self.crop + 1, (2,)).tolist()
            pixels = pixels[y : y + self.crop, x : x + self.crop]
            pixels = pixels[:, ::-1] if torch.rand(()) < 0.5 else pixels
        return torch.from_numpy((pixels / 127.5 - 1).transpose(2, 0, 1).copy()), label


def finetune(
    network: nn.Module, layout: torch.memory_format, photos: Path, plan, eval_every: int, seed: int
) -> list[tuple[float, float]]:
    """[(seconds of training so far, top-1 on photos/test)], the plan's steps with its learning rates."""
    torch.manual_seed(seed)
    network = network.to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=plan.base_lr, momentum=0.9)
    training = Folder(photos / "train", plan.resize, plan.crop, training=True)
    test = Folder(photos / "test", plan.resize, plan.crop, training=False)
    batches = _endless(DataLoader(training, plan.batch_size, shuffle=True, drop_last=True, **_loading()))
    curve, seconds = [], 0.0
    for step in range(plan.steps):
        start = time.perf_counter()
        images, labels = next(batches)
        optimizer.param_groups[0]["lr"] = plan.lr(step)
        optimizer.zero_grad()
        F.cross_entropy(network(images.to(memory_format=layout)), labels).backward()
        optimizer.step()
        seconds += time.perf_counter() - start
        if (step + 1) % eval_every == 0:
            curve.append((seconds, _accuracy(network, test, layout)))
    return curve


def _endless(loader: DataLoader) -> Iterator:
    while True:
        yield from loader


def _accuracy(network: Callable[[Tensor], Tensor], test: Dataset, layout: torch.memory_format) -> float:
    with torch.inference_mode():
        right = sum(
            int((network(images.to(memory_format=layout)).argmax(1) == labels).sum())
            for images, labels in DataLoader(test, 64, **_loading())
        )
    return right / len(test)


def _loading() -> dict:
    return {"num_workers": WORKERS, "multiprocessing_context": "forkserver"}
