"""What every recipe does around its training: open and check the data, settle the plan, start or resume the run."""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import checkpoint, distributed
from ..advice import read_advice
from ..config import CHANGEABLE, named
from ..config_file import build, changed, command_line, load_config, may_change, save_config
from ..data import check, decode
from ..data.dataset import open_dataset
from ..data.left_out import LeftOut
from ..data.listing import Fields
from ..data.shards import is_pattern
from ..data.splits import read_splits, write_splits
from ..errors import UsageError
from ..files import write_text
from ..folder import model_folder
from ..memory import micro_batch
from ..model import ResNetV2
from ..released import canonical
from ..run import RUNS, RunFolder, to_resume
from ..runtime import compute_dtype, is_main, pick_device, say
from ..signals import stop_signals
from ..variants import VARIANTS
from ..weights import cached, resolve
from ..weights.hub import PREFIX as HUB_PREFIX
from .loop import Result, train
from .plan import Plan, make_plan


@dataclass(frozen=True)
class Recipe:
    """What tells one recipe from another.

    config      its frozen dataclass, whose `command` is its name on the command line
    settle      (config, n_examples, image_size, multilabel) -> Settings
    initialize  (model, config, weights) fills the new network of a run, in place, and says with what
    decide      (config, train split, image_size, weights, Advice or None) -> (the Recipe to go on with, the Advice it
                rests on), where the recipe depends on the images; None where it does not
    train       as loop.train
    stages      the network is cut after this many; None: whole
    whole_step  what is trained is the network, so that memory is needed for its backward
    """

    config: type
    settle: Callable
    initialize: Callable
    decide: Callable | None = None
    train: Callable = train
    stages: int | None = None
    whole_step: bool = True

    def decided(self, config, split, image_size, weights, advice=None):
        return (self, None) if self.decide is None else self.decide(config, split, image_size, weights, advice)


def call(recipe, named, options, *, measure=False):
    """Carry out a recipe called from Python: both are fields of its config, data and val may be objects.

    Fields that are not given are those of the YAML file `config`, if that is one of them, and with resume those of the
    run in `out`, or of the newest one. Not given are those not in options, and those of `named`, which the function has
    defaults for, that have their default.
    """
    given = {name: str(value) if isinstance(value, Path) else value for name, value in (named | options).items()}
    objects = {name: given.pop(name) for name in ("data", "val") if not isinstance(given.get(name), str | None)}
    config = build(recipe.config, given)
    folder = to_resume(recipe.config.command, config.out) if config.resume else None
    if folder:
        given["out"] = str(folder.path)
    if file := folder.config if folder else config.config:
        saved, defaults = load_config(recipe.config, file), recipe.config()
        explicit = {k: v for k, v in given.items() if k in options or v != getattr(defaults, k)}
        config = replace(saved, **explicit)
    return run(recipe, config, **objects, measure=measure)


def run(recipe, config, data=None, val=None, *, measure=False):
    """Carry out a recipe's config; Python objects `data` and `val` stand in for config.data and config.val.

    Returns a Result; with config.dry_run the Plan, its seconds measured or estimated, and nothing is written.
    """
    config.validate()
    with distributed.process_group(config), decode.pixel_limit(config.max_pixels), stop_signals() as stop:
        return _run(recipe, config, data, val, measure, stop)


def _run(recipe, config, data, val, measure, stop):
    given, config = config, named(config)
    if given.model != config.model:
        with_weights = f" with the weights {config.weights}" if config.weights != given.weights else ""
        say(f"model: {given.model} is {config.model}{with_weights}")
    names = ("data", "val", "weights", "image_root")
    config = replace(config, **{name: _absolute(getattr(config, name)) for name in names})
    resumed = to_resume(recipe.config.command, config.out) if config.resume else None
    folder = distributed.first_says(resumed or RunFolder(config.out or _default_out(config)))
    if config.resume and folder.exists:
        return _resume(recipe, config, folder, data, val, stop)
    left_out = LeftOut(config.bad_images, None if config.dry_run else folder.bad_images)

    def prepare():
        if is_main() and not config.dry_run:
            folder.check_free()
        dataset = opened(config, left_out, data, val)
        absent = _absent(config.weights) if config.dry_run else ""
        weights = None if absent else resolved(config.weights)
        image_size = scanned(dataset, left_out)
        decided, advice = recipe.decided(config, dataset.train, image_size, weights)
        settings = decided.settle(config, len(dataset.train), image_size, dataset.train.multilabel)
        settings = settings.with_model_named(given.model)
        if config.dry_run:
            return _plan(decided, config, dataset, settings, weights, absent, measure)
        return decided, advice, dataset, settings, *_start(decided, config, dataset, settings, weights)

    prepared = distributed.together(prepare)
    if config.dry_run:
        return prepared
    decided, advice, *rest = prepared
    dataset, settings, model, facts = _same_micro_batch(*rest)
    settings = _with_micro_batch(decided, settings, config, facts)
    say(str(settings))
    with folder.locked():
        if is_main():
            write_splits(dataset, folder.splits)
            left_out.write()
            if advice:
                write_text(folder.advice, advice.to_json() + "\n")
            _write_plan(folder, settings, dataset)
            save_config(config, folder.config)
            write_text(folder.command, command_line(config) + "\n")
        return decided.train(decided, config, folder, dataset, settings, model, facts, left_out, stop)


