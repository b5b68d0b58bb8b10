"""finetune(): a folder of images -> a trained, evaluated, saved classifier, with BiT-HyperRule."""

import json
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .. import checkpoint
from ..config import FinetuneConfig, build, changed, load_config, save_config
from ..data import check, decode
from ..data.cache import keep
from ..data.dataset import open_dataset
from ..data.left_out import LeftOut
from ..data.listing import Fields
from ..data.sampler import Sampler
from ..data.shards import is_pattern
from ..data.splits import read_splits, write_splits
from ..errors import DataError, Interrupted, UsageError
from ..evaluate import evaluate
from ..files import write_text
from ..folder import model_folder, save_model
from ..memory import micro_batch
from ..model import ResNetV2
from ..ops import report as ops_report
from ..optim import StandardizedSGD
from ..progress import progress
from ..report import write_report
from ..run import RunFolder
from ..runtime import compute_dtype, keep_freed_memory, pick_device, return_freed_memory, say
from ..settings import settle
from ..train import Trainer, stop_signals
from ..variants import VARIANTS
from ..weights import load_weights, resolve

EVALUATIONS, CHECKPOINTS = 5, 10


@dataclass(frozen=True)
class Result:
    """What a finished run amounts to; also written to result.json."""

    out: str
    model_folder: str
    report: str
    steps: int
    train_images: int
    metrics: dict | None
    images_per_second: float

    def to_json(self):
        """One line."""
        return json.dumps(asdict(self))


def finetune(data=None, model="resnet50x1", weights=None, out=None, **options):
    """Fine-tune a BiT network on images and return a Result.

    data     folder with one sub-folder of images per class (or train/ and val/ of such), a .csv or .tsv, shards, or
             Python objects: (paths, labels), (uint8 array, labels), a map-style dataset; data.dataset.open_dataset
             has the list. `val` takes the same
    model    name of the network
    weights  released name, file, model folder or run folder; None trains from scratch
    out      run folder to create, default runs/<data>-<model>-<time>
    options  any further field of FinetuneConfig; with resume=True only those that should be checked against the run.
             A run on images that have no path is resumed with the same objects as data (and val)

    With dry_run=True nothing is written and the Settings are returned.
    On a CPU the process is told to keep freed memory (with memory="save" to give it back), and the banner says so:
    bitfast.runtime.keep_freed_memory, return_freed_memory.
    Raises   UsageError, DataError, WeightsError, OutOfMemory, Interrupted; see bitfast.errors for the exit codes
    """
    given = {"data": data, "model": model, "weights": weights, "out": out, **options}
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    objects = {name: given.pop(name) for name in ("data", "val") if not isinstance(given.get(name), str | None)}
    config = build(FinetuneConfig, given)
    if config.resume and out is not None and RunFolder(out).exists:
        saved, defaults = load_config(FinetuneConfig, RunFolder(out).config), FinetuneConfig()
        explicit = {k: v for k, v in given.items() if k in options or v != getattr(defaults, k)}
        config = replace(saved, **explicit)
    return run(config, **objects)


def run(config, data=None, val=None):
    """Carry out a FinetuneConfig; Python objects `data` and `val` stand in for config.data and config.val."""
    config.validate()
    with decode.pixel_limit(config.max_pixels):
        return _run(config, data, val)


def _run(config, data, val):
    names = ("data", "val", "weights", "image_root")
    config = replace(config, **{name: _absolute(getattr(config, name)) for name in names})
    folder = RunFolder(config.out or _default_out(config))
    if config.resume and folder.exists:
        return _resume(config, folder, data, val)
    source = data if data is not None else config.data
    if source is None:
        raise UsageError("no DATA given: name a folder with one sub-folder of images per class")
    if not config.dry_run:
        folder.check_free()
    left_out = LeftOut(config.bad_images, None if config.dry_run else folder.bad_images)
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
    weights = _resolve(config.weights)
    settings = settle(config, len(dataset.train), _scan(dataset, left_out), dataset.train.multilabel)
    model, facts = _start(config, dataset, settings, weights)
    settings = _with_micro_batch(settings, config, facts)
    if config.dry_run:
        return settings
    say(str(settings))
    with folder.locked():
        write_splits(dataset, folder.splits)
        left_out.write()
        write_text(folder.plan, json.dumps(settings.to_dict(), indent=2) + "\n")
        save_config(config, folder.config)
        return _train(config, folder, dataset, settings, model, facts, left_out)


