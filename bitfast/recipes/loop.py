"""The training loop that every recipe runs: steps, evaluations, checkpoints, then model folder, report and Result."""

import json
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import torch

from .. import distributed, sharding
from ..checkpoint import Checkpoints, newest
from ..data.cache import keep
from ..data.sampler import Sampler
from ..errors import DataError, Interrupted
from ..evaluation import evaluate
from ..files import write_text
from ..folder import save_model
from ..ops import report as ops_report
from ..optim import StandardizedSGD
from ..progress import progress
from ..report import Interpreted, write_report, write_train_batch
from ..report.trackers import tracking
from ..run import RunFolder
from ..runtime import (
    compute_dtype,
    is_main,
    keep_freed_memory,
    peak_memory_bytes,
    pick_device,
    return_freed_memory,
    say,
)
from ..train import NonFiniteLoss, Trainer

EVALUATIONS, CHECKPOINTS = 5, 10


@dataclass(frozen=True)
class Result(Interpreted):
    """What a finished run amounts to; also written to result.json. Interpreted asks it for its mistakes."""

    out: str
    model_folder: str
    steps: int
    train_images: int
    metrics: dict | None
    images_per_second: float
    peak_memory_bytes: list[int] = field(default_factory=list)  # of each process

    @property
    def report_html(self):
        """Path of the report that the run wrote."""
        return str(RunFolder(self.out).report_html)

    def to_json(self):
        """One line; with the paths of report.md and report.html."""
        reports = {"report": str(RunFolder(self.out).report_md), "report_html": self.report_html}
        return json.dumps(asdict(self) | reports)

    @classmethod
    def from_json(cls, text):
        """The Result that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def train(recipe, config, folder, dataset, settings, model, facts, left_out, stop, state=None):
    """Train to the plan's end, evaluate, save model and report; returns the Result.

    stop  from signals.stop_signals
    """
    device = pick_device(config.device)
    dtype = compute_dtype(device)
    if device.type == "cpu":
        say(keep_freed_memory() if config.memory == "fast" else return_freed_memory())
    plan = settings.plan
    if facts["threads"] != torch.get_num_threads():
        say(f"note: {torch.get_num_threads()} threads here, {facts['threads']} before: equal up to rounding only")
    model.to(device)
    mesh = sharding.mesh(device) if config.parallel == "fsdp" and distributed.ranks() > 1 else None
    optimizer = StandardizedSGD(model, plan.base_lr, dtype=dtype, mesh=mesh, **settings.update)
    if state:
        state.restore(model, optimizer)
    sampler = Sampler(len(dataset.train), plan.batch_size, settings.train, plan.mixup_alpha, config.seed)
    kept = _keep(config, dataset, settings, left_out)
    reduce_dtype = torch.float32 if config.reduce_dtype == "fp32" else None
    data = *kept["train"], facts["micro_batch"], device, config.loader
    trainer = Trainer(optimizer, plan, sampler, *data, reduce_dtype=reduce_dtype)
    trainer.loss, trainer.ema_decay = settings.loss, settings.update["ema_decay"]
    trainer.left_out = left_out.since(dataset.train, "train")

    start = state.step if state else 0
    checkpoints = Checkpoints(folder.checkpoints, asdict(config), start)

    def save(step):
        checkpoints.save(step, model, optimizer, {**facts, "micro_batch": trainer.micro_batch})

    def leave_out(found, step):
        try:
            left_out.add(dataset.train, "train", found, step)
        except DataError:
            save(step)
            raise

    trainer.on_bad = leave_out
    choices = ops_report(device, dtype)
    folder.describe_environment(device, choices, distributed.ranks())
    say(
        f"device: {device}, {dtype}".replace("torch.", "")
        + f", memory {config.memory}, micro-batch {facts['micro_batch']}"
    )
    if distributed.ranks() > 1:
        how = "each with a share of the network" if mesh else "each with the whole network"
        say(f"processes: {distributed.ranks()}, {how}, gradients added in {config.reduce_dtype} dtype")
    for choice in choices:
        say(f"op {choice.op}: {choice.impl} ({choice.why})")

    def interrupted(done):
        checkpoints.wait()
        return Interrupted(
            f"stopped at step {done} of {plan.steps} and saved:"
            f" continue with bitfast {recipe.config.command} --resume --out {folder.path}"
        )

    def asked():
        return distributed.anyone(stop.is_set() or checkpoints.failed)

    def between(step):
        if distributed.anyone(stop.is_set()) if mesh else stop.is_set():
            raise interrupted(step)

    def validate(step):
        with optimizer.averages():
            predictions = evaluate(
                optimizer.network,
                *kept["val"],
                batch_size=trainer.micro_batch,
                device=device,
                engine=config.loader,
                left_out=left_out.since(dataset.val, "val"),
                on_bad=lambda found: left_out.add(dataset.val, "val", found, step),
                between=lambda: between(step),
            )
        checkpoints.rate(step, main_metric, predictions.metrics()[main_metric])
        return predictions

    if is_main() and not folder.train_batch.exists():
        write_train_batch(folder, *kept["train"], sampler, config.loader, trainer.left_out)
    main_metric = "mAP" if dataset.train.multilabel else "top1"
    try:
        with checkpoints, stop.deferred(), tracking(config, folder, start):
            rates = _loop(config, folder, trainer, start, validate if dataset.val else None, save, asked, interrupted)
            predictions = validate(plan.steps) if dataset.val else None
            if predictions:
                folder.announce({"kind": "eval", "step": plan.steps, **predictions.metrics()})
    except NonFiniteLoss as error:
        if is_main():
            error.args = (_non_finite(error, recipe, folder, plan),)
        raise
    with optimizer.averages():
        sharding.gather(model)
        return finish(folder, config, dataset, settings, model, predictions, rates)


def finish(folder, config, dataset, settings, model, predictions, rates):
    """Save a trained model and its report; returns the Result. rates: images/s of the steps done."""
    plan, device = settings.plan, pick_device(config.device)
    metrics = predictions.metrics() if predictions else None
    if is_main():
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
    peaks = distributed.exchange(peak_memory_bytes(device))
    result = Result(
        out=str(folder.path),
        model_folder=str(folder.model),
        steps=plan.steps,
        train_images=len(dataset.train),
        metrics=metrics,
        images_per_second=distributed.first_says(round(float(np.median(rates)), 1) if rates else 0.0),
        peak_memory_bytes=peaks,
    )
    if not is_main():
        return result
    write_report(folder, dataset, predictions)
    write_text(folder.result, result.to_json() + "\n")
    say("peak memory: " + ", ".join(f"{peak / 2**30:.2f}" for peak in peaks) + " GB")
    if metrics:
        main_metric = "mAP" if dataset.train.multilabel else "top1"
        reached = f"validation {main_metric} {metrics[main_metric]:.1%} on {metrics['images']:,} images"
        say(f"{reached}; report {folder.report_html}")
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


def _loop(config, folder, trainer, start, validate, save, asked, interrupted):
    """Train from `start` to the end with evaluations and checkpoints; returns the images/s of the steps done.

    A checkpoint is saved before an evaluation and written during it. An evaluation that a stop or a kill cut short is
    the first thing to be done.
    """
    total = trainer.plan.steps
    eval_every = _eval_every(config, trainer.plan)
    save_every = config.save_every or max(1, total // CHECKPOINTS)

    def due(done):
        return validate and done % eval_every == 0 and 0 < done < total

    def log_evaluation(done):
        folder.log({"kind": "eval", "step": done, **validate(done).metrics()})

    rates = []
    evaluated = any(r["kind"] == "eval" and r["step"] == start for r in folder.records())
    if due(start) and not distributed.first_says(evaluated):
        log_evaluation(start)
    with progress(total) as line:
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
                    "peak_memory_bytes": peak_memory_bytes(trainer.device),
                }
            )
            done = result.step + 1
            stopping = asked() and done < total
            if stopping or due(done) or done % save_every == 0 or done == total:
                save(done)
            if stopping:
                raise interrupted(done)
            if due(done):
                log_evaluation(done)
    return rates


def _non_finite(error, recipe, folder, plan):
    """The error's text with what to do now; the batch's images are listed, the newest checkpoint is from before."""
    facts = {"error": str(error), "step": error.step, "lr": error.lr, "images": error.images}
    write_text(folder.non_finite, json.dumps(facts, indent=1) + "\n")
    last = newest(folder.checkpoints)
    advice = (
        f"go on from the checkpoint after step {last.step} with a lower learning rate: bitfast {recipe.config.command}"
        f" --resume --out {folder.path} --allow-change lr --lr {plan.base_lr / 10:g}"
        if last
        else "no checkpoint was written before it: start anew with a lower --lr"
    )
    return f"{error}: {advice}; all images of the batch are listed in {folder.non_finite}"
