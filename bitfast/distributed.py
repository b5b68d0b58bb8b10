"""The processes of one run: how they are started, how they meet, and what they agree on.

torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...) is the only contract, so Slurm, Kubernetes and a
shell start the same program. Without it, or with one process, everything here is the identity.
"""

import itertools
import logging
import os
import signal
import sys
import tempfile
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist

from .errors import BadImages, BitfastError, Interrupted, UsageError
from .runtime import in_group, is_main, local_processes, pick_device

# The first process may decode millions of images while the others wait. One that ends is noticed at once: its
# connections close, and the launcher ends the others.
TIMEOUT = timedelta(days=1)
# What the launcher gives a run to finish its step and save after a signal, in seconds.
SHUTDOWN_SECONDS = 600
# How long the other processes wait for the first to part.
PARTING = timedelta(minutes=1)
_RUNS = itertools.count()
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL communicator was aborted")


class ProcessLost(BitfastError):
    """Another process of the run ended without a word to this one."""


def rank():
    """This process's number in the run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks():
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(config):
    """Meet the other processes of the run, NCCL between GPUs and Gloo between CPUs; part when the run ends.

    A group that exists already is used and left alone. An error that is this process's `alone` is printed here: the
    first process, which speaks for all, knows nothing of it.
    Raises  UsageError if the config asks for other processes than there are; ProcessLost when another one ended
    """
    _check(config)
    store = _join(pick_device(config.device)) if in_group() and not dist.is_initialized() else None
    together = True
    try:
        yield
    except BitfastError as error:
        together = not getattr(error, "alone", False)
        if rank() and not together:
            print(f"bitfast: error in process {rank()}: {error}", file=sys.stderr, flush=True)
        raise
    except Exception as error:
        together = False
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST):
            raise ProcessLost("another process of this run ended: its own message, if any, says why") from error
        raise
    finally:
        if store:
            _part(store, together)


def _check(config):
    if is_main() != (rank() == 0) and dist.is_initialized():
        raise UsageError(
            "there is a process group, but RANK and WORLD_SIZE are not set: start the script with torchrun"
        )
    option = _option(config)
    if not option:
        return
    name, value = option
    if not in_group():
        raise UsageError(
            f"{name} {value}: a call from Python cannot start processes: use bitfast {config.command} {name} {value},"
            f" or run your script with torchrun --nproc-per-node {value} SCRIPT.py without it"
        )
    if name == "--processes" and value != local_processes():
        raise UsageError(f"{name} {value} under a launcher that started {local_processes()} here: drop {name}")


def _join(device):
    """Become part of the process group; returns the store through which its processes found each other."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"RANK and WORLD_SIZE are set, but {' and '.join(missing)} not: start the run with torchrun")
    backend = "gloo"
    if device.type == "cuda":
        if device.index >= torch.cuda.device_count():
            raise UsageError(
                f"process {device.index} of this machine has no GPU of its own, there are {torch.cuda.device_count()}:"
                f" use --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    store = dist.PrefixStore(f"bitfast-{next(_RUNS)}", _store())
    number, total = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group(backend, store=store, rank=number, world_size=total, timeout=TIMEOUT)
    return store


@cache
def _store():
    """The one store of this process, however many runs it does: another would be found where this one was."""
    return next(dist.rendezvous("env://"))[0]


def _part(store, together):
    """Leave the group; after what ended all of them `together`, the first process goes first.

    A launcher ends all processes as soon as one has failed: the first could not say why, or finish a file.
    """
    try:
        if rank() == 0:
            store.set("parted", "yes")
        elif together:
            store.wait(["parted"], PARTING)
    except RuntimeError:  # the store went with its process: nobody is left to wait for
        pass
    dist.destroy_process_group()


def exchange(value):
    """[value of process 0, value of process 1, ...] on all of them; any small object."""
    if ranks() == 1:
        return [value]
    values = [None] * ranks()
    dist.all_gather_object(values, value)
    return values


def first_says(value):
    """The value that the first process has, on all of them."""
    return exchange(value if rank() == 0 else None)[0]


def settled(value, error=None):
    """exchange(value), unless a process passes an error: the first one's is then raised in all of them.

    The others get a BitfastError as it is, any other error as a BitfastError that names its process.
    """
    both = exchange((value, None if error is None else _portable(error)))
    for number, (_, found) in enumerate(both):
        if found is None:
            continue
        if number != rank():
            kind, message, more = found
            error = kind.__new__(kind)
            error.args = (message,)
            vars(error).update(more)
        raise error
    return [value for value, _ in both]


def _portable(error):
    if isinstance(error, BitfastError):
        return type(error), str(error), vars(error)
    return BitfastError, f"process {rank()} failed: {type(error).__name__}: {error}", {}


def together(work):
    """work() in every process; an error in one is raised in all, so that none waits for it. work must not communicate.

    The first process of each machine goes before its others: what it leaves in a cache is there for them.
    """
    result = None
    for turn in (True, False):
        error = None
        if turn == (int(os.environ.get("LOCAL_RANK", "0")) == 0):
            try:
                result = work()
            except Exception as failure:  # raised below, in all processes
                error = failure
        settled(None, error)
        if ranks() == 1:
            break
    return result


def anyone(flag):
    """Whether the flag is true in any process."""
    return any(exchange(flag))


def in_lockstep(batches, count, empty):
    """As many batches as the other processes have: the `count` of the one with most, the last of them `empty`.

    A network whose forward gathers weights waits for all processes. So unreadable images are raised after that many.
    """
    failure = None
    for _ in range(count):
        batch = empty
        try:
            batch = empty if failure else next(batches, empty)
        except BadImages as error:
            failure = error
        yield batch
    if failure:
        raise failure


def part_of(n):
    """The (start, stop) of this process's share of n things in order; shares are as even as can be."""
    return n * rank() // ranks(), n * (rank() + 1) // ranks()


def largest_part(batch_size, paired):
    """Images in the largest share of a batch, MixUp pairs kept whole. UsageError if a process would get none."""
    unit = 2 if paired else 1
    units = -(-batch_size // unit)
    if units < ranks():
        what = "MixUp pairs" if paired else "images"
        raise UsageError(
            f"a batch of {units} {what} is too small for {ranks()} processes: use a larger --batch-size or fewer"
        )
    return -(-units // ranks()) * unit


def to_launch(config):
    """How many processes the command line is to start for this config; 0 under a launcher, or if it asks for none.

    Raises  UsageError if there are no such GPUs
    """
    option = _option(config)
    if not option or in_group():
        return 0
    name, value = option
    if name == "--processes":
        return value
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UsageError(f"{name} {value}: no GPU is usable here; --processes N runs N processes on the CPU")
    if value != "all" and int(value) > count:
        raise UsageError(f"{name} {value}: this machine has {count}; use --gpus all, or torchrun on several machines")
    return count if value == "all" else int(value)


def _option(config):
    """(flag, value) of what the config asks for; None for one process."""
    if config.gpus is not None:
        return "--gpus", config.gpus
    return ("--processes", config.processes) if config.processes is not None else None


def launch(processes, arguments):
    """Run `bitfast ARGUMENTS` in that many processes of this machine, by torchrun's agent; returns the exit code.

    On a CPU the processes share its cores. A signal goes to all of them, and they are waited for. The exit code is that
    of the process that failed on its own account, 75 after a signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    with tempfile.TemporaryDirectory(prefix="bitfast-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="bitfast",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            shutdown_timeout=SHUTDOWN_SECONDS,
            signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        )
        try:
            elastic_launch(config, sys.executable)("-m", "bitfast", *arguments)
        except SignalException:
            return Interrupted.exit_code
        except ChildFailedError as error:
            return _exit_code({number: failure.exitcode for number, failure in error.failures.items()})
    return 0


def _exit_code(codes):
    """Of {process: exit code} the one that says why. A process killed by a signal is named: it could not speak."""
    own = {number: code for number, code in codes.items() if code not in (ProcessLost.exit_code, -signal.SIGTERM)}
    number, code = next(iter((own or codes).items()))
    if code >= 0:
        return code
    print(
        f"bitfast: error: process {number} was ended by {signal.Signals(-code).name}:"
        " if memory was short, use a smaller --micro-batch; continue with --resume",
        file=sys.stderr,
    )
    return 1
