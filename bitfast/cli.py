"""The command line. Arguments are parsed before torch is imported, so help and mistakes are answered at once."""

import difflib
import importlib
import io
import json
import os
import re
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import tyro

from . import __version__
from .cli_info import InfoConfig, ModelsConfig, PlanConfig, info, models, plan
from .config import DataFields, FinetuneConfig, Flag, ImageFields, Positional, PretrainConfig, RunFields
from .config_file import load_config
from .errors import BitfastError, DataError, UsageError
from .run import RUNS, to_resume
from .runtime import is_main, keep_freed_memory, pick_device, say
from .tables import show


@dataclass(frozen=True)
class CheckConfig(DataFields):
    """Decode every image and say what is in the data and what is wrong with it; nothing is changed."""

    data: Positional[str]
    """As for finetune: class folders, with or without train/ and val/, a table or shards."""
    val: str | None = None
    """Validation data, if it is not in DATA."""
    bad_images: Literal["error", "skip"] = "error"
    """The policy to judge by: whether unreadable images stop a training."""
    max_pixels: int | None = None
    """Refuse images with more pixels (decompression bombs); default Pillow's limit, 89,478,485."""
    no_cache: Flag[bool] = False
    """Look at every file again, also where size and mtime are as in an earlier scan."""
    json: Flag[bool] = False
    """One line of JSON instead of the table."""


@dataclass(frozen=True)
class AdviseConfig(DataFields, ImageFields):
    """Measure which way of transfer suits the data: a head, a truncated network, or a whole fine-tuning."""

    data: Positional[str]
    """As for finetune."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "resnet50x1"
    """As for finetune."""
    weights: str | None = None
    """Pretrained weights, as for finetune; without them there is nothing to measure."""
    images: int = 2000
    """How many training images to measure on; more where there are over 400 classes."""
    balanced: Flag[bool] = False
    """Every class counts the same, however many images it has."""
    val: str | None = None
    """As for finetune: what validates is not looked at."""
    val_split: float = 0.1
    """As for finetune."""
    examples_per_class: int | None = None
    """As for finetune."""
    examples_per_class_seed: int = 0
    """As for finetune."""
    resize: int | None = None
    """With --test-crop center, the short side in pixels."""
    crop: int | None = None
    """Side of the images in pixels; default the rule's, but no more than 224."""
    seed: int = 0
    """Seed of the split, the sample and the folds."""
    bad_images: Literal["error", "skip"] = "error"
    """As for finetune."""
    max_pixels: int | None = None
    """As for finetune."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    json: Flag[bool] = False
    """One line of JSON instead of the table."""


@dataclass(frozen=True)
class EvalConfig(DataFields):
    """Evaluate a trained model; one JSON line of metrics on stdout."""

    run: Positional[str]
    """Run folder or model folder, hf-hub:OWNER/NAME or a released model."""
    data: Positional[str | None] = None
    """Images to evaluate on, in any form that finetune takes; default the run's own validation images."""
    split: Literal["train", "val", "test"] | None = None
    """Part of DATA, or of the run's own images; default the validation part, or all that DATA has."""
    calibrate: Flag[bool] = False
    """Fit one temperature on these images and keep it in the model folder: predict and exports use it from then on."""
    predictions: Annotated[str | None, tyro.conf.arg(metavar="FILE.csv")] = None
    """Write the prediction of every image, by file name."""
    force: Flag[bool] = False
    """Replace that file if it is there."""
    json: Flag[bool] = False
    """The JSON line alone, without the table on stderr."""
    bad_images: Literal["error", "skip"] = "error"
    """An image that cannot be read is an error, or is left out of the metrics and counted."""
    max_pixels: int | None = None
    """Refuse images with more pixels (decompression bombs); default Pillow's limit, 89,478,485."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 32
    """Images at a time; changes nothing but rounding."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    loader: Literal["auto", "dali", "pillow"] = "auto"
    """Image loader."""


