"""advise(): which way of transfer suits a dataset, by what a linear classifier makes of the features of each stage."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import hyperrule
from ..advice import Advice, decide, measure
from ..config import FinetuneConfig, named
from ..config_file import build
from ..data import decode
from ..data.left_out import LeftOut
from ..errors import UsageError
from ..linear.folds import ALWAYS_TRAINED, stratified
from ..model import ResNetV2
from ..runtime import pick_device
from ..settings import settle
from ..stage_features import StageFeatures
from ..variants import VARIANTS
from ..weights import load_weights
from . import recipe

# Images to measure on: a standard error of one per cent or less, in minutes on a laptop; more where there are many
# classes.
MEASURED, MEASURED_PER_CLASS = 2000, 5
# Test images are not larger than this, unless you say so: the released weights were pretrained at 224 px, and 480 px
# take 4.6 times as long.
CROP = 224


def advise(data, model="resnet50x1", weights=None, *, images=MEASURED, balanced=False, val=None, **options):
    """The Advice on how to transfer pretrained `weights` to a dataset; `advice.decide` is the rule.

    data, val, model, weights  as in finetune. Only training images are looked at, so that a validation stays honest
    images                     how many of them to measure on, drawn in proportion to the classes
    balanced                   let every class count the same
    options                    further fields of FinetuneConfig, such as crop, val_split, examples_per_class, seed

    Features are kept on disk (stage_features) and serve finetune's tune="head" and "truncated" as well.
    Raises  UsageError, DataError, WeightsError; DataError too if no class has two images
    """
    if images < 1:
        raise UsageError(f"images must be at least 1, got {images}")
    given = {"data": data, "val": val, "model": model, "weights": weights, **options}
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    objects = {name: given.pop(name) for name in ("data", "val") if not isinstance(given[name], str | None)}
    config = build(FinetuneConfig, given)
    config.validate()
    config = named(config)
    with decode.pixel_limit(config.max_pixels):
        left_out = LeftOut(config.bad_images)
        dataset = recipe.opened(config, left_out, **objects)
        image_size = recipe.scanned(dataset, left_out)
        return measured(config, dataset.train, image_size, recipe.resolved(config.weights), images, balanced)


def measured(config, split, image_size, weights, images=MEASURED, balanced=False):
    """The Advice for a training split; weights is the path of the file, None for none."""
    if balanced and split.multilabel:
        raise UsageError("--balanced needs one label per image: these images have several, drop it")
    if weights is None:
        return _no_weights(config, split)
    chosen = sample(split.labels, max(images, MEASURED_PER_CLASS * len(split.classes)), config.seed)
    network = pretrained(config, weights)
    features = StageFeatures(
        network, probe_transforms(config, image_size), device=pick_device(config.device), engine=config.loader
    )
    stages = range(1, len(network.stages) + 1)
    x, positions, contents = features.of(split.take(chosen), stages, what="training images")
    labels = split.labels[chosen][positions]
    metric, scores, chance, count = measure(
        x, labels, len(split.classes), folds_of(labels, contents, config.seed), balanced
    )
    tune, kept, situation, reason = decide(scores, len(split))
    return Advice(
        tune=tune,
        stages=kept,
        situation=situation,
        reason=reason,
        metric=metric,
        scores=scores,
        chance=chance,
        images=len(split),
        measured=count,
        classes=len(split.classes),
        command=_command(config, tune, kept),
    )


def pretrained(config, weights):
    """The whole network of a config without a head, with the weights of a file."""
    model = ResNetV2(*VARIANTS[config.model], num_classes=0)
    load_weights(model, weights)
    return model


def probe_transforms(config, image_size):
    """The test Transform of the images that features are made of."""
    return settle(with_crop(config, image_size), 1, image_size).test


def with_crop(config, image_size):
    """The config with a crop: its own, else the rule's up to CROP."""
    crop = config.crop or min(hyperrule.resolution(image_size, config.preset, config.model)[1], CROP)
    return replace(config, crop=crop)


def folds_of(labels, contents, seed):
    """Folds of images of which those with equal contents are in the same one, by the labels of the first."""
    _, first, group = np.unique(contents, return_index=True, return_inverse=True)
    return stratified(labels[first], seed)[group]


def sample(labels, count, seed):
    """Positions, ascending, of at most about `count` images, in proportion to their classes."""
    if len(labels) <= count:
        return np.arange(len(labels))
    fold = stratified(labels, seed, folds=-(-len(labels) // count))
    return np.flatnonzero((fold == 0) | (fold == ALWAYS_TRAINED))


def _no_weights(config, split):
    return Advice(
        tune="scratch",
        stages=None,
        situation="no weights",
        reason="there is nothing to transfer: train from scratch, or give --weights, such as BiT-M-R50x1",
        metric="",
        scores=(),
        chance=None,
        images=len(split),
        measured=0,
        classes=len(split.classes),
        command=_command(config, "scratch", None),
    )


def _command(config, tune, stages):
    words = ["bitfast finetune", shlex.quote(config.data or "DATA"), f"--model {config.model}"]
    words += [f"--weights {shlex.quote(config.weights)}"] if config.weights else []
    words += [f"--tune {tune}"] + ([f"--stages {stages}"] if stages else [])
    return " ".join(words)