def _resume(config, folder, data, val):
    saved = load_config(FinetuneConfig, folder.config)
    different = changed(config, saved)
    if different:
        name = different[0]
        raise UsageError(
            f"{folder.path} was started with {name} = {getattr(saved, name)!r}, this call says"
            f" {getattr(config, name)!r}: drop it to continue the run, or start a new one with another --out"
        )
    with folder.locked():
        if folder.result.is_file():
            say(f"{folder.path} is finished; nothing to resume")
            return Result(**json.loads(folder.result.read_text(encoding="utf-8")))
        saved = replace(saved, bad_images=config.bad_images, max_pixels=config.max_pixels)
        save_config(saved, folder.config)
        dataset = read_splits(folder.splits, data, val, Fields.of(saved))
        image_size = tuple(json.loads(folder.plan.read_text(encoding="utf-8"))["image_size"])
        settings = settle(saved, len(dataset.train), image_size, dataset.train.multilabel)
        state = checkpoint.newest(folder.checkpoints)
        if state is None:
            say(f"no checkpoint yet in {folder.path}: from step 0")
            model, facts = _start(saved, dataset, settings, _resolve(saved.weights))
        else:
            say(f"resuming {folder.path} at step {state.step}")
            model, facts = _new_model(saved, dataset), state.facts
            model.ws_eps = facts["ws_eps"]
        start = state.step if state else 0
        folder.rewind(start)
        left_out = LeftOut.read(saved.bad_images, folder.bad_images, start)
        settings = _with_micro_batch(settings, saved, facts)
        return _train(saved, folder, dataset, settings, model, facts, left_out, state)


def _with_micro_batch(settings, config, facts):
    return settings.with_micro_batch(facts["micro_batch"], "you" if config.micro_batch else "auto, from memory")


def _scan(dataset, left_out):
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


def _resolve(weights):
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
    return f"runs/{name}-{config.model}-{time.strftime('%Y%m%d-%H%M%S')}"