def opened(config, left_out, data=None, val=None):
    """The Dataset that a config names, or Python objects in place of config.data and config.val."""
    source = data if data is not None else config.data
    if source is None:
        raise UsageError("no DATA given: name a folder with one sub-folder of images per class")
    dataset = open_dataset(
        source,
        val=val if val is not None else config.val,
        val_split=config.val_split,
        seed=config.seed,
        examples_per_class=config.examples_per_class,
        examples_per_class_seed=config.examples_per_class_seed,
        fields=Fields.of(config),
        allow_missing=config.bad_images == "skip",
        readable=left_out.readable,
    )
    say(f"data: {dataset.origin}")
    return dataset


def _resume(recipe, config, folder, data, val, stop):
    saved = load_config(recipe.config, folder.config)
    different = changed(config, saved)
    for name in different:
        may_change(name, config, saved, folder.path)
    with folder.locked():
        if folder.result.is_file():
            say(f"{folder.path} is finished; nothing to resume")
            return Result.from_json(folder.result.read_text(encoding="utf-8"))
        for name in different:
            say(f"changed: {name} = {getattr(config, name)!r}, before {getattr(saved, name)!r}")
        saved = replace(saved, **{name: getattr(config, name) for name in (*CHANGEABLE, *different)})
        found = distributed.together(lambda: checkpoint.newest(folder.checkpoints) if is_main() else None)
        state = distributed.first_says(found)
        start = state.step if state else 0

        def prepare():
            dataset = read_splits(folder.splits, data, val, Fields.of(saved))
            image_size = tuple(json.loads(folder.plan.read_text(encoding="utf-8"))["image_size"])
            weights, advice = resolved(saved.weights), read_advice(folder.advice)
            decided, _ = recipe.decided(saved, dataset.train, image_size, weights, advice)
            settings = decided.settle(saved, len(dataset.train), image_size, dataset.train.multilabel)
            if start > settings.plan.steps:
                raise UsageError(f"--steps {settings.plan.steps}: {start} are done already; give at least as many")
            if state is None:
                say(f"no checkpoint yet in {folder.path}: from step 0")
                model, facts = _start(decided, saved, dataset, settings, weights)
            else:
                say(f"resuming {folder.path} at step {start}")
                model, facts = _new_model(saved, dataset, decided.stages), state.facts
                model.ws_eps = facts["ws_eps"]
                if different:
                    facts = {**facts, "micro_batch": _micro_batch(saved, model, settings.plan)}
            if is_main():
                save_config(saved, folder.config)
            folder.rewind(start)
            left_out = LeftOut.read(saved.bad_images, folder.bad_images, start)
            return decided, left_out, dataset, settings, model, facts

        decided, left_out, *rest = distributed.together(prepare)
        dataset, settings, model, facts = _same_micro_batch(*rest)
        settings = _with_micro_batch(decided, settings, saved, facts)
        if different:
            say(str(settings))
        if different and is_main():
            _write_plan(folder, settings, dataset)
        return decided.train(decided, saved, folder, dataset, settings, model, facts, left_out, stop, state)


def _write_plan(folder, settings, dataset):
    write_text(folder.plan, json.dumps({**settings.to_dict(), "data": dataset.origin}, indent=2) + "\n")


def _same_micro_batch(dataset, settings, model, facts):
    """The smallest of all processes' micro-batches for all of them, within the largest part of a batch."""
    part = distributed.largest_part(settings.plan.batch_size, settings.plan.mixup_alpha > 0)
    size = min(part, *distributed.exchange(facts["micro_batch"]))
    return dataset, settings, model, {**facts, "micro_batch": size}


