"""Training state on disk: raw float32 weights, momentum, averages, the step and the config; one folder per checkpoint.

    checkpoints/step-00000040/shard-*.safetensors   the tensors: every process writes its own part
                              manifest.json         step, facts, config; size and SHA-256 of each file, and its own
                              metric.json           top1 or mAP of the evaluation after this step, if there was one

A run is a pure function of (seed, step), so the step is all there is to know beyond weights and momentum.
torch.distributed.checkpoint writes and reads the shards (in safetensors: its own format has a pickle), so any number of
processes continues what any other number has written. A folder is written aside, flushed and renamed.
"""

import hashlib
import json
import math
import os
import re
import shutil
import threading
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.futures import Future

from .distributed import rank
from .errors import BitfastError, DataError
from .files import flush_folder, write_text
from .runtime import say
from .sharding import local, share_of

KEEP = 2
NAME = re.compile(r"step-(\d{8})(\.safetensors)?")
MANIFEST, METRIC = "manifest.json", "metric.json"
# Part of a checkpoint: key in the optimizer's state of a parameter.
STATE = {"momentum": "momentum_buffer", "average": "average"}


class CheckpointError(BitfastError):
    """A checkpoint could not be written; those before it are untouched."""


class Checkpoints:
    """Writes the checkpoints of a run, in the background, one at a time: `save` waits for the one before.

    Kept are the newest two and the best by `rate`. With several processes all of them make one and call the same
    methods in the same order. As a context manager it waits, when it is left, until what was saved is on disk.

    folder  where they are; what a killed run left half-written there is removed
    config  JSON-ready dict, written into every checkpoint
    start   the step that the run begins at: it needs no saving
    """

    def __init__(self, folder, config, start=0):
        self.folder, self._config, self._saved = Path(folder), config, start
        self._thread = self._error = None
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".*.tmp"):
                _delete(leftover)
        self._group = None if _alone() else dist.new_group(backend="gloo")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):
            self._join()
            if self._error:
                say(f"note: {self._failure()}")

    def save(self, step, model, optimizer, facts):
        """Copy the state after `step` optimizer steps to host memory, and write it in the background.

        facts  small dict of what else has to be the same for a bit-equal continuation (micro-batch, threads, epsilon)

        Raises CheckpointError if the checkpoint before could not be written.
        """
        self.wait()
        if step == self._saved:
            return
        self._saved = step
        staged = BlockingAsyncStager().stage(_tensors(model, optimizer))
        self._thread = threading.Thread(target=self._write, args=(step, staged, facts), daemon=True)
        self._thread.start()

    @property
    def failed(self):
        """Whether the last write has failed; the next `wait` or `save` says how."""
        return self._error is not None

    def wait(self):
        """Return when all that was saved is on disk; CheckpointError if it could not be written."""
        self._join()
        if self._error:
            raise CheckpointError(self._failure()) from self._error

    def rate(self, step, metric, value):
        """Note what the evaluation after `step` gave, the higher the better: the best checkpoint is kept."""
        self.wait()
        path = self.folder / _name(step)
        if rank() == 0 and path.is_dir() and math.isfinite(value):
            write_text(path / METRIC, json.dumps({"metric": metric, "value": value}) + "\n")
            self._prune(step)

    def _join(self):
        if self._thread:
            self._thread.join()
            self._thread = None

    def _write(self, step, tensors, facts):
        aside = self.folder / f".{_name(step)}.tmp"
        manifest = {"step": step, "facts": facts, "config": self._config}
        try:
            writer = _Writer(aside, self.folder / _name(step), tensors, manifest)
            dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=_alone())
            if rank() == 0:
                self._prune(step)
        except (Exception, dcp.CheckpointException) as error:  # raised by wait(), in the thread of the run
            self._error = error
            if rank() == 0:
                _delete(aside)

    def _failure(self):
        return (
            f"checkpoint after step {self._saved} could not be written to {self.folder}"
            f" ({_why(self._error)}): those before it are untouched;"
            " make room or access there, then continue with --resume"
        )

    def _prune(self, step):
        """Remove all but the newest up to `step` and the best; newer ones are of work that is being done again."""
        paths = _newest_first(self.folder)
        done = [path for path in paths if _step(path) <= step]
        rated = [path for path in done if _value(path) is not None]
        keep = [*done[:KEEP], *sorted(rated, key=lambda path: (_value(path), _step(path)))[-1:]]
        for path in paths:
            if path not in keep:
                _remove(path)