def _new_model(config, dataset):
    """The seeded network with a zero head, in the config's memory mode."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = ResNetV2(*VARIANTS[config.model], num_classes=len(dataset.train.classes))
    model.memory = config.memory
    return model


def _start(config, dataset, settings, weights):
    """(model, facts) of a new run: pretrained weights under a zero head, as BiT does for every transfer.

    facts are what a bit-equal continuation needs beyond weights, momentum and step: micro-batch, threads, epsilon.
    """
    model = _new_model(config, dataset)
    if weights is None:
        say(f"weights: none, training {config.model} from scratch (--weights NAME or FILE starts from pretrained ones)")
    else:
        load_weights(model, weights)
        torch.nn.init.zeros_(model.head.fc.weight)
        torch.nn.init.zeros_(model.head.fc.bias)
        say(f"weights: {weights}, head of {len(dataset.train.classes)} classes zero-initialized")
    micro = _micro_batch(config, model, settings.plan)
    return model, {"micro_batch": micro, "threads": torch.get_num_threads(), "ws_eps": model.ws_eps}


def _train(config, folder, dataset, settings, model, facts, left_out, state=None):
    device = pick_device(config.device)
    dtype = compute_dtype(device)
    if device.type == "cpu":
        say(keep_freed_memory() if config.memory == "fast" else return_freed_memory())
    plan = settings.plan
    if facts["threads"] != torch.get_num_threads():
        say(f"note: {torch.get_num_threads()} threads here, {facts['threads']} before: equal up to rounding only")
    model.to(device)
    optimizer = StandardizedSGD(model, plan.base_lr, weight_decay=config.weight_decay, dtype=dtype)
    if state:
        state.restore(model, optimizer)
    sampler = Sampler(len(dataset.train), plan.batch_size, settings.train, plan.mixup_alpha, config.seed)
    kept = _keep(config, dataset, settings, left_out)
    trainer = Trainer(optimizer, plan, sampler, *kept["train"], facts["micro_batch"], device, config.loader)
    trainer.left_out = left_out.since(dataset.train, "train")

    def leave_out(found, step):
        try:
            left_out.add(dataset.train, "train", found, step)
        except DataError:
            checkpoint.save(folder.checkpoints, step, model, optimizer, facts)
            raise

    trainer.on_bad = leave_out
    folder.describe_environment(device)
    say(
        f"device: {device}, {dtype}".replace("torch.", "")
        + f", memory {config.memory}, micro-batch {facts['micro_batch']}"
    )
    for choice in ops_report(device, dtype):
        say(f"op {choice.op}: {choice.impl} ({choice.why})")

    def validate(step):
        return evaluate(
            optimizer.network,
            *kept["val"],
            batch_size=trainer.micro_batch,
            device=device,
            engine=config.loader,
            left_out=left_out.since(dataset.val, "val"),
            on_bad=lambda found: left_out.add(dataset.val, "val", found, step),
        )

    start = state.step if state else 0
    rates = _loop(config, folder, trainer, dataset, model, start, validate, facts)
    predictions = validate(plan.steps) if dataset.val else None
    metrics = predictions.metrics() if predictions else None
    save_model(
        folder.model,
        model,
        config.model,
        dataset.train.classes,
        settings.test,
        {
            "rule": asdict(plan),
            "metrics": metrics,
            "weights": config.weights,
            "multilabel": dataset.train.multilabel,
        },
    )
    report = write_report(folder, config, dataset, settings, predictions)
    result = Result(
        out=str(folder.path),
        model_folder=str(folder.model),
        report=str(report),
        steps=plan.steps,
        train_images=len(dataset.train),
        metrics=metrics,
        images_per_second=round(float(np.median(rates)), 1) if rates else 0.0,
    )
    write_text(folder.result, result.to_json() + "\n")
    if metrics:
        name = "mAP" if dataset.train.multilabel else "top1"
        say(f"validation {name} {metrics[name]:.1%} on {metrics['images']:,} images; report {report}")
    return result


def _keep(config, dataset, settings, left_out):
    """{"train" | "val": (split, transform)} to read images from: from memory where --cache says so."""
    plan = settings.plan
    passes = {
        "train": plan.steps * plan.batch_size / len(dataset.train),
        "val": plan.steps // _eval_every(config, plan),
    }
    transforms = {"train": settings.train, "val": settings.test}
    return {
        part: keep(
            split,
            transforms[part],
            config.cache,
            passes=passes[part],
            engine=config.loader,
            left_out=left_out.since(split, part),
            what={"train": "training", "val": "validation"}[part],
        )
        for part, split in dataset.parts.items()
    }


def _eval_every(config, plan):
    """Steps between evaluations, of which the last is always one."""
    every = max(1, plan.steps // EVALUATIONS) if config.eval_every is None else config.eval_every
    return every or plan.steps


def _micro_batch(config, model, plan):
    device, paired = pick_device(config.device), plan.mixup_alpha > 0
    dtype = compute_dtype(device)
    automatic = micro_batch(model, plan.crop, plan.batch_size, device, dtype, paired=paired)
    if config.micro_batch is None:
        return automatic
    if paired and config.micro_batch % 2 and config.micro_batch < plan.batch_size:
        raise UsageError(f"--micro-batch {config.micro_batch} would split a MixUp pair: use an even number")
    return min(config.micro_batch, plan.batch_size)


def _loop(config, folder, trainer, dataset, model, start, validate, facts):
    """Train from `start` to the end with evaluations and checkpoints; returns the images/s of the steps done."""
    total = trainer.plan.steps
    eval_every = _eval_every(config, trainer.plan)
    save_every = config.save_every or max(1, total // CHECKPOINTS)
    rates = []
    with stop_signals() as stop, progress(total) as line:
        for result in trainer.steps(start):
            rate, wait = line.update(result)
            rates.append(result.images / result.seconds)
            folder.log(
                {
                    "kind": "train",
                    "step": result.step,
                    "loss": result.loss if result.images else None,
                    "images": result.images,
                    "lr": result.lr,
                    "images_per_second": round(rate, 2),
                    "data_wait": round(wait, 4),
                }
            )
            done = result.step + 1
            if dataset.val and done % eval_every == 0 and done < total:
                folder.log({"kind": "eval", "step": done, **validate(done).metrics()})
            if done % save_every == 0 or done == total or stop.is_set():
                facts = {**facts, "micro_batch": trainer.micro_batch}
                checkpoint.save(folder.checkpoints, done, model, trainer.optimizer, facts)
            if stop.is_set() and done < total:
                raise Interrupted(
                    f"stopped at step {done} of {total} and saved:"
                    f" continue with bitfast finetune --resume --out {folder.path}"
                )
    return rates
