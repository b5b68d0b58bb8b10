"""The folder of one run: created once, locked while in use, continued with --resume, never overwritten."""

import json
import os
import platform
import sys
from contextlib import contextmanager
from pathlib import Path

from .config_file import command_of
from .errors import UsageError
from .files import write_text
from .runtime import is_main

LOCK = ".lock"
RUNS = "runs"


class RunFolder:
    """Paths and log of one run. Only the run's first process writes; in the others the methods that do are silent.

    listeners  called with every record that is logged, and by `announce` with others
    """

    def __init__(self, path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.plan = self.path / "plan.json"
        self.advice = self.path / "advice.json"
        self.splits = self.path / "splits.csv"
        self.bad_images = self.path / "bad_images.csv"
        self.non_finite = self.path / "non_finite.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.result = self.path / "result.json"
        self.report_md = self.path / "report.md"
        self.report_html = self.path / "report.html"
        self.command = self.path / "command.txt"
        self.train_batch = self.path / "samples" / "train_batch.png"
        self.top_losses = self.path / "plots" / "top_losses.png"
        self.listeners = []

    @property
    def exists(self):
        """Whether a run was started here."""
        return self.config.is_file()

    def last_used(self):
        """When the run was started, continued or last logged, in ns since 1970."""
        return max(path.stat().st_mtime_ns for path in (self.config, self.metrics) if path.is_file())

    def check_free(self):
        """UsageError unless the folder is new, empty, or left by a start killed before its config.yaml."""
        if self.path.is_dir() and self._unused({entry.name for entry in self.path.iterdir()}):
            return
        if self.path.exists():
            what = "holds a run" if self.exists else "is not empty" if self.path.is_dir() else "is a file"
            hint = f"continue it with --resume --out {self.path}, or choose" if self.exists else "choose"
            raise UsageError(f"output folder in use: {self.path} {what}; {hint} another --out")

    def _unused(self, names):
        if LOCK not in names:
            return not names
        return all(
            n in (LOCK, self.splits.name, self.plan.name, self.advice.name, self.bad_images.name) or n.endswith(".tmp")
            for n in names
        )

    @contextmanager
    def locked(self):
        """Hold the folder's lock; UsageError if another process does. Released by the system when a process dies."""
        if not is_main():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if os.name != "posix":
            yield
            return
        import fcntl

        with open(self.path / LOCK, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"output folder in use: another process is running in {self.path};"
                    " wait for it or choose another --out"
                ) from None
            yield

    def log(self, record):
        """Append one JSON line to metrics.jsonl."""
        if is_main():
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.announce(record)

    def announce(self, record):
        """Tell the listeners of a record that metrics.jsonl does not hold."""
        for listener in self.listeners:
            listener(record)

    def records(self):
        """All records of metrics.jsonl; a last line cut short by a kill is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def rewind(self, step):
        """Drop records of work after `step` optimizer steps: the run is about to do it again."""
        if not is_main():
            return
        kept = [r for r in self.records() if (r["step"] < step if r["kind"] == "train" else r["step"] <= step)]
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def describe_environment(self, device, ops, processes=1):
        """Write env.json: versions, machine, processes, command, and the implementations (ops.report) that run."""
        if not is_main():
            return
        import torch

        from . import __version__

        facts = {
            "bitfast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
            "threads": torch.get_num_threads(),
            "processes": processes,
            "command": sys.argv,
            "ops": [choice._asdict() for choice in ops],
        }
        write_text(self.path / "env.json", json.dumps(facts, indent=2) + "\n")


def to_resume(command, out=None):
    """The RunFolder that --resume means: that at `out`, else this command's latest in runs/; None if there is none."""
    if out is not None:
        folders = [RunFolder(out)]
    else:
        paths = [path.parent for path in Path(RUNS).glob("*/config.yaml")]
        folders = [RunFolder(path) for path in paths if command_of(path / "config.yaml") == command]
    return max((folder for folder in folders if folder.exists), key=RunFolder.last_used, default=None)
