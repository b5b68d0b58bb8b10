"""A BiT network in a training loop of your own, in two ways that compute the same.

    python finetune_custom_loop.py photos/ BiT-M-R50x1              # StandardizedSGD: the fast one
    python finetune_custom_loop.py photos/ BiT-M-R50x1 --drop-in    # any optimizer

--drop-in is the network as it is: its convolutions standardize their weights in every forward, so in a loop that you
have only the line that makes the model changes. StandardizedSGD standardizes in its step, once: train
`optimizer.network`, a folded twin of plain convolutions; the raw weights in `model` are current after every step.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

import bitfast

SUFFIXES = {".jpg", ".jpeg", ".png"}


class Photos(torch.utils.data.Dataset):
    """Images of class folders as BiT wants them: resized to a square, cropped and flipped at random, in [-1, 1]."""

    def __init__(self, folder, resize, crop):
        self.classes = sorted(entry.name for entry in Path(folder).iterdir() if entry.is_dir())
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((Path(folder) / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        self.resize, self.crop = resize, crop

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        path, label = self.files[i]
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB").resize((self.resize, self.resize))
        x, y = (random.randint(0, self.resize - self.crop) for _ in range(2))
        image = image.crop((x, y, x + self.crop, y + self.crop))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        return torch.from_numpy((np.array(image, np.float32) - 127.5) / 127.5).permute(2, 0, 1), label


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder with one sub-folder of images per class")
    parser.add_argument("model", help="a network, trained from scratch, or released weights such as BiT-M-R50x1")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--drop-in", action="store_true", help="torch.optim.SGD on the network as it is")
    parser.add_argument("--out", default="custom.safetensors", help="file for the weights")
    args = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)

    photos = Photos(args.data, resize=160, crop=128)
    rule = bitfast.hyperrule.plan(len(photos)).scaled(args.steps)  # BiT's schedule, for your number of steps
    model = bitfast.create_model(
        args.model, pretrained=args.model in bitfast.list_models(pretrained=True), num_classes=len(photos.classes)
    )
    if args.drop_in:
        network, optimizer = model, torch.optim.SGD(model.parameters(), lr=rule.base_lr, momentum=0.9)
    else:
        optimizer = bitfast.StandardizedSGD(model, lr=rule.base_lr, momentum=0.9)
        network = optimizer.network

    order = torch.utils.data.RandomSampler(photos, replacement=True, num_samples=args.steps * args.batch_size)
    batches = torch.utils.data.DataLoader(photos, args.batch_size, sampler=order)
    for step, (images, labels) in enumerate(batches):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rule.lr(step)
        optimizer.step()
        print(f"step {step} loss {loss.item():.6f}", flush=True)

    bitfast.save_weights(model, args.out)
    print(f"wrote {args.out}: use it with bitfast.create_model({args.model!r}, {args.out!r})")


if __name__ == "__main__":
    main()
