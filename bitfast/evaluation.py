"""Exact evaluation: every image once, by name, and the numbers people ask for."""

from collections import ChainMap
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .calibration import expected_calibration_error
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
        return float(self.hits.mean())

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
    def hits(self):
        """Whether the most probable class is the label, (n,) bool."""
        return self.probabilities.argmax(1) == self.labels

    @property
    def ece(self):
        """Expected calibration error of the most probable class, 15 bins (calibration.expected_calibration_error)."""
        return expected_calibration_error(self.probabilities.max(1), self.hits)

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
        """Dict of images, bad_images, correct, top1, top5 (from six classes on), loss, balanced_accuracy, macro_f1 and
        ece.

        correct counts the images of top1. bad_images are left out of all the others; classes without images are out of
        balanced_accuracy and macro_f1.
        """
        recall, _, f1, count = self.per_class()
        result = {"images": len(self.labels), "bad_images": self.bad_images}
        result |= {"correct": int(self.hits.sum()), "top1": self.top1}
        if self.probabilities.shape[1] > 5:
            result["top5"] = self.topk(5)
        result["loss"] = self.loss
        result["balanced_accuracy"] = float(recall[count > 0].mean())
        result["macro_f1"] = float(f1[count > 0].mean())
        result["ece"] = self.ece
        return result


def evaluate(network, split, transform, *, temperature=1.0, **options):
    """Predictions of `network` for every image of `split` exactly once; MultiLabelPredictions for a multi-label split.

    temperature  divides the logits before they become probabilities
    options      of `outputs`, which also says what is raised
    """
    logits, positions = outputs(network, split, transform, **options)
    return judged(logits, split.labels[positions], positions, len(split) - len(positions), temperature)


@torch.no_grad()
def outputs(network, split, transform, *, batch_size, device, engine="auto", on_bad=None, left_out=(), between=None):
    """(outputs of the network (n, C) float32 on the CPU, positions (n,)) for every image of `split`, in order.

    Images are prepared by the test `transform`. The processes of a run share them, and all get all outputs; that every
    image is among them once, in order, is asserted.
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
    return torch.cat([part for part in logits if part is not None]), positions


def judged(logits, labels, positions, bad_images=0, temperature=1.0):
    """The Predictions, or MultiLabelPredictions for labels (n, C) bool, of logits (n, C) float32 of any device."""
    probabilities = to_probabilities(logits, labels.ndim == 2, temperature)
    if labels.ndim == 1:
        return Predictions(probabilities, labels, positions, bad_images)
    target = torch.as_tensor(labels, dtype=torch.float32, device=logits.device)
    losses = F.binary_cross_entropy_with_logits(logits / temperature, target, reduction="none").sum(1)
    return MultiLabelPredictions(probabilities, labels, losses.cpu().numpy(), positions, bad_images)


def to_probabilities(logits, multilabel=False, temperature=1.0):
    """softmax(logits / temperature), with multilabel the sigmoid, (n, C) float32 numpy."""
    scaled = logits.float() / temperature
    return (torch.sigmoid(scaled) if multilabel else torch.softmax(scaled, 1)).cpu().numpy()
