"""`bitfast finetune --processes 2` as a user starts it: what goes wrong in one process ends all, with one message."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.processes import OPTIONS, flags, losses
from photos import write_class_folders

from bitfast import cli
from bitfast.checkpoint import newest

ROOT = Path(__file__).parents[2]
LONG = {**OPTIONS, "steps": 2000, "lr": 0.0003, "eval_every": 0, "save_every": 2000, "processes": 2}
PATIENCE = 60  # a run that hangs fails after so many seconds


class Launched:
    """The command in a process of its own: the launcher, which starts the run's processes."""

    def __init__(self, folder, *arguments, before=(sys.executable, "-m", "bitfast")):
        self.folder, self.log = folder, Path(f"{folder}.log")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with open(self.log, "w") as file:
            self.process = subprocess.Popen(
                [*before, "finetune", *map(str, arguments), "--out", str(folder)],
                env=environment, stdout=file, stderr=file, cwd=ROOT,
            )  # fmt: skip

    def wait_for(self, steps):
        deadline = time.monotonic() + PATIENCE
        while len(losses(self.folder)) < steps:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return self

    def rank(self, number):
        """The process id of the run's process of that number."""
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                parent = int((environ.parent / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and f"\0RANK={number}\0".encode() in environ.read_bytes():
                    return int(environ.parent.name)
            except OSError:
                continue
        raise AssertionError(f"no process {number}: {self.log.read_text()}")

    def end(self):
        """(exit code, what was said)"""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for number in (0, 1):
                os.kill(self.rank(number), signal.SIGKILL)
            self.process.kill()
            raise
        return code, self.log.read_text()


def test_a_killed_process_ends_the_run(photos, tmp_path):
    run = Launched(tmp_path / "run", photos, *flags(**LONG)).wait_for(2)
    os.kill(run.rank(1), signal.SIGKILL)
    code, said = run.end()
    assert code == 1, said
    assert said.count("process 1 was ended by SIGKILL") == 1 and "continue with --resume" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("to", ["launcher", 0, 1], ids=["launcher", "first", "second"])
def test_a_signal_stops_and_resumes(photos, tmp_path, to):
    run = Launched(tmp_path / "run", photos, *flags(**LONG)).wait_for(2)
    os.kill(run.process.pid if to == "launcher" else run.rank(to), signal.SIGTERM)
    code, said = run.end()
    assert code == 75, said
    assert said.count("and saved: continue with bitfast finetune --resume") == 1 and "Traceback" not in said
    stopped = len(losses(tmp_path / "run"))
    assert newest(tmp_path / "run" / "checkpoints").step == stopped
    more = ["--resume", "--steps", str(stopped + 1), "--allow-change", "steps"]
    assert cli.main(["finetune", *more, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_a_signal_to_everyone_is_one_signal(photos, tmp_path):
    """Slurm sends it to each process, and the launcher passes on what it gets."""
    run = Launched(tmp_path / "run", photos, *flags(**LONG)).wait_for(2)
    for process in (run.rank(0), run.rank(1), run.process.pid):
        os.kill(process, signal.SIGTERM)
    code, said = run.end()
    assert code == 75, said
    assert newest(tmp_path / "run" / "checkpoints").step == len(losses(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["processes", "torchrun"])
def test_bad_data_is_said_once(tmp_path, launcher):
    photos = write_class_folders(tmp_path / "fruit")
    (photos / "plum" / "3.png").write_bytes(b"no image")
    options, before = dict(LONG), (sys.executable, "-m", "bitfast")
    if launcher == "torchrun":
        del options["processes"]
        before = (sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2 -m bitfast".split())
    run = Launched(tmp_path / "run", photos, *flags(**options), before=before)
    code, said = run.end()
    assert code == (3 if launcher == "processes" else 1), said
    assert said.count("bitfast: error:") == 1 and "plum/3.png" in said and "--bad-images skip" in said
    assert not (tmp_path / "run").exists()


def test_no_gpu(photos, capsys):
    """A mistake before any process is started."""
    assert cli.main(["finetune", str(photos), "--gpus", "2"]) == 2
    assert "--gpus 2: no GPU is usable here; --processes N runs N processes on the CPU" in capsys.readouterr().err
