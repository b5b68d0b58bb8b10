"""bitfast commands in processes of their own that start at once: a server that has imported everything forks them."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from bitfast.run import RunFolder

CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["pytest", "faults.processes", "bitfast.recipes.finetune", "bitfast.cli", "bitfast.data.pillow"]
MODEL = "resnet26x0_5"
OPTIONS = dict(model=MODEL, batch_size=8, resize=36, crop=32, loader="pillow", device="cpu")


def flags(**options):
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


class Run:
    """`bitfast finetune ARGUMENTS` in as many processes as asked for, with torchrun's environment if several.

    fatal  (function, nth): each process kills itself in the nth call of os.<function> in the writing of checkpoints
    """

    def __init__(self, folder, arguments, ranks=1, fatal=None):
        CONTEXT.set_forkserver_preload(PRELOAD)
        self.folder = RunFolder(folder)
        self.log = Path(f"{folder}.log")
        self.log.write_text("")
        environments = [_environment(rank, ranks) for rank in range(ranks)] if ranks > 1 else [{}]
        if ranks > 1:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = str(server.getsockname()[1])
            environments = [{**each, "MASTER_PORT": port} for each in environments]
        arguments = ["finetune", *map(str, arguments)]
        self.processes = [
            CONTEXT.Process(target=_main, args=(arguments, self.log, each, fatal)) for each in environments
        ]
        for process in self.processes:
            process.start()

    def wait_for(self, steps):
        """Until that many steps are logged, by these processes or before."""
        deadline = time.monotonic() + 120
        while "\nop " not in self.log.read_text() or len(losses(self.folder.path)) < steps:
            assert self.processes[0].is_alive(), self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def send(self, number, rank=None):
        for process in self.processes if rank is None else [self.processes[rank]]:
            os.kill(process.pid, number)

    def kill(self):
        self.send(signal.SIGKILL)
        return self.end()

    def end(self):
        """The exit codes."""
        for process in self.processes:
            process.join(120)
        return [process.exitcode for process in self.processes]

    def finish(self):
        assert self.end() == [0] * len(self.processes), self.log.read_text()


def _environment(rank, ranks):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {**{name: str(value) for name, value in names.items()}, "MASTER_ADDR": "127.0.0.1"}


def _main(arguments, log, environment, fatal):
    import torch

    from bitfast.cli import main

    file = open(log, "a")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    _note_images(Path(arguments[arguments.index("--out") + 1]), environment.get("RANK", "0"))
    if fatal:
        _kill_in(*fatal)
    sys.exit(main(arguments))


def _note_images(folder, rank):
    """Write what every step is given to images-RANK.jsonl: its number and the images."""
    from bitfast.train import Trainer

    backward = Trainer._backward

    def noting(self, micros, stream, size):
        images = [int(i) for micro in micros for i in micro.indices]
        with open(folder / f"images-{rank}.jsonl", "a") as file:
            file.write(json.dumps([micros[0].step, images]) + "\n")
        return backward(self, micros, stream, size)

    Trainer._backward = noting


def _kill_in(function, nth):
    real, left = getattr(os, function), [nth]

    def fatal(*arguments, **options):
        left[0] -= threading.current_thread() is not threading.main_thread()
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(os, function, fatal)


def losses(folder):
    return [(r["step"], r["loss"]) for r in RunFolder(folder).records() if r["kind"] == "train"]


def images(folder):
    """{step: its images, in the order of the batch}; what was done twice has to be the same both times."""
    steps = {}
    for path in sorted(Path(folder).glob("images-*.jsonl")):
        own = {}
        for line in path.read_text().splitlines():
            step, found = json.loads(line)
            assert own.setdefault(step, found) == found or path.name != "images-0.jsonl"
            own[step] = found
        for step, found in own.items():
            steps.setdefault(step, []).append(found)
    return steps


def leftovers(folder):
    return [path for path in Path(folder).rglob("*") if path.name.endswith(".tmp")]