@dataclass(frozen=True)
class PredictConfig:
    """Classify images; a row of CSV or JSON for each as it is done, an unreadable one with its reason."""

    run: Positional[str]
    """Run folder or model folder, hf-hub:OWNER/NAME or a released model."""
    inputs: Positional[tuple[str, ...]]
    """Image files, folders that are searched for them, patterns ('photos/**/*.jpg'), .csv, .tsv or .txt with a column
    of paths, .tar or .tfrecord, or - for paths on stdin, one per line."""
    topk: int | None = None
    """Classes per image, the most probable first; default 1, multi-label: as many as reach the threshold."""
    threshold: float | None = None
    """Name only classes of at least this probability; default 0, multi-label without --topk: 0.5."""
    format: Literal["csv", "jsonl"] = "csv"
    """Output format."""
    output: Annotated[str | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """File for the rows; default stdout."""
    embed: Annotated[str | None, tyro.conf.arg(metavar="FILE.npy")] = None
    """Write the features that the head sees, a row per readable image; FILE.csv beside it lists their paths."""
    sort_into: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Copy each image into the sub-folder of its label; nothing is moved or overwritten."""
    force: Flag[bool] = False
    """Replace the files of --output and --embed if they are there."""
    image_field: str | None = None
    """Column of a table that holds the paths; default the usual names, such as path or image."""
    image_root: str | None = None
    """Folder that the paths in a table start from; default the table's own."""
    max_pixels: int | None = None
    """Refuse images with more pixels (decompression bombs); default Pillow's limit, 89,478,485."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 32
    """Images at a time; changes nothing but rounding."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    loader: Literal["auto", "dali", "pillow"] = "auto"
    """Image loader."""


@dataclass(frozen=True)
class ReportConfig:
    """Write a run's report.md and report.html anew from the files in its folder; one JSON line on stdout."""

    run: Positional[str]
    """Run folder, finished or not."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model as a file that runs without bitfast, checked against it; one JSON line on stdout."""

    run: Positional[str]
    """Run folder or model folder, or hf-hub:OWNER/NAME."""
    format: Literal["onnx", "pt2", "safetensors"] = "onnx"
    """File format: ONNX (opset 21), torch.export, or the folded weights."""
    fp16: Flag[bool] = False
    """Weights and activations in float16; half the size."""
    out: str | None = None
    """Folder to create, or a file with the format's suffix; default RUN/export/FORMAT."""
    push_to_hub: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None
    """Upload the folder to this repository of the Hugging Face Hub."""


@dataclass(frozen=True)
class DemoConfig:
    """Pretrain a small BiT, transfer it to 14 classes of grocery photos, compare with no pretraining. Offline."""

    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder to create; default runs/demo-TIME."""


@dataclass(frozen=True)
class BenchConfig(DataFields, ImageFields):
    """Measure the input on your own images: images/s of reading, decoding, resizing and the whole; JSON on stdout."""

    data: Positional[str]
    """Images, in any form that finetune takes."""
    input_only: Flag[bool] = False
    """Required: the input is what is measured."""
    images: int = 512
    """How many images to measure on."""
    resize: int | None = None
    """As in finetune; default from the rule."""
    crop: int | None = None
    """As in finetune; default from the rule."""
    mixup: float | None = None
    """As in finetune; default from the rule."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the batches go."""


def train(config):
    config.validate()
    result = importlib.import_module(f".recipes.{config.command}", __package__).run(config)
    if not is_main():
        return
    if config.dry_run:
        show(result)
        say("nothing was trained or written; drop --dry-run to start")
    else:
        print(result.to_json())


def check(config):
    from .data.listing import Fields
    from .recipes.check import check

    with _pixel_limit(config):
        report = check(
            config.data,
            val=config.val,
            bad_images=config.bad_images,
            cache=not config.no_cache,
            fields=Fields.of(config),
        )
    print(report.to_json() if config.json else report)
    if report.ok:
        return 0
    more = f" (the first of {len(report.problems)} problems)" if len(report.problems) > 1 else ""
    raise DataError(f"{report.problems[0]}{more}")


def advise(config):
    from .recipes.advise import advise

    options = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "json"}
    if config.images < 1:
        raise UsageError(f"--images must be at least 1, got {config.images}")
    advice = advise(**options)
    print(advice.to_json() if config.json else advice)


