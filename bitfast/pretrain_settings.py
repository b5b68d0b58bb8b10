"""The settled hyperparameters of one pretraining, each with its origin: recipe, you, or auto."""

from dataclasses import replace

from . import pretrain_rule
from .errors import UsageError
from .settings import LOSSES, Settings, averages, described, given, prepared, sizes, transforms

FEW_STEPS = 1000


def settle(config, n_examples, image_size, multilabel=False):
    """The config's recipe for n_examples, with its explicit values on top.

    A given length keeps the decay at its shares; a given batch size scales the learning rate, unless that is given too;
    a given crop (or resize) alone keeps the recipe's ratio between the two. Multi-label data has the sigmoid loss.
    Raises UsageError if the warm-up does not end before the run, and on a softmax loss for multi-label data.
    """
    upstream = pretrain_rule.RECIPES[config.recipe]
    origin = f'recipe ("{config.recipe}")'
    plan = _plan(config, n_examples)
    resize, resize_origin, crop, crop_origin = sizes(config, plan, origin)
    if crop > resize:
        raise UsageError(f"crop {crop} does not fit into resize {resize}: give --resize {crop} or more")
    plan = replace(plan, resize=resize, crop=crop)

    def settled(name):
        value = getattr(config, name)
        return (getattr(upstream, name), origin) if value is None else (value, "you")

    min_area, area_origin = settled("min_area")
    train, test = transforms(replace(config, min_area=min_area), resize, crop)
    loss, loss_origin = settled("loss")
    if multilabel:
        if config.loss == "softmax":
            raise UsageError("--loss softmax is for one label per image, these have several: drop it")
        loss, loss_origin = "sigmoid", "data"
    weight_decay, decay_origin = settled("weight_decay")
    decay_on, decay_on_origin = settled("decay_on")
    clip_norm, clip_origin = settled("clip_norm")
    head_bias, bias_origin = settled("head_bias")
    coupled = "decoupled, times the lr" if upstream.decoupled else "coupled (L2)"
    inception = config.train_crop == "inception"
    rows = (
        ("recipe", config.recipe, given(config, "recipe")),
        *described(config, n_examples, image_size),
        ("loss", LOSSES[loss], loss_origin),
        *_schedule(config, plan, n_examples, origin),
        ("momentum", "0.9", origin),
        ("weight decay", f"{weight_decay:g}, {coupled}", decay_origin),
        ("decays", "all parameters" if decay_on == "all" else "kernels of convolutions and head", decay_on_origin),
        ("gradient clipping", f"global norm {clip_norm:g}" if clip_norm else "none", clip_origin),
        ("mixup, dropout", "off", origin),
        averages(config),
        ("initialization", "kaiming-normal over fan-out; norms 1 and 0; head 0", "default"),
        ("head bias", f"{head_bias:g}", bias_origin),
        ("train crop", config.train_crop, origin if inception else "you"),
        *((("smallest area", f"{min_area:g}", area_origin),) if inception else ()),
        ("horizontal flip", "off" if config.no_flip else "on", "you" if config.no_flip else origin),
        ("crop", f"{crop} px", crop_origin),
        ("test crop", config.test_crop, given(config, "test_crop")),
        ("resize", f"{resize} px", resize_origin),
        *prepared(config, train, test),
    )
    update = {
        "weight_decay": weight_decay,
        "decoupled": upstream.decoupled,
        "decay_on": decay_on,
        "clip_norm": clip_norm or None,
        "ema_decay": config.ema_decay if config.ema else None,
    }
    notes = _notes(config, plan, n_examples)
    return Settings(plan, train, test, n_examples, tuple(image_size), rows, notes, loss=loss, update=update)


def _notes(config, plan, n_examples):
    if plan.steps >= FEW_STEPS or config.steps is not None or config.batch_size is not None:
        return ()
    return (
        f"{n_examples:,} images are few for batches of {plan.batch_size:,}: the run has {plan.steps:,} steps;"
        " a smaller --batch-size gives more",
    )


def _plan(config, n_examples):
    try:
        return pretrain_rule.plan(
            n_examples,
            config.recipe,
            batch_size=config.batch_size or pretrain_rule.BATCH_SIZE,
            epochs=config.epochs,
            steps=config.steps,
            base_lr=config.lr,
            warmup_steps=config.warmup_steps,
            warmup_share=config.warmup_share,
        )
    except ValueError as error:
        raise UsageError(f"{error}: give other --epochs, --steps, --warmup-steps or --warmup-share") from error


def _schedule(config, plan, n_examples, origin):
    epochs = f"{plan.steps:,} ({plan.steps * plan.batch_size / n_examples:.1f} epochs)"
    scaled = config.steps is not None or config.epochs is not None
    decay_origin = f"{origin}, scaled to your {'steps' if config.steps else 'epochs'}" if scaled else origin
    warmup_origin = origin if plan.warmup == pretrain_rule.WARMUP else "auto, a fifth of the steps"
    if config.warmup_steps is not None or config.warmup_share is not None:
        warmup_origin = "you"
    peak_origin = origin if config.batch_size is None else "auto, 0.03 x your batch / 256"
    yield "steps", epochs, "you" if scaled else origin
    yield "warm-up", f"{plan.warmup:,} steps" if plan.warmup else "none", warmup_origin
    if plan.boundaries is None:
        yield "lr after the warm-up", "cosine to 0", origin
    else:
        yield "lr / 10 at steps", ", ".join(f"{b:,}" for b in plan.boundaries), decay_origin
    yield "batch size", f"{plan.batch_size:,}", origin if config.batch_size is None else "you"
    yield "peak lr", f"{plan.base_lr:g}", peak_origin if config.lr is None else "you"
