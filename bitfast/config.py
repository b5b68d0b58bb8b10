"""Frozen dataclasses that are the Python API, the command line and config.yaml at once."""

import dataclasses
import difflib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args, get_origin, get_type_hints

import tyro

from .errors import UsageError
from .released import canonical, identify
from .variants import VARIANTS, Memory, memory_mode

Positional = tyro.conf.Positional
Flag = tyro.conf.FlagCreatePairsOff


@dataclass(frozen=True, kw_only=True)
class DataFields:
    """How DATA names its parts, where it does not use the usual names."""

    image_field: str | None = None
    """Column, feature or member that holds the image or its path; default the usual names, such as path or image."""
    label_field: str | None = None
    """Column, feature, member or JSON key that holds the label; default the usual names, such as label or class."""
    label_separator: str | None = None
    """Multi-label: what separates several labels in one text, such as '|'."""
    image_root: str | None = None
    """Folder that the paths in a table start from; default the table's own."""
    allow_empty: Flag[bool] = False
    """Go without class folders that hold no images; otherwise such a folder is an error."""


@dataclass(frozen=True, kw_only=True)
class ImageFields:
    """How images are read and prepared."""

    interpolation: Literal["bilinear", "nearest", "bicubic", "lanczos"] = "bilinear"
    """Filter of the resize; antialiased."""
    train_crop: Literal["random", "inception"] = "random"
    """random: resize to a square, then a random window; inception: a random box of the image, as in pretraining."""
    min_area: float = 0.08
    """Inception crop: the smallest share of the image."""
    max_ratio: float = 4 / 3
    """Inception crop: the largest width / height; the smallest is its inverse."""
    test_crop: Literal["none", "center"] = "none"
    """none: the whole test image resized to the crop size; center: short side to the resize size, central window."""
    loader: Literal["auto", "dali", "pillow"] = "auto"
    """Image loader."""
    cache: Literal["auto", "off", "ram"] = "auto"
    """Keep resized images in memory; auto: when a quarter of what is free is enough and images are seen repeatedly."""

    def validate_images(self):
        """Raise UsageError as FinetuneConfig.validate does."""
        if self.min_area is not None and not 0 < self.min_area <= 1:
            raise UsageError(f"--min-area must be above 0 and at most 1, got {self.min_area}")
        if not 1 <= self.max_ratio < float("inf"):
            raise UsageError(f"--max-ratio must be a finite number from 1 on, got {self.max_ratio}")


@dataclass(frozen=True, kw_only=True)
class ProcessFields:
    """How many processes do the work, and how they share it."""

    gpus: Annotated[str | None, tyro.conf.arg(metavar="N|all")] = None
    """Use this many GPUs of this machine, one process each; under torchrun leave it out."""
    processes: int | None = None
    """Start this many processes on this machine, as --gpus does; without a GPU they share the cores."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every process holds the network; fsdp: each holds a share of it, for networks that do not fit."""
    reduce_dtype: Literal["compute", "fp32"] = "compute"
    """Gradients are sent and added in the dtype that they are computed in, or in float32."""

    def validate_processes(self):
        """Raise UsageError as FinetuneConfig.validate does."""
        if self.gpus is not None and self.gpus != "all" and not (self.gpus.isdecimal() and int(self.gpus)):
            raise UsageError(f"--gpus must be a number from 1 on, or all, got {self.gpus}")
        if self.processes is not None and self.processes < 1:
            raise UsageError(f"--processes must be at least 1, got {self.processes}")
        if self.gpus is not None and self.processes is not None:
            raise UsageError("--gpus and --processes exclude each other: drop one of them")
        if self.gpus is not None and self.device == "cpu":
            raise UsageError(f"--gpus {self.gpus} and --device cpu exclude each other: drop one of them")


@dataclass(frozen=True, kw_only=True)
class ReportFields:
    """Where a run's numbers go besides its folder."""

    report_to: str | None = None
    """Send scalars to tensorboard, wandb or tensorboard,wandb too; wandb stays offline unless you are logged in."""

    def validate_report(self):
        """Raise UsageError for an unknown tracker, or one whose package is not installed."""
        for name in trackers(self.report_to):
            package = sys.modules.get(name) or importlib.util.find_spec(name)
            if package is None or getattr(package, "origin", "") is None:  # a folder of that name is no package
                raise UsageError(f"--report-to {name} needs a package that is not here: pip install {TRACKERS[name]}")


