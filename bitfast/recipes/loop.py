"""The training loop that every recipe runs: steps, evaluations, checkpoints, then model folder, report and Result."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch

from .. import checkpoint
from ..data.cache import keep
from ..data.sampler import Sampler
from ..errors import DataError, Interrupted
from ..evaluate import evaluate
from ..files import write_text
from ..folder import save_model
from ..ops import report as ops_report
from ..optim import StandardizedSGD
from ..progress import progress
from ..report import write_report
from ..runtime import compute_dtype, keep_freed_memory, pick_device, return_freed_memory, say
from ..train import Trainer, stop_signals

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


def train(recipe, config, folder, dataset, settings, model, facts, left_out, state=None):
    """Train to the plan's end, evaluate, save model and report; returns the Result."""
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
    rates = _loop(recipe, config, folder, trainer, dataset, model, start, validate, facts)
    predictions = validate(plan.steps) if dataset.val else None
    return finish(folder, config, dataset, settings, model, predictions, rates)


def finish(folder, config, dataset, settings, model, predictions, rates):
    """Save a trained model and its report; returns the Result. rates: images/s of the steps done."""
    plan = settings.plan
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


def evaluations(config, plan):
    """How many a run with validation images does."""
    return -(-plan.steps // _eval_every(config, plan))


def _loop(recipe, config, folder, trainer, dataset, model, start, validate, facts):
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
                    "seconds": round(result.seconds, 4),
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
                    f" continue with bitfast {recipe.config.command} --resume --out {folder.path}"
                )
    return rates
