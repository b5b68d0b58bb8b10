"""A trained classifier in use: load a run or model folder, predict names, evaluate on labelled folders."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .config import RunFields, bad_images_policy, load_config
from .data import check
from .data.dataset import Split, open_labelled
from .data.decode import shown
from .data.folder import images_below
from .data.listing import Fields
from .data.objects import images_of
from .data.openers import is_name
from .data.source import Files
from .data.splits import read_splits
from .errors import DataError
from .evaluate import Predictions, evaluate
from .folder import load_model
from .folding import fold
from .run import RunFolder
from .runtime import compute_dtype, pick_device, say


@dataclass(frozen=True)
class Prediction:
    """One image: its path, (class name, probability) pairs from the most probable on, or the reason it has none."""

    path: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""


class Classifier:
    """A network with its class names and test transform; the network is folded, weights standardized once.

    classes_     class names in index order
    network      nn.Module, images (N, 3, crop, crop) in [-1, 1] -> logits (N, len(classes_))
    transform    how image files become those images
    multilabel   probabilities are of independent classes (sigmoid), not of one among them (softmax)
    """

    def __init__(self, saved, *, device="auto", engine="auto", batch_size=32):
        self.device = pick_device(device)
        self.classes_ = saved.classes
        self.transform = saved.transform
        self.multilabel = saved.multilabel
        self.network = fold(saved.network.to(self.device).eval(), compute_dtype(self.device))
        self._engine, self._batch_size = engine, batch_size

    def predict_proba(self, images):
        """(n, C) float32 probabilities of images; DataError naming the first unreadable one.

        images  paths, uint8 (N, H, W, C) or (N, H, W), or a list of uint8 arrays, PIL images or encoded bytes; one path
        """
        return self._probabilities(_source(images))

    def predict(self, images, topk=1):
        """A Prediction for each image, in order; an unreadable one yields one with `error` set. As predict_proba."""
        images = [images] if is_name(images) else images
        source = _source(images)
        names = map(str, images) if isinstance(source, Files) else map(source.name, range(len(source)))
        why = [look.why for look in check.scan(source).looks]
        good = [i for i, reason in enumerate(why) if not reason]
        probabilities = iter(self._probabilities(source.take(good)) if good else ())
        return [
            Prediction(name, error=reason) if reason else Prediction(name, self._top(next(probabilities), topk))
            for name, reason in zip(names, why, strict=True)
        ]

    def evaluate(self, data, bad_images="error", fields=None) -> Predictions:
        """Predictions of labelled images: a Split whose classes are this classifier's, or any DATA of open_labelled.

        bad_images  "error": DataError if an image cannot be read; "skip": it is named and left out
        """
        split = data if isinstance(data, Split) else self._labelled(data, fields)
        scanned = check.scan(split.images)
        if bad_images_policy(bad_images) == "error":
            check.require_readable(scanned)
            return self._evaluate(split)
        bad = {i: look.why for i, look in enumerate(scanned.looks) if look.why}

        def leave_out(found):
            for i, why in found.items():
                say(f"bad image, left out: {shown(split.images.name(i))}: {why}")

        leave_out(bad)
        return self._evaluate(split, left_out=bad, on_bad=leave_out)

    def _labelled(self, data, fields):
        return open_labelled(data, self.classes_, multilabel=self.multilabel, fields=fields)

    def _probabilities(self, source):
        one, several = np.zeros(len(source), np.int64), np.zeros((len(source), len(self.classes_)), bool)
        return self._evaluate(Split(source, several if self.multilabel else one, self.classes_)).probabilities

    def _evaluate(self, split, **bad_images):
        with torch.inference_mode():
            return evaluate(
                self.network,
                split,
                self.transform,
                batch_size=self._batch_size,
                device=self.device,
                engine=self._engine,
                **bad_images,
            )

    def _top(self, probabilities, topk):
        order = np.argsort(-probabilities, kind="stable")[:topk]
        return tuple((self.classes_[i], float(probabilities[i])) for i in order)


def _source(images):
    return images_of([images] if is_name(images) else images, "the input")


def load(path, **options):
    """The Classifier in a run or model folder. options: device, engine, batch_size. WeightsError if none is there."""
    return Classifier(load_model(path), **options)


def image_files(inputs):
    """The image files that files and folders (searched recursively) name. DataError for a name that is neither."""
    found = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = images_below(path)
            if not files:
                raise DataError(f"{path}: no images in this folder; name image files or a folder that holds some")
            found += files
        elif path.exists():
            found.append(str(path))
        else:
            raise DataError(f"{path}: no such file or folder; check the path")
    return found


def labelled_split(classifier, run, data=None, fields=None):
    """The split to evaluate: the validation split of `run`, or the images of any DATA, joined by name."""
    if data is not None:
        return open_labelled(data, classifier.classes_, multilabel=classifier.multilabel, fields=fields)
    splits = RunFolder(run).splits
    if not splits.is_file():
        raise DataError(
            f"{run} has no splits.csv; name a folder with one sub-folder of images per class to evaluate on"
        )
    split = read_splits(splits, fields=Fields.of(load_config(RunFields, RunFolder(run).config))).val
    if split is None:
        raise DataError(
            f"{run} held out no images; name a folder with one sub-folder of images per class to evaluate on"
        )
    return split
