"""The plan of a run before it starts: settings, and what they mean for this machine's memory, time and disk."""

import json
import shutil
import time
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from .. import cost
from ..data.loader import images
from ..data.sampler import Sampler
from ..memory import activation_bytes, state_bytes
from ..ops import report as ops_report
from ..runtime import available_memory_bytes, compute_dtype, pick_device, say
from ..settings import Settings
from ..tables import Table
from .loop import evaluations

LONG_SECONDS = 1800  # from here on the plan names cheaper choices
FORWARD = 1 / 3  # of forward and backward
POINTS = 100  # of the learning rate's curve
INPUT_BATCH, INPUT_BATCHES = 32, 4  # that the input is timed on


@dataclass(frozen=True)
class Plan:
    """What a run would do. Prints itself as a table of (name, value, origin), also in notebooks.

    settings  the hyperparameters
    rows      those and the rows of the machine; origins: rule, you, auto, data, default, estimated, measured
    facts     numbers of the latter: command, device, dtype, micro_batch, classes, validation_images, parameters,
              macs_per_image, ops, memory_bytes (activations, weights, available), seconds (step, evaluation, total;
              step_fastest and step_slowest if measured), network_images_per_second, input_images_per_second,
              disk_bytes (model, checkpoints)
    notes     what is worth knowing before the start
    """

    settings: Settings
    rows: tuple[tuple[str, str, str], ...]
    facts: dict
    notes: tuple[str, ...]

    @property
    def lr(self):
        """(step, learning rate) along the schedule: the ends, and a hundred steps between them."""
        plan = self.settings.plan
        steps = sorted({round(i * (plan.steps - 1) / POINTS) for i in range(POINTS + 1)})
        return [(step, plan.lr(step)) for step in steps]

    def table(self):
        """The Table that it prints."""
        return Table("plan", self.rows, ("", "value", "from"), self.notes)

    def to_dict(self):
        """JSON-ready form: that of plan.json, and `facts`, `lr`, `notes`."""
        rows = [dict(zip(("name", "value", "origin"), row, strict=True)) for row in self.rows]
        return {
            **self.settings.to_dict(),
            **self.facts,
            "lr": [list(point) for point in self.lr],
            "settings": rows,
            "notes": list(self.notes),
        }

    def to_json(self):
        """One line."""
        return json.dumps(self.to_dict())

    def __str__(self):
        return str(self.table())

    def _repr_html_(self):
        """Self-contained HTML: the table, and the learning rate by step."""
        return self.table()._repr_html_() + _curve(self.lr)


def make_plan(command, config, dataset, settings, model, micro_batch, weights, measure=False):
    """The Plan of a run of `command` with a model (its shapes are enough, unless steps are measured).

    micro_batch  images per forward and backward
    weights      a note about them, "" for none
    measure      time real steps on random images instead of estimating from a block of each stage
    """
    device = pick_device(config.device)
    dtype = compute_dtype(device)
    plan = settings.plan
    memory = {
        "activations": micro_batch * activation_bytes(model, plan.crop, dtype, device),
        "weights": state_bytes(model, dtype),
        "available": available_memory_bytes(device),
    }
    macs = cost.macs(model, plan.crop)
    ops = {choice.op: {"impl": choice.impl, "why": choice.why} for choice in ops_report(device, dtype)}
    rate = _input_rate(config, dataset.train, settings, device, dtype)
    seconds, network_rate, time_row = _time(config, dataset, plan, model, micro_batch, device, dtype, measure, rate)
    numbers = cost.parameters(model)
    disk = {"model": 4 * numbers, "checkpoints": 3 * 8 * numbers}
    facts = {
        "command": command,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "micro_batch": micro_batch,
        "classes": len(dataset.train.classes),
        "validation_images": len(dataset.val) if dataset.val else 0,
        "parameters": numbers,
        "macs_per_image": macs.total(),
        "ops": ops,
        "memory_bytes": memory,
        "seconds": seconds,
        "network_images_per_second": network_rate,
        "input_images_per_second": rate,
        "disk_bytes": disk,
    }
    rows = (
        ("classes", f"{facts['classes']:,}, head zero-initialized", "data"),
        ("validation images", f"{facts['validation_images']:,}" if dataset.val else "none", "data"),
        ("device", str(device), "auto" if config.device == "auto" else "you"),
        ("precision", f"{facts['dtype']} images and convolutions; weights, norms and sums float32", "auto"),
        *(
            (f"operators, {impl}", ", ".join(names), f"auto, {why}")
            for (impl, why), names in by_implementation(ops).items()
        ),
        ("network", f"{numbers / 1e6:,.2f} M parameters, {macs.total() / 1e9:,.1f} GMACs per image", "from the above"),
        ("memory needed", _memory(memory), "estimated"),
        time_row,
        ("input", f"{rate:,.0f} images/s, the network takes {network_rate:,.1f}", "measured"),
        ("disk", f"{_gb(sum(disk.values()))} at most: model and three checkpoints", "estimated"),
    )
    notes = (*settings.notes, *_warnings(config, facts), *_cheaper(plan, model, seconds))
    return Plan(settings, (*settings.rows, *rows), facts, (weights, *notes) if weights else notes)


