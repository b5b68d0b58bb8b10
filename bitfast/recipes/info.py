"""info(): what bitfast finds on this machine, or what a run or model folder holds. Nothing is asked of the network."""

import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata

import torch
import yaml

from .. import __version__
from ..data.loader import chosen_engine, usable_cores
from ..errors import DataError, UsageError
from ..files import cache_folder
from ..folder import model_folder
from ..ops import _cuda
from ..ops import report as ops_report
from ..ops._library import native_isa, native_missing
from ..released import released_names
from ..run import RunFolder
from ..runtime import available_memory_bytes, compute_dtype, pick_device
from ..tables import Table
from ..weights import cached
from .plan import by_implementation

PACKAGES = ("torch", "triton", "numpy", "Pillow", "safetensors", "nvidia-dali-cuda130", "nvidia-dali-cuda120")
EXTRAS = ("matplotlib", "onnx", "onnxruntime", "huggingface_hub", "tensorboard", "scikit-learn", "timm", "transformers")


@dataclass(frozen=True)
class Info:
    """Facts under stable names, and the (name, value) rows that say them. Prints itself as a table."""

    title: str
    facts: dict
    rows: tuple[tuple[str, str], ...]

    def table(self):
        """The Table that it prints."""
        return Table(self.title, self.rows)

    def to_dict(self):
        """JSON-ready."""
        return self.facts

    def to_json(self):
        """One line."""
        return json.dumps(self.facts, ensure_ascii=False)

    def __str__(self):
        return str(self.table())

    def _repr_html_(self):
        return self.table()._repr_html_()


def info(path=None):
    """The Info of this machine, or of a run or model folder.

    Raises  DataError if the folder is neither, or its files cannot be read
    """
    return _machine() if path is None else _folder(path)


def _machine():
    device = pick_device()
    dtype = compute_dtype(device)
    cpu = torch.device("cpu")
    gpus = [_gpu(i) for i in range(torch.cuda.device_count())]
    isa, why_not = _isa()
    total = _total_memory_bytes()
    facts = {
        "bitfast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in (*PACKAGES, *EXTRAS) if (version := _version(name))},
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": {"total": total, "available": available_memory_bytes(cpu)},
        "gpus": gpus,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "native_library": {"loaded": not native_missing(), "isa": isa, "why_not": why_not},
        "cuda_kernels": {"built_for": "" if _cuda.missing() else _cuda.architectures(), "why_not": _cuda.missing()},
        "ops": {choice.op: {"impl": choice.impl, "why": choice.why} for choice in ops_report(device, dtype)},
        "loader": chosen_engine(),
        "cache": str(cache_folder()),
        "weights_present": [name for name in released_names() if cached(name).is_file()],
    }
    return Info(f"bitfast {__version__}", facts, tuple(_machine_rows(facts)))


def _machine_rows(facts):
    memory, native = facts["memory_bytes"], facts["native_library"]
    yield "python", f"{facts['python']} on {facts['platform']}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    absent = [name for name in EXTRAS if name not in facts["packages"]]
    if absent:
        yield "not installed", f"{', '.join(absent)} (optional)"
    yield "CPU", f"{facts['cpu']}, {facts['cores']} usable cores, {facts['threads']} threads"
    yield "memory", f"{memory['available'] / 2**30:.1f} GB free of {memory['total'] / 2**30:.1f} GB"
    for gpu in facts["gpus"]:
        yield "GPU", f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GB, sm_{gpu['capability']}"
    if not facts["gpus"]:
        yield "GPU", _why_no_gpu()
    yield "runs on", f"{facts['device']}, {facts['dtype']}"
    yield "native library", native["why_not"] or f"loaded, kernels for {native['isa']}"
    cuda = facts["cuda_kernels"]
    yield "CUDA kernels", cuda["why_not"] or f"built for {cuda['built_for']}; they run where BITFAST_IMPL asks for them"
    for (impl, why), names in by_implementation(facts["ops"]).items():
        yield f"operators, {impl}", f"{', '.join(names)} ({why})"
    yield "image loader", facts["loader"]
    yield "cache", facts["cache"]
    yield "weights here", ", ".join(facts["weights_present"]) or "none (bitfast models lists what there is)"


def _isa():
    """(instruction set of the native kernels, what is wrong with the library), one of them empty."""
    try:
        return native_isa(), native_missing()
    except UsageError as error:
        return "", str(error)


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name():
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _total_memory_bytes():
    if not hasattr(os, "sysconf"):
        return available_memory_bytes(torch.device("cpu"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu(i):
    properties = torch.cuda.get_device_properties(i)
    capability = f"{properties.major}{properties.minor}"
    return {"name": properties.name, "memory_bytes": properties.total_memory, "capability": capability}


def _why_no_gpu():
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch is built for CPUs"
    return f"none: torch is built for CUDA {torch.version.cuda}, but finds no device or no driver"


def _folder(path):
    model = model_folder(path)
    run = RunFolder(path)
    if model is None and not run.exists:
        raise DataError(f"{path} is neither a run nor a model folder: bitfast info alone describes this machine")
    try:
        return _of_run(run, model) if run.exists else _of_model(path, model)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{path} cannot be read as a run or model folder ({type(error).__name__}: {why})") from error


def _of_model(path, folder):
    facts = _model_facts(folder)
    return Info(f"model {path}", facts, tuple(_model_rows(facts)))


def _model_facts(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = config.get("bitfast", {})
    return {
        "model_folder": str(folder),
        "model": own.get("model", config.get("architecture")),
        "classes": config.get("label_names", []),
        "multilabel": own.get("multilabel", False),
        "input_size": config["pretrained_cfg"]["input_size"],
        "weights_from": own.get("weights"),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "written_by": own.get("version"),
        "metrics": own.get("metrics"),
    }


def _model_rows(facts):
    names = facts["classes"]
    yield "network", str(facts["model"])
    yield "classes", f"{len(names):,}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    yield "images", " x ".join(map(str, facts["input_size"]))
    yield "trained from", facts["weights_from"] or "scratch"
    yield "size", f"{facts['bytes'] / 1e6:.1f} MB"
    for name, value in (facts["metrics"] or {}).items():
        yield name, f"{value:.4f}" if isinstance(value, float) else str(value)


def _of_run(run, folder):
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    done = max((record["step"] + 1 for record in run.records() if record["kind"] == "train"), default=0)
    state = "finished" if run.result.is_file() else "not finished"
    facts = {
        "run": str(run.path),
        "command": config.get("command", "finetune"),
        "state": state,
        "steps_done": done,
        "steps": plan["steps"],
        "data": config["data"],
        "training_images": plan["n_examples"],
        "model": config["model"],
        "weights": config.get("weights"),
        "result": json.loads(run.result.read_text(encoding="utf-8")) if run.result.is_file() else None,
        "trained_model": _model_facts(folder) if folder else None,
    }
    return Info(f"run {run.path}", facts, tuple(_run_rows(facts)))


def _run_rows(facts):
    hint = "" if facts["state"] == "finished" else f" (bitfast {facts['command']} --resume {facts['run']})"
    yield "state", f"{facts['state']}, {facts['steps_done']:,} of {facts['steps']:,} steps{hint}"
    yield "data", f"{facts['data'] or 'Python objects'}, {facts['training_images']:,} training images"
    yield "model", facts["model"]
    yield "weights", facts["weights"] or "none, from scratch"
    if facts["trained_model"]:
        yield from _model_rows(facts["trained_model"])
