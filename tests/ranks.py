"""Started by torchrun in tests/test_distributed.py: several runs in one process group, some of which go wrong.

    torchrun ... tests/ranks.py JOBS.json     {name: {"options": of finetune, "damage": [step, file], "full": step}}

Each process writes NAME.RANK.json beside JOBS.json: the Result, or the error.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

import bitfast
from bitfast.errors import BitfastError
from bitfast.run import RunFolder
from bitfast.train import Trainer


def damage_after(step, path):
    """Cut the file short when step `step` is logged."""
    log = RunFolder.log

    def logged(self, record):
        if (record["kind"], record["step"]) == ("train", step) and dist.get_rank() == 0:
            Path(path).write_bytes(Path(path).read_bytes()[:-30])
        dist.barrier()
        log(self, record)

    RunFolder.log = logged


def no_memory_at(step):
    """In the second process alone, a step does not fit until the micro-batch is halved."""
    loss = Trainer._loss

    def full(self, x, micro):
        if dist.get_rank() == 1 and micro.step == step and self.micro_batch > 2:
            raise torch.OutOfMemoryError("out of memory")
        return loss(self, x, micro)

    Trainer._loss = full


def run(job):
    log, loss = RunFolder.log, Trainer._loss
    if "damage" in job:
        damage_after(*job["damage"])
    if "full" in job:
        no_memory_at(job["full"])
    try:
        return asdict(bitfast.finetune(**job["options"]))
    except BitfastError as error:
        return {"error": f"{type(error).__name__}: {error}", "exit_code": error.exit_code}
    finally:
        RunFolder.log, Trainer._loss = log, loss


def main(path):
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty with NaN, as in all tests
    if os.environ["WORLD_SIZE"] != "1":
        dist.init_process_group("gloo")
    for name, job in json.loads(path.read_text()).items():
        result = json.dumps(run(job))
        path.with_name(f"{name}.{os.environ['RANK']}.json").write_text(result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
