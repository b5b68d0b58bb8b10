"""Exact evaluation: every image once, by name, and the numbers people ask for."""

from collections import ChainMap
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .data.loader import images, in_order
from .distributed import exchange, in_lockstep, part_of, settled
from .errors import BadImages, DataError
from .multilabel import MultiLabelPredictions
from .runtime import compute_dtype
from .sharding import is_sharded


@dataclass(frozen=True)
class Predictions:
    """Probabilities (n, C) float32 and labels (n,) int64 of one split, in the split's order.

    positions   (n,) int64, which of the split's images these are: all but the unreadable ones
    bad_images  how many those are
    """

    probabilities: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    bad_images: int

    @property
    def top1(self):
        """Share of images whose most probable class is the label."""
        return float((self.probabilities.argmax(1) == self.labels).mean())

    def topk(self, k):
        """Share of images whose label is among the k most probable classes."""
        return float((self.ranks < k).mean())

    @property
    def ranks(self):
        """How many classes are more probable than the label, per image (n,)."""
        own = np.take_along_axis(self.probabilities, self.labels[:, None], 1)
        return (self.probabilities > own).sum(1)

    @property
    def loss(self):
        """Mean cross-entropy in nats."""
        own = np.take_along_axis(self.probabilities, self.labels[:, None], 1)
        return float(-np.log(np.maximum(own, 1e-38)).mean())

    @property
    def confusion(self):
        """(C, C) counts, row = label, column = prediction."""
        classes = self.probabilities.shape[1]
        cells = self.labels * classes + self.probabilities.argmax(1)
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)

    def per_class(self):
        """Recall, precision, F1 (nan where undefined) and number of images of each class, four (C,) arrays."""
        predicted = self.probabilities.argmax(1)
        classes = self.probabilities.shape[1]
        count = np.bincount(self.labels, minlength=classes)
        guessed = np.bincount(predicted, minlength=classes)
        hits = np.bincount(self.labels[predicted == self.labels], minlength=classes)
        with np.errstate(invalid="ignore"):
            return hits / count, hits / guessed, 2 * hits / (count + guessed), count

    def metrics(self):
        """Dict of images, bad_images, top1, top5 (from six classes on), loss, balanced_accuracy and macro_f1.

        bad_images are left out of all the others; classes without images are out of the last two.
        """
        recall, _, f1, count = self.per_class()
        result = {"images": len(self.labels), "bad_images": self.bad_images, "top1": self.top1}
        if self.probabilities.shape[1] > 5:
            result["top5"] = self.topk(5)
        result["loss"] = self.loss
        result["balanced_accuracy"] = float(recall[count > 0].mean())
        result["macro_f1"] = float(f1[count > 0].mean())
        return result


@torch.no_grad()
def evaluate(network, split, transform, *, batch_size, device, engine="auto", on_bad=None, left_out=(), between=None):
    """Predictions of `network` for every image of `split` exactly once, images prepared by the test `transform`.

    MultiLabelPredictions for a multi-label split. The processes of a run share the images, and all get all Predictions;
    that every image is in them once, in order, is asserted.
    left_out  positions to go without
    on_bad    called with {position: reason} of images that cannot be read, which are then left out; raises to stop.
              None stops with the BadImages error
    between   called before each batch; raises to stop

    Raises:  DataError if no image is left
    """
    positions = np.setdiff1d(np.arange(len(split)), list(left_out))
    own = positions[slice(*part_of(len(positions)))]
    reader = dict(engine=engine, device=device, dtype=compute_dtype(torch.device(device)))
    lockstep = is_sharded(network)
    logits, done, bad = [], 0, set()
    while True:
        rest, found, failure = own[done:], {}, None
        batches = images(split.take(rest), transform, in_order(len(rest), batch_size), **reader)
        if lockstep:
            nothing = torch.empty((0, 3, transform.crop, transform.crop), dtype=reader["dtype"], device=device)
            batches = in_lockstep(batches, max(exchange(-(-len(rest) // batch_size))), nothing)
        try:
            for batch in batches:
                if between:
                    between()
                logits.append(network(batch).float())
                done += len(batch)
        except BadImages as error:
            found = {int(rest[i]): why for i, why in error.found.items()}
            failure = error if on_bad is None else None
        except Exception as error:  # raised below, in all processes
            if lockstep:
                raise
            failure = error
        found = dict(ChainMap(*settled(found, failure)))
        if not found:
            break
        on_bad(found)
        bad |= found.keys()
        own = np.setdiff1d(own, list(found))
    positions, logits = map(list, zip(*exchange((own, torch.cat(logits).cpu() if done else None)), strict=True))
    positions = np.concatenate(positions)
    if not np.array_equal(positions, np.setdiff1d(np.arange(len(split)), [*left_out, *bad])):
        raise RuntimeError(f"{len(positions)} of {len(split)} images were evaluated, {len(bad)} are unreadable")
    if not len(positions):
        raise DataError(f"none of the {len(split)} images to evaluate can be read: make them readable again")
    logits, labels = torch.cat([part for part in logits if part is not None]), split.labels[positions]
    missing = len(split) - len(positions)
    if labels.ndim == 1:
        return Predictions(torch.softmax(logits, 1).cpu().numpy(), labels, positions, missing)
    target = torch.as_tensor(labels, dtype=torch.float32, device=logits.device)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    return MultiLabelPredictions(torch.sigmoid(logits).cpu().numpy(), labels, losses.cpu().numpy(), positions, missing)