def _plan(recipe, config, dataset, settings, weights, absent, measure):
    """The Plan; weights that are here are loaded, to see that they fit."""
    with torch.device("cpu" if weights or measure else "meta"):
        model = _new_model(config, dataset, recipe.stages)
    if weights:
        recipe.initialize(model, config, weights)
    if not recipe.whole_step:
        return Plan(settings, settings.rows, {"command": recipe.config.command}, (absent,) if absent else ())
    micro = _micro_batch(config, model, settings.plan)
    settings = _with_micro_batch(recipe, settings, config, {"micro_batch": micro})
    return make_plan(recipe.config.command, config, dataset, settings, model, micro, absent, measure)


def _absent(weights):
    """A line about weights that a run would have to download first, "" for all others."""
    if weights is not None and weights.startswith(HUB_PREFIX):
        return f"{weights}: the run downloads it first, unless it is in the cache of huggingface_hub"
    name = canonical(weights)
    if name is None or os.path.exists(weights) or cached(name).exists():
        return ""
    return f"{name} is not on this machine yet: the run downloads it first, to {cached(name)}"


def _with_micro_batch(recipe, settings, config, facts):
    if not recipe.whole_step:
        return settings
    return settings.with_micro_batch(
        facts["micro_batch"], "you" if config.micro_batch or config.batch_split else "auto, from memory"
    )


def scanned(dataset, left_out):
    """Every image decoded; returns the (height, width) of the median training image."""
    scans = {part: left_out.scan(split, part) for part, split in dataset.parts.items()}
    check.require_readable(sum(scans.values(), check.Scan([], [])))
    if left_out.images:
        say(f"bad images: {left_out}{'' if left_out.path is None else f', listed in {left_out.path}'}")
    _say_duplicates(dataset, scans)
    return check.median_size(scans["train"].sizes)


def _say_duplicates(dataset, scans):
    seen = [group for group in check.duplicates(scans) if {"train", "val"} == {part for part, _ in group}]
    if seen:
        count = sum(part == "val" for group in seen for part, _ in group)
        first = {part: decode.shown(dataset.parts[part].images.name(i)) for part, i in reversed(seen[0])}
        say(
            f"note: {count:,} of {len(dataset.val):,} validation images are among the training images too"
            f" ({first['val']} is {first['train']}):"
            " the accuracy will be too good; bitfast check DATA lists them"
        )


def resolved(weights):
    """Path of the file or model folder that config.weights names, None for none."""
    if weights is None:
        return None
    return model_folder(weights) or resolve(weights)


def _absolute(name):
    """A path or pattern made absolute, so that a run can be resumed from anywhere; names of weights as given."""
    if name is None or not (os.path.exists(name) or is_pattern(name)):
        return name
    return os.path.abspath(name)


def _default_out(config):
    name = re.sub(r"[^\w.-]+", "-", Path(config.data).name) if config.data else "run"
    return f"{RUNS}/{name}-{config.model}-{time.strftime('%Y%m%d-%H%M%S')}"


def _new_model(config, dataset, stages):
    """The seeded network with a zero head, cut after so many stages, in the config's memory mode."""
    depths, width = VARIANTS[config.model]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = ResNetV2(depths[:stages], width, num_classes=len(dataset.train.classes))
    model.memory = config.memory
    return model


def _start(recipe, config, dataset, settings, weights):
    """(model, facts) of a new run.

    facts are what a bit-equal continuation needs beyond weights, momentum and step: micro-batch, threads, epsilon.
    """
    model = _new_model(config, dataset, recipe.stages)
    recipe.initialize(model, config, weights)
    micro = _micro_batch(config, model, settings.plan) if recipe.whole_step else settings.plan.batch_size
    return model, {"micro_batch": micro, "threads": torch.get_num_threads(), "ws_eps": model.ws_eps}


def _micro_batch(config, model, plan):
    device, paired = pick_device(config.device), plan.mixup_alpha > 0
    dtype = compute_dtype(device)
    part = distributed.largest_part(plan.batch_size, paired)
    shares = distributed.ranks() if config.parallel == "fsdp" else 1
    automatic = micro_batch(model, plan.crop, part, device, dtype, paired=paired, shares=shares)
    asked = -(-plan.batch_size // config.batch_split) if config.batch_split else config.micro_batch
    if asked is None:
        return automatic
    if paired and asked % 2 and asked < plan.batch_size:
        raise UsageError(f"a micro-batch of {asked} would split a MixUp pair: give an even --micro-batch")
    return min(asked, plan.batch_size)
