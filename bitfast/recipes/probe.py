"""A linear head on features that are made once: what finetune does with tune="head" and tune="truncated"."""

import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from .. import distributed
from ..config import FinetuneConfig
from ..evaluation import evaluate
from ..folding import fold
from ..linear import logistic
from ..linear.scaling import Scaling
from ..ops import report as ops_report
from ..report.trackers import tracking
from ..runtime import compute_dtype, keep_freed_memory, peak_memory_bytes, pick_device, say
from ..settings import settle
from ..stage_features import BATCH, StageFeatures
from ..weights import load_weights
from .advise import folds_of, pretrained, sample, with_crop
from .loop import finish
from .recipe import Recipe, resolved

# Rows of the settings that a head has as well as a whole training.
_ROWS = ("model", "weights", "training images", "loss", "crop", "test crop", "interpolation", "test transform")


def head_recipe(stages, row):
    """The Recipe of a head on the features after `stages` stages, None for all; row: settings' row that says so."""
    return Recipe(FinetuneConfig, partial(_settle, row), _initialize, train=train, stages=stages, whole_step=False)


def _settle(row, config, n_examples, image_size, multilabel=False):
    settings = settle(with_crop(config, image_size), n_examples, image_size, multilabel)
    crop = settings.plan.crop
    rows = [each for each in settings.rows if each[0] in _ROWS]
    if config.crop is None:
        rows = [
            ("crop", f"{crop} px", "rule, up to 224 px") if name == "crop" else (name, *rest) for name, *rest in rows
        ]
    rows[2:2] = [row]
    rows += [
        ("features", "made once, kept on disk", "tune"),
        ("head", "logistic regression, L-BFGS in float64", "tune"),
        ("L2 penalty", f"of {len(logistic.ALPHAS)}, by cross-validation", "auto"),
    ]
    plan = replace(
        settings.plan,
        steps=1,
        warmup=0,
        boundaries=(),
        batch_size=n_examples,
        base_lr=0.0,
        mixup_alpha=0.0,
        resize=crop,
    )
    return replace(settings, plan=plan, train=settings.test, rows=tuple(rows), notes=())


def _initialize(model, config, weights):
    load_weights(model, weights, adapt=True)
    torch.nn.init.zeros_(model.head.fc.weight)
    torch.nn.init.zeros_(model.head.fc.bias)
    say(f"weights: {weights}, of which a head of {model.num_classes} classes is trained")


def train(recipe, config, folder, dataset, settings, model, facts, left_out, stop, state=None):
    """Make the features, or take them from the cache, solve for the head, evaluate, save; returns the Result.

        min over W, b:  sum_i loss(z_i W + b, y_i) + alpha / 2 |W|^2,   z the standardized features

    with the alpha that cross-validation on the training images finds best; z's scaling goes into the weights. There is
    no state to resume from: done again it takes the features from the cache and gives the same. So a signal stops it at
    once.
    """
    device = pick_device(config.device)
    if device.type == "cpu":
        say(keep_freed_memory())
    folder.describe_environment(device, ops_report(device, compute_dtype(device)), distributed.ranks())
    began = time.perf_counter()
    whole, stage = pretrained(config, resolved(config.weights)), len(model.stages)
    features = StageFeatures(whole, settings.test, device=device, engine=config.loader)
    x, positions, contents = features.of(
        dataset.train,
        [stage],
        on_bad=lambda found: left_out.add(dataset.train, "train", found, 0),
        what="training images",
    )
    labels = dataset.train.labels[positions]
    mean_loss = fit_head(
        model, x[stage].astype(np.float64), labels, folds_of(labels, contents, config.seed), config.seed
    )
    seconds = time.perf_counter() - began
    rate = len(positions) / seconds
    model.to(device)
    network, predictions = fold(model.eval(), compute_dtype(device)), None
    with tracking(config, folder, 0), torch.inference_mode():
        folder.log(
            {
                "kind": "train",
                "step": 0,
                "loss": mean_loss,
                "images": len(positions),
                "lr": 0.0,
                "seconds": round(seconds, 4),
                "images_per_second": round(rate, 2),
                "data_wait": 0.0,
                "peak_memory_bytes": peak_memory_bytes(device),
            }
        )
        if dataset.val:
            predictions = evaluate(
                network,
                dataset.val,
                settings.test,
                batch_size=BATCH,
                device=device,
                engine=config.loader,
                on_bad=lambda found: left_out.add(dataset.val, "val", found, 1),
            )
            folder.announce({"kind": "eval", "step": 1, **predictions.metrics()})
    return finish(folder, config, dataset, settings, model, predictions, [rate])


def fit_head(model, features, labels, fold, seed):
    """Put the best head for features (n, C) float64 into `model`; returns its mean training loss in nats."""
    classes = model.num_classes
    chosen = sample(labels, logistic.CHOSEN_ON, seed)
    alpha, losses = logistic.choose_alpha(features[chosen], labels[chosen], classes, fold[chosen])
    scale = Scaling.of(features)
    z = scale(features)
    head = logistic.fit(z, labels, classes, alpha)
    with torch.no_grad():
        weight, bias = scale.unscaled(head.weight, head.bias)
        model.head.fc.weight.copy_(torch.as_tensor(weight.T)[:, :, None, None])
        model.head.fc.bias.copy_(torch.as_tensor(bias))
    held_out = f", held-out loss {min(losses):.4f}" if losses else ""
    say(f"head: {features.shape[1]:,} features to {classes} classes, L2 penalty {alpha:g}{held_out}")
    return float(logistic.loss(torch.as_tensor(head(z)), torch.as_tensor(labels), "sum")) / len(labels)
