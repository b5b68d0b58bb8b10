"""The images a run goes without because they cannot be read, and the policy that allows it."""

import csv
from typing import NamedTuple

import numpy as np

from bitfast.config import bad_images_policy
from bitfast.data import check
from bitfast.data.decode import shown
from bitfast.errors import DataError
from bitfast.files import replacing
from bitfast.runtime import is_main, say

_COLUMNS = ["path", "class", "split", "reason", "step"]


class _Image(NamedTuple):
    """One row of bad_images.csv. step: the training step from which on it is left out; "" if the run never saw it."""

    path: str
    class_name: str
    split: str
    reason: str
    step: int | str = ""


class LeftOut:
    """What `--bad-images` does, and bad_images.csv.

    With "error" the first unreadable image stops the run. With "skip" it is left out: the split, and so the rule's
    numbers, are made of the readable ones; one that goes bad during the run makes its batches smaller from that step
    on. Nothing is put in its place, and no file is touched.
    """

    def __init__(self, policy, path=None):
        self.policy, self.path = bad_images_policy(policy), path
        self.images = []
        self._looks = {}

    @classmethod
    def read(cls, policy, path, step):
        """As a run left it that goes on at `step`: what happened later is about to happen again."""
        left_out = cls(policy, path)
        if path.is_file():
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                rows = list(csv.reader(file))[1:]
            try:
                images = [_Image(*row[:4], int(row[4]) if row[4] else "") for row in rows]
            except (ValueError, IndexError, TypeError) as error:
                raise DataError(f"{shown(path)}: not what the run wrote: put it back, or start a new run") from error
            left_out.images = [image for image in images if image.step == "" or _seen(image, step)]
            left_out.write()
        return left_out

    def readable(self, split, part):
        """(n,) bool for `open_dataset`: the images of one part that can be read; all of them with "error".

        Raises:  DataError if a class, or the part, has none
        """
        if self.policy == "error":
            return np.ones(len(split), dtype=bool)
        scanned = _scan(split, part)
        self._looks[part] = dict(zip(scanned.names, scanned.looks, strict=True))
        readable = scanned.readable
        _require_some(split, readable, part, scanned.bad)
        for i in np.flatnonzero(~readable):
            self.images.append(_Image(scanned.names[i], "|".join(split.names(i)), part, scanned.looks[i].why))
        return readable

    def scan(self, split, part):
        """The Scan of a split of readable images; with "error" DataError naming the first that is not."""
        if self.policy == "error":
            return _scan(split, part)
        looks = self._looks.get(part, self._looks["train"])  # what is held out was listed as train
        names = [split.images.name(i) for i in range(len(split))]
        return check.Scan(names, [looks[name] for name in names])

    def since(self, split, part):
        """{position in the split: step from which on it is left out} of those that went bad during the run."""
        steps = {image.path: image.step for image in self.images if image.split == part and image.step != ""}
        names = (split.images.name(i) for i in range(len(split))) if steps else ()
        return {i: steps[name] for i, name in enumerate(names) if name in steps}

    def add(self, split, part, found, step):
        """Leave {position: reason} of a split out from `step` on, and say so. Raises DataError with "error"."""
        if self.policy == "error":
            i, why = next(iter(found.items()))
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise DataError(
                f"{shown(split.images.name(i))}{more} went bad during the run: {why}: put it back and continue with"
                f" bitfast finetune --resume --out {self.path.parent}, or go on without: add --bad-images skip"
            )
        known = {(image.path, image.split) for image in self.images}
        for i, why in found.items():
            name = split.images.name(i)
            if (name, part) not in known:
                self.images.append(_Image(name, "|".join(split.names(i)), part, why, step))
            say(f"bad image at step {step}, left out of {part} from now on: {shown(name)}: {why}")
        self.write()

    def write(self):
        """Save bad_images.csv (path, class, split, reason, step), UTF-8; there is none if nothing is left out."""
        if not is_main():
            return
        if not self.images:
            self.path.unlink(missing_ok=True)
        else:
            with (
                replacing(self.path) as temporary,
                open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
            ):
                rows = csv.writer(file)
                rows.writerow(_COLUMNS)
                rows.writerows(self.images)

    def __str__(self):
        parts = " and ".join(
            f"{sum(image.split == part for image in self.images):,} of {part}" for part in ("train", "val")
        )
        return f"{len(self.images):,} unreadable images left out, {parts}"


def _scan(split, part):
    say(f"checking {len(split):,} images of {part}")
    return check.scan(split.images)


def _seen(image, step):
    """Whether a run that is at `step` has seen this: a step trains before the evaluation that has its number."""
    return image.step < step if image.split == "train" else image.step <= step


def _require_some(split, readable, part, bad):
    for label, name in enumerate(() if split.multilabel or part == "val" else split.classes):
        members = readable[split.labels == label]
        if not members.any():
            first, why = next((name, why) for name, why in bad)
            raise DataError(
                f"class {shown(name)}: none of its {len(members)} images can be read (the first bad one is"
                f" {shown(first)}: {why}): replace them, or delete the class"
            )
    if not readable.any():
        first, why = bad[0]
        raise DataError(f"none of the {len(split)} images of {part} can be read (first {shown(first)}: {why})")
