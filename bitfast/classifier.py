"""A trained classifier in use: load a run, a model folder or a released model; predict, embed, evaluate, calibrate."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import tee

import numpy as np
import torch

from . import evaluation
from .calibration import LIMITS, fit_temperature
from .config import RunFields, bad_images_policy
from .config_file import load_config
from .data import check
from .data.dataset import Split, open_labelled
from .data.decode import shown
from .data.listing import Fields
from .data.loader import images as loaded
from .data.loader import in_order
from .data.objects import images_of
from .data.openers import is_name
from .data.source import Files, Named, Source
from .data.splits import read_splits
from .errors import DataError, UsageError
from .files import require_free
from .folder import SavedModel, load_model, model_folder, released_model, save_temperature
from .folding import fold
from .multilabel import THRESHOLD
from .report import write_predictions
from .run import RunFolder
from .runtime import compute_dtype, pick_device, say
from .weights import identify


@dataclass(frozen=True)
class Prediction:
    """One image: its path, (class name, probability) pairs from the most probable on, or the reason it has none.

    features  (num_features,) float32, what the head sees, where they were asked for
    """

    path: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""
    features: np.ndarray | None = field(default=None, compare=False)


class Classifier:
    """A network with its class names and test transform; the network is folded, weights standardized once.

    classes_     class names in index order
    network      nn.Module, images (N, 3, crop, crop) in [-1, 1] -> logits (N, len(classes_)); `model` is the same
    transform    how image files become those images
    multilabel   probabilities are of independent classes (sigmoid), not of one among them (softmax)
    temperature  what logits are divided by before they become probabilities; 1.0 unless `calibrated`

    `images` of all methods: paths, uint8 (N, H, W, C) or (N, H, W), or a list of paths, uint8 arrays, PIL images and
    encoded bytes, also mixed; or one path, PIL image or bytes; or a data.source.Source. They are read batch by batch,
    in order, each once; what comes out does not depend on the batch size but for rounding. A Classifier can be pickled.
    """

    def __init__(self, saved: SavedModel, *, device="auto", engine="auto", batch_size=32):
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}: it must be at least 1")
        self.device = pick_device(device)
        self.classes_ = saved.classes
        self.transform = saved.transform
        self.multilabel = saved.multilabel
        self.temperature = saved.temperature or 1.0
        self.calibrated = saved.temperature is not None
        self.network = fold(saved.network.to(self.device).eval(), compute_dtype(self.device))
        self._engine, self._batch_size = engine, batch_size

    @property
    def model(self):
        return self.network

    def predict(self, images):
        """The name of the most probable class of each image, (n,) str; multi-label: a list of tuples, the names of 0.5
        and more. DataError naming the first image that cannot be read.
        """
        probabilities = self.predict_proba(images)
        if self.multilabel:
            return [tuple(self.classes_[c] for c in np.flatnonzero(row >= THRESHOLD)) for row in probabilities]
        return np.array(self.classes_)[probabilities.argmax(1)]

    def predict_proba(self, images):
        """(n, len(classes_)) float32 probabilities, softmax(logits / temperature), columns as classes_. As predict."""
        return self._probabilities(self._all(images, self.network, len(self.classes_)))

    def top_k(self, images, k=5):
        """For each image the k most probable (class name, probability) pairs, a list of tuples. As predict."""
        return [self._top(row, k, 0.0) for row in self.predict_proba(images)]

    def embed(self, images):
        """(n, num_features) float32: the pooled features that the head sees. As predict."""
        return self._all(images, self._features, self.network.num_features).numpy()

    def preprocess(self, image):
        """(3, crop, crop) float32 tensor of one image, what `network` takes a batch of, on the CPU."""
        source = _source([image])
        (x,) = loaded(Split(source, (), ()), self.transform, in_order(1, 1), engine=self._engine)
        return x[0]

    def stream(self, images, *, topk=None, threshold=None, features=False) -> Iterator[Prediction]:
        """Yields a Prediction for each image, in order, as batches are done; an unreadable one has its `error`.

        topk       classes per image; default 1, multi-label: as many as reach the threshold
        threshold  smallest probability that is named; default 0, multi-label without topk: 0.5
        features   embed the images too
        """
        source = _source(images)
        if threshold is None:
            threshold = THRESHOLD if self.multilabel and topk is None else 0.0
        topk = topk or (len(self.classes_) if self.multilabel else 1)
        for positions, found, (pooled, logits) in self._batches(source, self._features_and_logits):
            rows = iter(zip(self._probabilities(logits), pooled.numpy(), strict=True))
            for i in positions:
                if i in found:
                    yield Prediction(source.name(i), error=found[i])
                else:
                    probabilities, embedding = next(rows)
                    top = self._top(probabilities, topk, threshold)
                    yield Prediction(source.name(i), top, features=embedding if features else None)

    def evaluate(self, data, bad_images="error", fields=None, part=None) -> evaluation.Predictions:
        """Predictions of labelled images: a Split whose classes are this classifier's, or any DATA of open_labelled.

        bad_images    "error": DataError if an image cannot be read; "skip": it is named and left out
        fields, part  of open_labelled
        """
        split, options = self._readable(data, bad_images, fields, part)
        return evaluation.evaluate(self.network, split, self.transform, temperature=self.temperature, **options)

    def calibrate(self, data, bad_images="error", fields=None, part=None):
        """Set `temperature` to what minimizes the cross-entropy on labelled images, as `evaluate` takes them.

        Returns (Predictions before: with temperature 1, Predictions after). Accuracy does not change, for softmax and
        sigmoid keep their order. To be done on images the network was not trained on.
        """
        split, options = self._readable(data, bad_images, fields, part)
        logits, positions = evaluation.outputs(self.network, split, self.transform, **options)
        labels = split.labels[positions]
        self.temperature, self.calibrated = fit_temperature(logits.cpu().numpy(), labels), True
        if self.temperature in LIMITS:
            say(
                f"note: temperature {self.temperature:g} is the limit: these {len(labels):,} images alone do not "
                "determine one (are they all right, or all wrong?); calibrate on more or harder images"
            )
        rest = labels, positions, len(split) - len(positions)
        return evaluation.judged(logits, *rest), evaluation.judged(logits, *rest, temperature=self.temperature)

    def _readable(self, data, bad_images, fields, part):
        """(Split, options of evaluation.outputs) of labelled data, by the policy for images that cannot be read."""
        split = data
        if not isinstance(data, Split):
            split = open_labelled(data, self.classes_, multilabel=self.multilabel, fields=fields, part=part)
        _say_absent(split)
        options = {"batch_size": self._batch_size, "device": self.device, "engine": self._engine}
        scanned = check.scan(split.images)
        if bad_images_policy(bad_images) == "error":
            check.require_readable(scanned)
            return split, options
        bad = {i: look.why for i, look in enumerate(scanned.looks) if look.why}

        def leave_out(found):
            for i, why in found.items():
                say(f"bad image, left out: {shown(split.images.name(i))}: {why}")

        leave_out(bad)
        return split, {**options, "left_out": bad, "on_bad": leave_out}

    def _all(self, images, network, columns):
        """(n, columns) outputs of `network`, on the CPU."""
        batches = [values for _, _, values in self._batches(_source(images), network, strict=True)]
        return torch.cat(batches) if batches else torch.empty(0, columns)

    def _batches(self, source, network, strict=False):
        """Yields (positions, {position: reason} of the unreadable ones, outputs of the others on the CPU) in order.

        strict  raise BadImages instead
        """
        requests, again = tee(in_order(len(source), self._batch_size))
        found = {}
        dtype = compute_dtype(self.device)
        options = {"engine": self._engine, "device": self.device, "dtype": dtype}
        on_bad = None if strict else found.update
        ready = loaded(Split(source, (), ()), self.transform, requests, on_bad=on_bad, **options)
        for request, x in zip(again, ready, strict=True):
            with torch.inference_mode():
                values = network(x)
            values = values.float().cpu() if strict else tuple(value.float().cpu() for value in values)
            yield request.indices.tolist(), dict(found), values
            found.clear()

    def _features(self, x):
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True)

    def _features_and_logits(self, x):
        maps = self.network.forward_features(x)
        return self.network.forward_head(maps, pre_logits=True), self.network.forward_head(maps)

    def _probabilities(self, logits):
        return evaluation.to_probabilities(logits, self.multilabel, self.temperature)

    def _top(self, probabilities, topk, threshold):
        order = np.argsort(-probabilities, kind="stable")[:topk]
        return tuple((self.classes_[i], float(probabilities[i])) for i in order if probabilities[i] >= threshold)

    def __getstate__(self):
        return {**self.__dict__, "network": copy.deepcopy(self.network).to("cpu"), "device": self.device.type}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if state["device"] == "cuda" and not torch.cuda.is_available():
            self.device, self.network = pick_device("cpu"), self.network.float()
        else:
            self.device = pick_device(state["device"])
            self.network.to(self.device)


def load(source, **options):
    """The Classifier in a run or model folder, in "hf-hub:OWNER/NAME", or of a released model by its name.

    options  device: "auto", "cpu" or "cuda"; engine: "auto", "dali" or "pillow"; batch_size
    Raises   WeightsError if there is no model, or it is damaged; UsageError on an option that cannot be

    Released weights carry no class names: their classes are numbers, and a line says so.
    """
    saved = released_model(str(source)) if model_folder(source) is None and _is_released(source) else load_model(source)
    if not saved.config.get("label_names"):
        say(f"note: {source} has no class names: its {len(saved.classes):,} classes are called by their numbers")
    classifier = Classifier(saved, **options)
    if classifier.calibrated:
        say(f"probabilities are calibrated: temperature {classifier.temperature:.4g}")
    return classifier


def labelled_split(classifier, run, data=None, fields=None, part=None):
    """The split to evaluate: a part of `run`'s own images ("val" by default), or of any DATA, joined by name."""
    if data is not None:
        return open_labelled(data, classifier.classes_, multilabel=classifier.multilabel, fields=fields, part=part)
    other = "name a folder with one sub-folder of images per class to evaluate on"
    splits = RunFolder(run).splits
    if not splits.is_file():
        raise DataError(f"{run} has no splits.csv; {other}")
    parts = read_splits(splits, fields=Fields.of(load_config(RunFields, RunFolder(run).config))).parts
    part = part or "val"
    if part not in parts:
        raise DataError(f"{run} held out no images; {other}" if part == "val" else f"{run} has no {part} part; {other}")
    return parts[part]