class _Writer(dcp.HuggingFaceStorageWriter):
    """Writes shards aside; when all processes have, the first adds the manifest and gives the folder its name."""

    def __init__(self, aside, path, tensors, manifest):
        super().__init__(str(aside), save_distributed=True)
        self._aside, self._path, self._tensors, self._manifest = aside, path, tensors, manifest

    def write_data(self, plan, planner):
        for name, tensor in self._tensors.items():
            if not bool(torch.isfinite(local(tensor)).all()):
                raise ValueError(f"{name} is not finite")
        results = super().write_data(plan, planner).value()
        prints = {name: _print_of(self._aside / name) for name in {r.storage_data.relative_path for r in results}}
        done = Future()
        done.set_result([replace(r, storage_data=prints[r.storage_data.relative_path]) for r in results])
        return done

    def finish(self, metadata, results):
        files = {r.storage_data["name"]: r.storage_data for part in results for r in part}
        manifest = {**self._manifest, "files": list(files.values())}
        write_text(self._aside / MANIFEST, json.dumps({**manifest, "sha256": _digest_of(manifest)}, indent=1) + "\n")
        if self._path.exists():
            _remove(self._path)
        os.replace(self._aside, self._path)
        flush_folder(self._path.parent)


@dataclass(frozen=True)
class State:
    """A whole checkpoint on disk: optimizer steps done, and the facts saved with it."""

    step: int
    facts: dict
    path: Path

    @torch.no_grad()
    def restore(self, model, optimizer):
        """Put weights, momentum and averages into a model and the StandardizedSGD made for it, sharded or not."""
        if self.path.is_dir():
            reader = dcp.HuggingFaceStorageReader(str(self.path))
            _allocate(model, optimizer, reader.read_metadata().state_dict_metadata)
            try:
                dcp.load(_tensors(model, optimizer), storage_reader=reader, no_dist=_alone())
            except dcp.CheckpointException as error:  # no Exception: it would pass every handler of those
                raise DataError(
                    f"{self.path} does not fit this network ({_why(error)}): it is of another model or version"
                ) from error
        else:
            saved = load_file(self.path)
            _allocate(model, optimizer, saved)
            for name, tensor in _tensors(model, optimizer).items():
                tensor.copy_(share_of(saved[name], tensor))
        optimizer.refresh()


def newest(folder):
    """The State of the newest whole checkpoint, or None if there is none; also of the single files of earlier versions.

    A damaged newest one is named and the one before is used. DataError if there are some but none is whole.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return _checked(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            say(f"checkpoint {path} is damaged ({error}): trying the one before")
    if paths:
        raise DataError(
            f"no checkpoint in {folder} can be read ({len(paths)} damaged): start a new run with another --out"
        )
    return None


def _checked(path):
    """The State of a checkpoint all of whose bytes were read and are as they were written."""
    if path.is_file():
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            for key in file.keys():
                file.get_tensor(key)
        return State(int(metadata["step"]), json.loads(metadata["facts"]), path)
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest.pop("sha256") != _digest_of(manifest) or manifest["step"] != _step(path):
        raise ValueError(f"{MANIFEST} is not as it was written")
    for expected in manifest["files"]:
        name = expected["name"]
        found = (path / name).stat().st_size
        if found != expected["bytes"]:
            raise ValueError(f"{name} has {found:,} bytes of {expected['bytes']:,}")
        if _print_of(path / name) != expected:
            raise ValueError(f"{name} has another SHA-256 than when it was written")
    return State(manifest["step"], manifest["facts"], path)


def _why(error):
    """The first cause, in one line; a CheckpointException holds one for each process that failed."""
    failures = getattr(error, "failures", {})
    cause = next((failure for failure, _ in failures.values()), error)
    return " ".join(f"{type(cause).__name__}: {cause}".split())


def _tensors(model, optimizer):
    """{name in the checkpoint: tensor} of everything there is to save, or to read into."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{part}.{name}": state[key] for part, key in STATE.items() if key in state}
    return tensors


def _allocate(model, optimizer, names):
    """Make the optimizer's state of those of `names` that are not there yet."""
    for name, parameter in model.named_parameters():
        for part, key in STATE.items():
            if f"{part}.{name}" in names and key not in optimizer.state[parameter]:
                optimizer.state[parameter][key] = torch.zeros_like(parameter)


def _alone():
    """Whether the run is one process; torch's note about that, on every save and load, is not shown."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    return not dist.is_initialized()


def _print_of(path):
    with open(path, "rb") as file:
        return {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _digest_of(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _name(step):
    return f"step-{step:08d}"


def _step(path):
    return int(NAME.fullmatch(path.name)[1])


def _value(path):
    """What the evaluation after a checkpoint's step gave; None if there was none, or the file is damaged."""
    try:
        return float(json.loads((path / METRIC).read_text(encoding="utf-8"))["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _newest_first(folder):
    paths = (path for path in Path(folder).glob("step-*") if NAME.fullmatch(path.name))
    return sorted(paths, key=lambda path: path.name, reverse=True)


def _remove(path):
    """Delete a checkpoint so that a kill leaves it whole or out of the way."""
    aside = path.with_name(f".{path.name}.old.tmp")
    os.replace(path, aside)
    _delete(aside)


def _delete(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