def bench(config):
    from .data.listing import Fields
    from .recipes.bench import bench

    if not config.input_only:
        raise UsageError("bench measures the input so far: bitfast bench --input-only DATA")
    if config.images < 1:
        raise UsageError(f"--images must be at least 1, got {config.images}")
    names = ("resize", "crop", "mixup", *(field.name for field in fields(ImageFields)))
    options = {name: getattr(config, name) for name in names}
    report = bench(config.data, count=config.images, device=config.device, fields=Fields.of(config), **options)
    say(str(report))
    print(report.to_json())


def evaluate(config):
    from . import classifier
    from .data.listing import Fields

    with _pixel_limit(config):
        judged = classifier.evaluate(
            config.run,
            config.data,
            split=config.split,
            calibrate=config.calibrate,
            bad_images=config.bad_images,
            fields=Fields.of(config),
            predictions=config.predictions,
            force=config.force,
            **_classifier_options(config),
        )
    for name, value in () if config.json else judged.metrics().items():
        say(f"{name:<18} {value:.4f}" if isinstance(value, float) else f"{name:<18} {value}")
    print(json.dumps(judged.metrics()))


def predict(config):
    _check_predict(config)
    from .classifier import load
    from .data.inputs import image_inputs
    from .data.listing import Fields
    from .files import require_free
    from .predict import CsvRows, JsonRows, predict_inputs

    for path in filter(None, (config.output, config.embed)):
        require_free(path, config.force)
    sources = image_inputs(config.inputs, Fields(image=config.image_field, root=config.image_root))
    classifier = load(config.run, **_classifier_options(config))
    topk = config.topk and min(config.topk, len(classifier.classes_))
    joined = classifier.multilabel and topk is None
    with _pixel_limit(config):
        count, bad, unlabelled = predict_inputs(
            classifier,
            sources,
            JsonRows() if config.format == "jsonl" else CsvRows(topk or 1, joined),
            output=config.output,
            force=config.force,
            embed=config.embed,
            sort_into=config.sort_into,
            topk=topk,
            threshold=config.threshold,
        )
    if bad:
        say(f"{bad:,} of {count:,} images could not be read; their rows say why")
    if unlabelled:
        say(f"{unlabelled:,} of {count:,} images have no label: no class of theirs reaches the threshold")
    return 3 if bad == count else 0


def report(config):
    from .report import render

    html = render(config.run)
    say(f"wrote {html}")
    print(json.dumps({"report": str(html.with_suffix(".md")), "report_html": str(html)}))


def export(config):
    from .exporting import export

    name = config.format + ("-fp16" if config.fp16 else "")
    if config.out is None and not Path(config.run).is_dir():
        raise UsageError(f"{config.run} is no folder here to put the export in: give --out FOLDER")
    out = config.out or Path(config.run) / "export" / name
    options = {"format": config.format, "fp16": config.fp16, "push_to_hub": config.push_to_hub}
    print(export(config.run, out, **options).to_json())


def demo(config):
    from .demo import demo

    demo(config.out)


COMMANDS = {
    "info": (InfoConfig, info),
    "models": (ModelsConfig, models),
    "check": (CheckConfig, check),
    "advise": (AdviseConfig, advise),
    "plan": (PlanConfig, plan),
    "finetune": (FinetuneConfig, train),
    "pretrain": (PretrainConfig, train),
    "bench": (BenchConfig, bench),
    "eval": (EvalConfig, evaluate),
    "predict": (PredictConfig, predict),
    "report": (ReportConfig, report),
    "export": (ExportConfig, export),
    "demo": (DemoConfig, demo),
}