def evaluate(
    run,
    data=None,
    *,
    split=None,
    calibrate=False,
    bad_images="error",
    fields=None,
    predictions=None,
    force=False,
    **options,
):
    """Evaluate a trained model and return its Predictions; `.metrics()` is a dict of the numbers.

    run         run or model folder, "hf-hub:OWNER/NAME", released name
    data        images with labels, in any form that finetune takes; default the run's own validation images. Classes
                are matched by name: those without images are named, one that the model lacks is an error
    split       "train", "val" or "test" of the data, or of the run; default the validation part, or everything
    calibrate   first fit one temperature on these images and store it in the model folder's config.json; `predict` and
                exports use it from then on
    bad_images  "error" or "skip", as Classifier.evaluate
    fields      data.listing.Fields: names of columns, features and keys
    predictions CSV file to write, a row for each image by its name; one that is there is replaced with `force` only
    options     of `load`

    Raises  DataError, WeightsError, UsageError
    """
    if predictions is not None:
        require_free(predictions, force)
    folder = model_folder(run)
    if calibrate and folder is None:
        raise UsageError(f"{run} is no run or model folder here whose config.json could keep a temperature: name one")
    classifier = load(run, **options)
    chosen = labelled_split(classifier, run, data, fields, split)
    if calibrate:
        result = _calibrate(classifier, folder, chosen, bad_images)
        if split == "train":
            say("note: a network is surer of images it was trained on than of others: --split val, or other DATA")
    else:
        result = classifier.evaluate(chosen, bad_images)
    if predictions is not None:
        write_predictions(predictions, chosen, result)
    return result