@dataclass(frozen=True, kw_only=True)
class RunFields(DataFields, ImageFields, ProcessFields, ReportFields):
    """What every training run can be told, whatever its recipe. `command` is what starts it on the command line."""

    command: ClassVar[str]

    data: Positional[str | None] = None
    """Folder with one sub-folder of images per class, or with train/ and val/ holding those; a .csv or .tsv with path,
    label[, split]; 'shards-{000..012}.tar' (WebDataset) or '*.tfrecord'; or the splits.csv of a run."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "resnet50x1"
    """Network: resnet26x0_5, resnet50x1, resnet101x1, resnet50x3, resnet101x3, resnet152x2 or resnet152x4; or a name of
    released weights, which then are the weights too: BiT-M-R50x1, resnetv2_50x1_bit.goog_in21k (bitfast models)."""
    weights: str | None = None
    """Pretrained weights: a released name (BiT-M-R50x1), a file, a model folder or a run; none: from scratch."""
    out: str | None = None
    """Run folder to create; default runs/DATA-MODEL-TIME."""
    val: str | None = None
    """Validation images, in any form that DATA can have; default DATA's own, else a split of DATA."""
    val_split: float = 0.1
    """Share of each class held out when there are no validation images; 0 for none."""
    steps: int | None = None
    """Optimizer steps; warm-up and decay keep their share of them."""
    epochs: float | None = None
    """The same as passes over the training images; instead of steps."""
    batch_size: Annotated[int | None, tyro.conf.arg(aliases=["-b"])] = None
    """Images per optimizer step, over all micro-batches."""
    lr: float | None = None
    """Base learning rate."""
    resize: int | None = None
    """Side of the square that images are resized to in training, in pixels."""
    crop: Annotated[int | None, tyro.conf.arg(aliases=["--img-size"])] = None
    """Side of the random crop in training, and of the test image, in pixels."""
    no_flip: Flag[bool] = False
    """Never flip: left and right mean something."""
    examples_per_class: int | None = None
    """Few-shot: train on this many images of each class."""
    examples_per_class_seed: int = 0
    """Which images those are."""
    seed: int = 0
    """Seed of the split, the initialization, order, crops, flips and MixUp."""
    micro_batch: int | None = None
    """Images per forward and backward; by default as many as memory takes. Changes nothing but rounding."""
    batch_split: int | None = None
    """The same as parts that a batch is split into; instead of micro-batch."""
    memory: Memory = "fast"
    """What a step keeps for its backward: whatever is fastest, or as little as possible for larger micro-batches."""
    ema: Flag[bool] = False
    """Evaluate and save a moving average of the weights instead of the last ones."""
    ema_decay: float = 0.9999
    """Decay of that average per step; less in the first steps: (1 + step) / (10 + step)."""
    eval_every: int | None = None
    """Steps between evaluations; default a fifth of the steps. 0: only at the end."""
    save_every: int | None = None
    """Steps between checkpoints; default a tenth of the steps."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    bad_images: Literal["error", "skip"] = "error"
    """An image that cannot be read stops the run, or is left out and listed in bad_images.csv."""
    max_pixels: int | None = None
    """Refuse images with more pixels (decompression bombs); default Pillow's limit, 89,478,485."""
    resume: Flag[bool] = False
    """Continue the run in --out, or the newest one in runs/, from its newest checkpoint, with that run's settings."""
    allow_change: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")] = ()
    """With --resume: an option that may have another value from here on, such as lr; once for each."""
    dry_run: Flag[bool] = False
    """Print the plan and stop."""
    config: str | None = None
    """YAML file of these options, such as a run's config.yaml; what is given here overrules it."""

    def validate(self):
        """Raise UsageError, naming value and allowed range, if a value or a combination of values cannot work."""
        named(self)
        memory_mode(self.memory)
        bad_images_policy(self.bad_images)
        choices(self)
        counts = "steps", "batch_size", "resize", "crop", "micro_batch", "examples_per_class", "save_every"
        self.at_least_one(*counts, "batch_split", "max_pixels")
        self.not_negative("lr", "seed", "examples_per_class_seed", "eval_every")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise UsageError(f"--epochs must be a finite number above 0, got {self.epochs}")
        for one, other in (("steps", "epochs"), ("micro_batch", "batch_split")):
            if getattr(self, one) and getattr(self, other):
                raise UsageError(f"{flag(one)} and {flag(other)} exclude each other: drop one of them")
        self.validate_images()
        self.validate_processes()
        self.validate_changes()
        self.validate_report()
        if self.label_separator == "":
            raise UsageError("--label-separator must be at least one character, such as '|', got none")
        if not 0 <= self.val_split < 1:
            raise UsageError(f"--val-split must be from 0 to below 1, got {self.val_split}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"--ema-decay must be from 0 to below 1, got {self.ema_decay}")
        if self.resize and self.crop and self.crop > self.resize:
            raise UsageError(
                f"--crop {self.crop} does not fit into --resize {self.resize}: give --resize {self.crop} or more"
            )

    @property
    def allowed(self):
        """The fields that allow_change names."""
        names = (self.allow_change,) if isinstance(self.allow_change, str) else self.allow_change
        return tuple(name.replace("-", "_") for name in names)

    def validate_changes(self):
        """Raise UsageError if allow_change names no option, or one that a run cannot change."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in INVOCATION]
        for name in self.allowed:
            if name not in names:
                raise UsageError(f"--allow-change {name}: no option has that name{did_you_mean(name, names)}")
            if name in FIXED:
                raise UsageError(f"--allow-change {name}: a run keeps its {name}; start a new run with another --out")

    def at_least_one(self, *names):
        """UsageError unless each of these options is None or at least 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{flag(name)} must be at least 1, got {value}")

    def not_negative(self, *names):
        """UsageError unless each of these options is None or a finite number from 0 on."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"{flag(name)} must be a finite number from 0 on, got {value}")


@dataclass(frozen=True)
class FinetuneConfig(RunFields):
    """Fine-tune a BiT network on a folder of images; what is not given comes from BiT-HyperRule."""

    command: ClassVar[str] = "finetune"

    preset: Literal["code", "paper", "probe"] = "code"
    """HyperRule as in the released code, or as printed in the paper; probe is short for --tune head."""
    tune: Literal["all", "auto", "head", "truncated", "scratch"] = "all"
    """all: every weight, from the pretrained ones; head: a linear head on their features, made once; truncated: a head
    on the features of an earlier stage, the rest cut off; scratch: no pretrained weights; auto: as advise says."""
    stages: int | None = None
    """Truncated: how many stages to keep; default the best by what advise measures."""
    weight_decay: float = 0.0
    """L2 penalty, coupled; the rule uses none."""
    mixup: float | None = None
    """MixUp alpha; 0 for none."""
    no_crop: Flag[bool] = False
    """Never crop: resize straight to the crop size; position means something."""

    def __post_init__(self):
        if self.preset == "probe":
            if self.tune not in ("all", "head"):
                raise UsageError(f"--preset probe and --tune {self.tune} exclude each other: drop one of them")
            object.__setattr__(self, "preset", "code")
            object.__setattr__(self, "tune", "head")

    def validate(self):
        """As RunFields.validate."""
        super().validate()
        self._validate_tune()
        self.not_negative("mixup", "weight_decay")
        if self.no_crop and self.train_crop == "inception":
            raise UsageError("--no-crop and --train-crop inception exclude each other: drop one of them")

    def _validate_tune(self):
        asked = named(self)
        if self.tune in ("head", "truncated"):
            if not asked.weights:
                raise UsageError(
                    f"--tune {self.tune} needs pretrained weights:"
                    " give --weights, such as BiT-M-R50x1, or use --tune scratch"
                )
            given = (field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default)
            unused = next((name for name in given if name in NOT_OF_A_HEAD), None)
            if unused:
                raise UsageError(
                    f"{flag(unused)} has no effect on --tune {self.tune}, which solves for a head: drop it"
                )
        if self.tune == "scratch" and asked.weights:
            raise UsageError(f"--tune scratch and the weights {asked.weights} exclude each other: drop one of them")
        if self.stages is not None and self.tune != "truncated":
            raise UsageError(f"--stages needs --tune truncated, got --tune {self.tune}: add it, or drop --stages")
        most = len(VARIANTS[asked.model][0]) - 1
        if self.stages is not None and not 1 <= self.stages <= most:
            raise UsageError(f"--stages must be from 1 to {most}, got {self.stages}; --tune head keeps all stages")


# Fields of a training in steps, with its crops and backward.
NOT_OF_A_HEAD = (
    *("steps", "batch_size", "lr", "weight_decay", "mixup", "micro_batch", "memory", "eval_every", "save_every"),
    *("epochs", "batch_split", "ema", "ema_decay", "no_flip", "no_crop", "train_crop", "min_area", "max_ratio"),
)


@dataclass(frozen=True)
class PretrainConfig(RunFields):
    """Pretrain a BiT network from scratch with the paper's upstream recipe; every value of it can be given."""

    command: ClassVar[str] = "pretrain"

    recipe: Literal["bit-s", "bit-m", "bit-l", "big-vision"] = "bit-s"
    """The paper's recipe for ILSVRC-2012 (bit-s), ImageNet-21k (bit-m) or JFT (bit-l), or the later one with a cosine
    and clipping."""
    epochs: float | None = None
    """Passes over the images, instead of steps; the decay keeps its share of them. Default 90, bit-l 40."""
    lr: float | None = None
    """Peak learning rate; default 0.03 x batch / 256."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; default 5000, at most a fifth of the run."""
    warmup_share: float | None = None
    """The warm-up as a share of the run, instead of --warmup-steps."""
    weight_decay: float | None = None
    """Default 1e-4, coupled (L2); big-vision 1e-3, decoupled (times the learning rate)."""
    decay_on: Literal["all", "kernels"] | None = None
    """What decays: all parameters, or kernels (of convolutions and head) alone. Default all; big-vision kernels."""
    clip_norm: float | None = None
    """Largest global norm of the gradients; 0 for no clipping. Default none; big-vision 1."""
    loss: Literal["softmax", "sigmoid"] | None = None
    """Softmax, or a sigmoid of each class. Default sigmoid; bit-s softmax. Multi-label data: always sigmoid."""
    head_bias: float | None = None
    """Initial bias of the head. Default 0; big-vision -10, as for many classes with sigmoid."""
    train_crop: Literal["random", "inception"] = "inception"
    """inception: a random box of the image; random: resize to a square, then a random window."""
    min_area: float | None = None
    """Inception crop: the smallest share of the image. Default 0.08; big-vision 0.05."""
    test_crop: Literal["none", "center"] = "center"
    """center: short side to the resize size, central window; none: the whole image resized to the crop size."""
    resize: int | None = None
    """Short side of the test image before its central crop, in pixels; default keeps 256 : 224 to the crop."""
    crop: int | None = None
    """Side of the images that the network sees, in pixels; default 224."""
    val_split: float = 0.01
    """Share of each class held out when there are no validation images; 0 for none."""

    def validate(self):
        """As RunFields.validate."""
        super().validate()
        self.not_negative("weight_decay", "clip_norm", "warmup_steps")
        if self.head_bias is not None and not abs(self.head_bias) < float("inf"):
            raise UsageError(f"--head-bias must be a finite number, got {self.head_bias}")
        if self.warmup_share is not None and not 0 <= self.warmup_share < 1:
            raise UsageError(f"--warmup-share must be from 0 to below 1, got {self.warmup_share}")
        if self.warmup_steps is not None and self.warmup_share is not None:
            raise UsageError("--warmup-steps and --warmup-share exclude each other: drop one of them")


# Fields that belong to one invocation, not to the run it creates or continues.
INVOCATION = ("out", "resume", "allow_change", "dry_run", "config", "gpus", "processes")
BAD_IMAGES = ("error", "skip")
# Fields of the run that --resume may change: none of them changes what a readable image does.
CHANGEABLE = ("bad_images", "max_pixels", "cache", "parallel", "reduce_dtype", "report_to")
# Fields that no resume may change: what they decided is in splits.csv and in the checkpoints.
FIXED = (
    *("data", "val", "val_split", "examples_per_class", "examples_per_class_seed"),
    *("image_field", "label_field", "label_separator", "image_root"),
    *("model", "weights"),
)
TRACKERS = {"tensorboard": "'bitfast[tensorboard]'", "wandb": "wandb"}


def bad_images_policy(name):
    """The name back; UsageError if it is no policy for images that cannot be read."""
    if name not in BAD_IMAGES:
        raise UsageError(f"unknown policy {name!r} for bad images: use one of {', '.join(BAD_IMAGES)}")
    return name


def trackers(report_to):
    """The names in a --report-to; UsageError for one that is not among TRACKERS."""
    names = [name.strip() for name in (report_to or "").split(",") if name.strip()]
    for name in names:
        if name not in TRACKERS:
            close = difflib.get_close_matches(name, TRACKERS, 1)
            hint = f"did you mean {close[0]}?" if close else f"use {' or '.join(TRACKERS)}, or both with a comma"
            raise UsageError(f"--report-to {name!r}: no such tracker; {hint}")
    return tuple(dict.fromkeys(names))


def choices(config):
    """Raise UsageError, listing them, where a field that has choices has another value."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        literal = next((part for part in (kind, *get_args(kind)) if get_origin(part) is Literal), None)
        if literal and value is not None and value not in get_args(literal):
            raise UsageError(f"{flag(name)} {value!r}: it must be one of {', '.join(get_args(literal))}")


def named(config):
    """The config with the network's own name as its model; where that named released weights, with these as weights.

    A repository of the Hub, "hf-hub:OWNER/NAME", is named as the network is: NAME. Weights that are given stay. Raises
    UsageError for an unknown name, and for released weights of another network.
    """
    hub = config.model.startswith("hf-hub:")
    network, released = identify(config.model.rpartition("/")[2].partition("@")[0] if hub else config.model)
    weights = config.weights or (config.model if hub else released)
    of = canonical(weights) and identify(weights)[0]
    if of and of != network and not Path(weights).exists():
        raise UsageError(f"--weights {weights} are of {of}, --model says {config.model}: give --model {of}")
    return dataclasses.replace(config, model=network, weights=weights)


def did_you_mean(name, names):
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"


def flag(name):
    return "--" + name.replace("_", "-")
