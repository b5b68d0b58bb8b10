"""The settled hyperparameters of one run, each with its origin (rule, you, or auto), and those of a fine-tuning."""

import math
from dataclasses import asdict, dataclass, replace

from . import hyperrule
from .data.transform import Transform
from .errors import UsageError
from .tables import Table


@dataclass(frozen=True)
class Settings:
    """A plan, the two transforms, and (name, value, origin) rows that explain them. Prints itself as a table.

    plan    hyperrule.Plan or pretrain_rule.Plan
    loss    "softmax" or "sigmoid"
    update  further arguments of StandardizedSGD
    """

    plan: object
    train: Transform
    test: Transform
    n_examples: int
    image_size: tuple[int, int]
    rows: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]
    loss: str
    update: dict

    def __str__(self):
        return str(Table("plan", self.rows, notes=self.notes))

    def with_micro_batch(self, size, origin):
        """The settings with a row that says how the batch is split."""
        row = ("micro-batch", f"{size}, {-(-self.plan.batch_size // size)} per step", origin)
        return replace(self, rows=(*self.rows, row))

    def with_model_named(self, name):
        """The settings with the name that the model was given by, where that is another one."""
        (label, value, origin), *others = self.rows
        return self if name == value else replace(self, rows=((label, f"{value} ({name})", "you"), *others))

    def to_dict(self):
        """JSON-ready form, written to plan.json."""
        return {
            "n_examples": self.n_examples,
            "image_size": list(self.image_size),
            **asdict(self.plan),
            "settings": [dict(zip(("name", "value", "origin"), row, strict=True)) for row in self.rows],
            "notes": list(self.notes),
        }


def settle(config, n_examples, image_size, multilabel=False):
    """HyperRule for n_examples of image_size (h, w), with the config's explicit values on top.

    A given length stretches the schedule; a given crop (or resize) alone keeps the rule's ratio between the two.
    Raises UsageError if the crop does not fit into the resize.
    """
    rule = hyperrule.plan(n_examples, image_size, config.preset, config.model)
    origin = f'rule ("{config.preset}")'
    plan, schedule_origin = rule, origin
    batch_size = config.batch_size or rule.batch_size
    steps = math.ceil(config.epochs * n_examples / batch_size) if config.epochs else config.steps
    if steps:
        plan, schedule_origin = rule.scaled(steps), f"{origin}, scaled to your {'epochs' if config.epochs else 'steps'}"
    resize, resize_origin, crop, crop_origin = sizes(config, rule, origin)
    if crop > resize and not config.no_crop:
        raise UsageError(f"crop {crop} does not fit into resize {resize}: give --resize {crop} or more")
    plan = replace(
        plan,
        batch_size=batch_size,
        base_lr=rule.base_lr if config.lr is None else config.lr,
        mixup_alpha=rule.mixup_alpha if config.mixup is None else config.mixup,
        resize=resize,
        crop=crop,
    )
    train, test = transforms(config, resize, crop, config.no_crop)

    def chosen(value):
        return origin if value is None else "you"

    epochs = plan.steps * plan.batch_size / n_examples
    rows = (
        *described(config, n_examples, image_size),
        ("loss", LOSSES["sigmoid" if multilabel else "softmax"], "data"),
        ("steps", f"{plan.steps:,} ({epochs:.1f} epochs)", chosen(steps)),
        ("warm-up", f"{plan.warmup:,} steps" if plan.warmup else "none", schedule_origin),
        ("lr / 10 at steps", ", ".join(f"{b:,}" for b in plan.boundaries), schedule_origin),
        ("batch size", str(plan.batch_size), chosen(config.batch_size)),
        ("base lr", f"{plan.base_lr:g}", chosen(config.lr)),
        ("momentum", "0.9", origin),
        ("weight decay", f"{config.weight_decay:g}", "you" if config.weight_decay else origin),
        ("mixup alpha", f"{plan.mixup_alpha:g}" if plan.mixup_alpha else "off", chosen(config.mixup)),
        averages(config),
        ("resize", f"{resize} px", resize_origin),
        ("crop", f"{crop} px", crop_origin),
        ("random crop", *_random_crop(config, origin)),
        ("horizontal flip", "off" if config.no_flip else "on", "you" if config.no_flip else origin),
        ("test crop", config.test_crop, given(config, "test_crop")),
        *prepared(config, train, test),
    )
    return Settings(
        plan,
        train,
        test,
        n_examples,
        tuple(image_size),
        rows,
        _notes(config, rule, n_examples, image_size),
        loss="sigmoid" if multilabel else "softmax",
        update={"weight_decay": config.weight_decay, "ema_decay": config.ema_decay if config.ema else None},
    )


LOSSES = {"softmax": "softmax cross-entropy", "sigmoid": "sigmoid cross-entropy, sum over classes"}


def given(config, name):
    """Origin of an option that has a value by default."""
    return "you" if getattr(config, name) != getattr(type(config)(), name) else "default"


def described(config, n_examples, image_size):
    """The rows that every plan begins with."""
    return (
        ("model", config.model, given(config, "model")),
        ("weights", config.weights or "none, from scratch", "you" if config.weights else "default"),
        ("training images", f"{n_examples:,}, median {image_size[0]} x {image_size[1]} px", "data"),
    )


def averages(config):
    """The row that says whether weights are averaged."""
    value = f"moving, decay {config.ema_decay:g}" if config.ema else "none"
    return "weight average", value, "you" if config.ema else "default"


def prepared(config, train, test):
    """The rows that every plan ends with."""
    return (
        ("interpolation", config.interpolation, given(config, "interpolation")),
        ("cache", config.cache, given(config, "cache")),
        ("memory", config.memory, given(config, "memory")),
        ("train transform", str(train), "from the above"),
        ("test transform", str(test), "from the above"),
    )


def transforms(config, resize, crop, no_crop=False):
    """(train, test) that an ImageFields config asks for, at these sizes in px."""
    how = {"interpolation": config.interpolation}
    if config.train_crop == "inception":
        area, ratio = (config.min_area, 1.0), (1 / config.max_ratio, config.max_ratio)
        train = Transform.pretrain(crop, area, ratio, no_flip=config.no_flip, **how)
    else:
        train = Transform.train(resize, crop, no_crop=no_crop, no_flip=config.no_flip, **how)
    return train, Transform.short_side(resize, crop, **how) if config.test_crop == "center" else Transform.test(
        crop, **how
    )


def _random_crop(config, origin):
    if config.train_crop == "inception":
        return f"Inception, area from {config.min_area:g}, ratio up to {config.max_ratio:.3g}", "you"
    return ("off", "you") if config.no_crop else ("on", origin)


def sizes(config, rule, origin):
    """(resize, its origin, crop, its origin): one that is given keeps the rule's ratio to the other."""
    ratio = f"auto, the rule's {rule.resize} : {rule.crop}"
    resize, crop = config.resize, config.crop
    if resize and crop:
        return resize, "you", crop, "you"
    if crop:
        return round(crop * rule.resize / rule.crop), ratio, crop, "you"
    if resize:
        return resize, "you", max(1, round(resize * rule.crop / rule.resize)), ratio
    return rule.resize, origin, rule.crop, origin


def _notes(config, rule, n_examples, image_size):
    other = "paper" if config.preset == "code" else "code"
    differences = rule.differences(hyperrule.plan(n_examples, image_size, other, config.model))
    return (f"--preset {other} would change {'; '.join(differences)}",) if differences else ()