def _calibrate(classifier, folder, split, bad_images):
    """Fit a temperature, keep it in the folder and say so; returns the Predictions with it."""
    replaced = f", which replaces {classifier.temperature:.4g}" if classifier.calibrated else ""
    before, after = classifier.calibrate(split, bad_images)
    facts = {"images": len(after.labels), "loss": [before.loss, after.loss], "ece": [before.ece, after.ece]}
    save_temperature(folder, classifier.temperature, facts)
    say(
        f"temperature {classifier.temperature:.4g}{replaced}, kept in {folder / 'config.json'}: on these "
        f"{facts['images']:,} images loss {before.loss:.4f} -> {after.loss:.4f}, "
        f"ece {before.ece:.4f} -> {after.ece:.4f}"
    )
    return after


def _say_absent(split):
    """Name the classes without images: they are out of the means over classes."""
    have = split.labels.any(0) if split.multilabel else np.bincount(split.labels, minlength=len(split.classes)) > 0
    absent = [name for name, there in zip(split.classes, have, strict=True) if not there]
    if absent:
        more = ", ..." if len(absent) > 5 else ""
        say(
            f"note: no images of {len(absent):,} of the model's {len(split.classes):,} classes "
            f"({', '.join(map(shown, absent[:5]))}{more}); means over classes are without them"
        )


def _is_released(name):
    try:
        identify(str(name))
    except UsageError:
        return False
    return True


def _source(images):
    """The Source of what a Classifier is given; files are called as they were written."""
    if isinstance(images, Source):
        return images
    one = is_name(images) or isinstance(images, (bytes, bytearray)) or hasattr(images, "getexif")
    images = [images] if one else images
    source = images_of(images, "the input")
    return Named(images) if isinstance(source, Files) else source
