"""Started by torchrun in tests/test_distributed.py: several runs in one process group, some of which go wrong.

    torchrun ... tests/ranks.py JOBS.json [apart]

JOBS.json is {name: {"options": {...}, "call": "finetune" or "pretrain", and what goes wrong: "damage": [step, file],
"full": step, "broken": step}}. The runs share one process group, or `apart` each meet in their own. A process writes
NAME.RANK.json beside JOBS.json: the Result, or the error, and the bytes that it kept between steps.
"""

import json
import os
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import bitfast
from bitfast.errors import BitfastError
from bitfast.run import RunFolder
from bitfast.sharding import local
from bitfast.train import Trainer

# A process that waits for others fails after so long.
TIMEOUT = timedelta(seconds=50)


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


def broken_at(step):
    """In the second process alone, a step has a mistake of ours."""
    loss = Trainer._loss

    def broken(self, x, micro):
        if dist.get_rank() == 1 and micro.step == step:
            raise RuntimeError("a mistake")
        return loss(self, x, micro)

    Trainer._loss = broken


def note_kept_bytes(kept):
    """Put into kept["bytes"] what this process has of weights, folded weights, gradients and momentum."""
    step = Trainer._step

    def noting(self, *arguments):
        result = step(self, *arguments)
        optimizer = self.optimizer
        parameters = {*optimizer.network.parameters(), *(p for g in optimizer.param_groups for p in g["params"])}
        tensors = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
        tensors += [tensor for state in optimizer.state.values() for tensor in state.values()]
        kept["bytes"] = sum(local(tensor).nbytes for tensor in tensors)
        return result

    Trainer._step = noting


def run(job):
    before, kept = (RunFolder.log, Trainer._loss, Trainer._step), {}
    note_kept_bytes(kept)
    if "damage" in job:
        damage_after(*job["damage"])
    if "full" in job:
        no_memory_at(job["full"])
    if "broken" in job:
        broken_at(job["broken"])
    try:
        result = asdict(getattr(bitfast, job.get("call", "finetune"))(**job["options"]))
        return {**result, "kept_bytes": kept.get("bytes")}
    except BitfastError as error:
        return {"error": f"{type(error).__name__}: {error}", "exit_code": error.exit_code}
    except RuntimeError as error:
        return {"error": f"{type(error).__name__}: {error}", "exit_code": None}
    finally:
        RunFolder.log, Trainer._loss, Trainer._step = before


def main(path, apart):
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty with NaN, as in all tests
    if not apart:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    for name, job in json.loads(path.read_text()).items():
        result = json.dumps(run(job))
        path.with_name(f"{name}.{os.environ['RANK']}.json").write_text(result)
    if not apart:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["apart"])
