"""The settled hyperparameters of one fine-tuning run, each with its origin: rule, you, or auto."""

import math
from dataclasses import asdict, dataclass, replace

from . import hyperrule
from .config import FinetuneConfig
from .data.transform import Transform
from .errors import UsageError
from .tables import Table


@dataclass(frozen=True)
class Settings:
    """A plan, the two transforms, and (name, value, origin) rows that explain them. Prints itself as a table."""

    plan: hyperrule.Plan
    train: Transform
    test: Transform
    n_examples: int
    image_size: tuple[int, int]
    rows: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]

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
    resize, resize_origin, crop, crop_origin = _sizes(config, rule, origin)
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
    train, test = _transforms(config, resize, crop)

    def chosen(value):
        return origin if value is None else "you"

    def given(name):
        return "you" if getattr(config, name) != getattr(FinetuneConfig(), name) else "default"

    epochs = plan.steps * plan.batch_size / n_examples
    rows = (
        ("model", config.model, given("model")),
        ("weights", config.weights or "none, from scratch", "you" if config.weights else "default"),
        ("training images", f"{n_examples:,}, median {image_size[0]} x {image_size[1]} px", "data"),
        ("loss", "sigmoid cross-entropy, sum over classes" if multilabel else "softmax cross-entropy", "data"),
        ("steps", f"{plan.steps:,} ({epochs:.1f} epochs)", chosen(steps)),
        ("warm-up", f"{plan.warmup:,} steps" if plan.warmup else "none", schedule_origin),
        ("lr / 10 at steps", ", ".join(f"{b:,}" for b in plan.boundaries), schedule_origin),
        ("batch size", str(plan.batch_size), chosen(config.batch_size)),
        ("base lr", f"{plan.base_lr:g}", chosen(config.lr)),
        ("momentum", "0.9", origin),
        ("weight decay", f"{config.weight_decay:g}", "you" if config.weight_decay else origin),
        ("mixup alpha", f"{plan.mixup_alpha:g}" if plan.mixup_alpha else "off", chosen(config.mixup)),
        ("resize", f"{resize} px", resize_origin),
        ("crop", f"{crop} px", crop_origin),
        ("random crop", *_random_crop(config, origin)),
        ("horizontal flip", "off" if config.no_flip else "on", "you" if config.no_flip else origin),
        ("test crop", config.test_crop, given("test_crop")),
        ("interpolation", config.interpolation, given("interpolation")),
        ("cache", config.cache, given("cache")),
        ("memory", config.memory, given("memory")),
        ("train transform", str(train), "from the above"),
        ("test transform", str(test), "from the above"),
    )
    return Settings(
        plan, train, test, n_examples, tuple(image_size), rows, _notes(config, rule, n_examples, image_size)
    )


def _transforms(config, resize, crop):
    """(train, test)."""
    how = {"interpolation": config.interpolation}
    if config.train_crop == "inception":
        area, ratio = (config.min_area, 1.0), (1 / config.max_ratio, config.max_ratio)
        train = Transform.pretrain(crop, area, ratio, no_flip=config.no_flip, **how)
    else:
        train = Transform.train(resize, crop, no_crop=config.no_crop, no_flip=config.no_flip, **how)
    return train, Transform.short_side(resize, crop, **how) if config.test_crop == "center" else Transform.test(
        crop, **how
    )


def _random_crop(config, origin):
    if config.train_crop == "inception":
        return f"Inception, area from {config.min_area:g}, ratio up to {config.max_ratio:.3g}", "you"
    return ("off", "you") if config.no_crop else ("on", origin)


def _sizes(config, rule, origin):
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