def by_implementation(ops):
    """{(implementation, why): [operators]} of {operator: {"impl", "why"}}."""
    chosen = {}
    for op, choice in ops.items():
        chosen.setdefault((choice["impl"], choice["why"]), []).append(op)
    return chosen


def _time(config, dataset, plan, model, micro_batch, device, dtype, measure, input_rate):
    """({"step", "evaluation", "total"}, images/s of the network, the row that says so)."""
    spread = {}
    if measure:
        say("measuring real steps on random images")
        found = cost.measure(model, plan.crop, plan.batch_size, micro_batch, device, dtype)
        step = found.median
        spread = {"step_fastest": found.fastest, "step_slowest": found.slowest}
        origin = f"measured, {found.micro_batches} micro-batches"
        more = f" ({_duration(found.fastest)} to {_duration(found.slowest)})"
    else:
        found = cost.speed(model, plan.crop, micro_batch, device, dtype)
        step = plan.batch_size * found.image_seconds + found.step_seconds
        origin, more = "estimated from one block of each stage", ""
    network_rate = plan.batch_size / step
    images_per_step = plan.batch_size / input_rate
    evaluated = evaluations(config, plan) * len(dataset.val) if dataset.val else 0
    evaluation = evaluated * max(FORWARD / network_rate, 1 / input_rate)
    total = plan.steps * max(step, images_per_step) + evaluation
    seconds = {"step": step, **spread, "evaluation": evaluation, "total": total}
    row = ("time", f"about {_duration(total)}: {plan.steps:,} steps of {_duration(step)}{more}", origin)
    return seconds, network_rate, row


def _input_rate(config, split, settings, device, dtype):
    """Images/s that reading, decoding and resizing give, from the first of a few batches on."""
    size = min(INPUT_BATCH, len(split))
    sampler = Sampler(len(split), size, settings.train, seed=config.seed)
    requests = (sampler.batch(step) for step in range(INPUT_BATCHES))
    stream = images(split, settings.train, requests, engine=config.loader, device=device, dtype=dtype)
    next(stream)
    began = time.perf_counter()
    count = sum(len(batch) for batch in stream)
    return count / (time.perf_counter() - began)


def _cheaper(plan, model, seconds):
    """A line with shorter runs, for a long one."""
    if seconds["total"] < LONG_SECONDS:
        return ()
    choices = []
    small = replace(plan, crop=min(plan.crop, 128))
    short = replace(small, steps=min(plan.steps, 100), batch_size=min(plan.batch_size, 64))
    for shorter in (small, short):
        share = cost.macs(model, shorter.crop).total() / cost.macs(model, plan.crop).total()
        share *= shorter.steps * shorter.batch_size / (plan.steps * plan.batch_size)
        flags = [
            f"--{name.replace('_', '-')} {getattr(shorter, name)}"
            for name in ("crop", "steps", "batch_size")
            if getattr(shorter, name) != getattr(plan, name)
        ]
        if flags:
            choices.append(f"{' '.join(flags)}: about {_duration(seconds['total'] * share)}")
    return (f"shorter, at some cost in accuracy: {'; '.join(choices)}",) if choices else ()


def _warnings(config, facts):
    memory, disk = facts["memory_bytes"], facts["disk_bytes"]
    if facts["input_images_per_second"] < facts["network_images_per_second"]:
        yield (
            "the input is slower than the network, which will wait for images: bitfast bench --input-only"
            f" {config.data or 'DATA'} shows which stage is slow; smaller files or --cache ram help"
        )
    if memory["activations"] + memory["weights"] > memory["available"]:
        yield "this is more memory than is free: give a smaller --micro-batch"
    there = Path(config.out or ".").absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if sum(disk.values()) > free:
        yield f"{_gb(free)} are free in {there}, less than the run may need: give --out on another disk"


def _memory(memory):
    needed = memory["activations"] + memory["weights"]
    return f"{_gb(needed)} of {_gb(memory['available'])} free: activations {_gb(memory['activations'])}"


def _gb(nbytes):
    return f"{nbytes / 2**30:.2f} GB" if nbytes < 2**30 else f"{nbytes / 2**30:,.1f} GB"


def _duration(seconds):
    for limit, unit, name in ((1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min"), (1e6, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if seconds >= 10 * unit else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86400:,.0f} days"


def _curve(points, width=360, height=90):
    """An SVG of the learning rate by step."""
    last, top = max(points[-1][0], 1), max(lr for _, lr in points) or 1.0
    path = " ".join(f"{step / last * width:.1f},{height - lr / top * height:.1f}" for step, lr in points)
    label = escape(f"learning rate, 0 to {top:g}, by step, 0 to {last:,}")
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{label}"><polyline points="{path}" fill="none" stroke="currentColor"/></svg>'
        f"<figcaption>{label}</figcaption></figure>"
    )