def main(argv=None):
    """Run one command; returns the exit code (see bitfast.errors)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # Read by OpenMP when torch loads: how long idle threads spin before they sleep. Measured by
    # benchmarks.models.bench_idle_threads: 0.9x of the default alone, 3.3x with another training on the same cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(_help())
            return 0 if argv else 2
        if argv[0] == "--version":
            print(f"bitfast {__version__}")
            return 0
        if argv[0] not in COMMANDS:
            close = difflib.get_close_matches(argv[0], COMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(COMMANDS)}"
            raise UsageError(f"unknown command {argv[0]!r}; {hint}")
        _, command = COMMANDS[argv[0]]
        config = _parse(argv[0], argv[1:])
        if isinstance(config, RunFields) and (config.gpus or config.processes):
            config.validate()
            from .distributed import launch, to_launch

            if count := to_launch(config):
                return launch(count, argv)
        return command(config) or 0
    except BitfastError as error:
        say(f"bitfast: error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("bitfast: stopped at once")
        return 130
    except BrokenPipeError:
        sys.stdout = None
        return 1


def _parse(name, arguments):
    cls = COMMANDS[name][0]
    prog = f"bitfast {name}"
    if not issubclass(cls, RunFields):
        return _from_arguments(cls, prog, arguments)
    arguments = _resume_with_value(arguments)
    config = _from_arguments(cls, prog, arguments)
    if config.config:
        saved = load_config(FinetuneConfig if issubclass(cls, FinetuneConfig) else cls, config.config)
        values = {field.name: getattr(saved, field.name) for field in fields(saved)} | {"dry_run": config.dry_run}
        config = _from_arguments(cls, prog, arguments, default=cls(**values))
    if not config.resume:
        return config
    folder = to_resume(name, config.out)
    if folder is None:
        if config.data is None:
            raise UsageError(f"--resume: no run in {config.out or RUNS}; name one: {prog} --resume RUN")
        return config
    saved = replace(load_config(cls, folder.config), out=str(folder.path), resume=True)
    return _from_arguments(cls, prog, [text for text in arguments if text != "--resume"], default=saved)


def _from_arguments(cls, prog, arguments, **options):
    """tyro.cli, but what it reports in a box is a UsageError of one line."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(cls, prog=prog, args=arguments, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│ ") for line in box.getvalue().splitlines()[1:]]  # below the title
    paragraphs = [list(group) for is_text, group in groupby(lines, lambda line: bool(line.strip("─-╰╯"))) if is_text]
    first = " ".join(paragraphs[0]).rstrip(".")
    close = next((text[1] for text in paragraphs if text[0] == "Perhaps you meant:"), None)
    hint = f" (did you mean {re.split(' [{A-Z]', close)[0]}?)" if close else ""
    raise UsageError(f"{first}{hint}: {prog} --help lists the options")


def _resume_with_value(arguments):
    """`--resume RUN` is `--resume --out RUN`; told apart from `--resume DATA` by the config.yaml of a run."""
    if "--resume" in arguments:
        after = arguments.index("--resume") + 1
        if after < len(arguments) and (Path(arguments[after]) / "config.yaml").is_file():
            return [*arguments[:after], "--out", *arguments[after:]]
    return arguments


def _pixel_limit(config):
    from .data.decode import pixel_limit

    if config.max_pixels is not None and config.max_pixels < 1:
        raise UsageError(f"--max-pixels must be at least 1, got {config.max_pixels}")
    return pixel_limit(config.max_pixels)


def _check_predict(config):
    """UsageError on a value that cannot be, before anything is loaded."""
    if config.topk is not None and config.topk < 1:
        raise UsageError(f"--topk must be at least 1, got {config.topk}")
    if config.threshold is not None and not 0 <= config.threshold <= 1:
        raise UsageError(f"--threshold must be from 0 to 1, got {config.threshold}")
    if config.embed is not None and Path(config.embed).suffix != ".npy":
        raise UsageError(f"--embed writes a numpy file: give a name that ends in .npy, not {config.embed}")
    if config.output is not None and config.embed is not None:
        if Path(config.output).absolute() == Path(config.embed).absolute().with_suffix(".csv"):
            raise UsageError(f"--output {config.output} is where --embed lists its paths: choose another name")


def _classifier_options(config):
    """What `classifier.load` takes of a config; the allocator's line of the banner is said."""
    if config.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {config.batch_size}")
    if pick_device(config.device).type == "cpu":
        say(keep_freed_memory())
    return {"device": config.device, "engine": config.loader, "batch_size": config.batch_size}


def _help():
    lines = [f"bitfast {__version__}: Big Transfer, fast and practical", "", "usage: bitfast COMMAND [-h] ...", ""]
    lines += [f"  {name:<10} {cls.__doc__.splitlines()[0]}" for name, (cls, _) in COMMANDS.items()]
    lines += ["", "exit codes: 0 ok, 2 usage, 3 data, 4 out of memory, 75 interrupted and resumable"]
    return "\n".join(lines)
