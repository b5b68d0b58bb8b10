"""Device, dtype, memory, and what the user is told about them."""

import ctypes
import os
import sys
from contextlib import contextmanager
from contextvars import ContextVar

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def is_main():
    """Whether this process is the first of its run, which speaks and writes for all; alone it is."""
    return not in_group() or int(os.environ["RANK"]) == 0


def in_group():
    """Whether torchrun, or another launcher that sets its variables, started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_processes():
    """How many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


_is_quiet = ContextVar("is_quiet", default=False)


def say(message):
    """One line for the person at the terminal, from the first process; stdout is kept for results."""
    if is_main() and not is_quiet():
        print(message, file=sys.stderr, flush=True)


@contextmanager
def quiet(wanted=True):
    """Within, in this thread, nothing is said; errors are raised all the same."""
    token = _is_quiet.set(wanted or is_quiet())
    try:
        yield
    finally:
        _is_quiet.reset(token)


def is_quiet():
    """Whether nothing is to be said now."""
    return _is_quiet.get()


def pick_device(name="auto"):
    """The torch.device for "auto", "cpu" or "cuda" (under torchrun the rank's own). UsageError if CUDA is not there."""
    import torch

    from .errors import UsageError

    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is usable here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def compute_dtype(device):
    """bfloat16 on CUDA, float32 on a CPU: the dtype of the folded convolutions and of the activations."""
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32


def keep_freed_memory():
    """Let glibc keep the memory this process frees; what was done, as a line of the banner.

    By default glibc maps every large tensor anew, and the system fills each of its pages with zeros at the first touch.
    For programs only: it is a setting of the whole process. Settings in the environment and other allocators stay in
    charge.
    Measured by benchmarks.models.bench_allocator.
    """
    return _tell_glibc(
        "keeps freed memory (nothing mapped, nothing trimmed; MALLOC_* variables overrule this)",
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, -1),
    )


def return_freed_memory():
    """Let glibc give every large tensor's memory back as it is freed; what was done, as a line of the banner.

    The opposite of `keep_freed_memory`, under the same conditions: a heap of freed activations with gradients in
    between cannot be used again in full. Less memory, more page faults.
    """
    return _tell_glibc(
        "gives freed memory back (tensors from 1 MiB on are mapped; MALLOC_* variables overrule this)",
        (_M_MMAP_MAX, 1 << 16),
        (_M_TRIM_THRESHOLD, 1 << 17),
        (_M_MMAP_THRESHOLD, 1 << 20),
    )


def _tell_glibc(done, *settings):
    own = [name for name in os.environ if name.startswith("MALLOC_")]
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        own.append("GLIBC_TUNABLES")
    if not _malloc_is_glibc():
        return "allocator: not glibc's, left as it is"
    if own:
        return f"allocator: glibc, as {', '.join(sorted(own))} in the environment says"
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    if not all(mallopt(parameter, value) for parameter, value in settings):
        return "allocator: glibc refused its settings"
    return f"allocator: glibc {done}"


def _malloc_is_glibc():
    """Whether this process's malloc is glibc's own: a preloaded allocator comes before it."""
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    found, glibc = (ctypes.cast(ctypes.CDLL(name).malloc, ctypes.c_void_p).value for name in (None, "libc.so.6"))
    return found == glibc


def available_memory_bytes(device):
    """Bytes a run may still allocate on the device: free GPU memory, or the host's MemAvailable within its limits, of
    which the processes on this machine have equal shares."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [_first_int("/sys/fs/cgroup/memory.max", 1), _first_int("/proc/meminfo", 1024, "MemAvailable:")]
    limits += [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    known = [limit for limit in limits if limit is not None]
    return (min(known) if known else 4 * 2**30) // local_processes()


def peak_memory_bytes(device):
    """The most memory this process has had: allocated on the GPU, or resident on the host. 0 where nobody counts it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _first_int("/proc/self/status", 1024, "VmHWM:") or 0


def _first_int(path, unit, key=""):
    """The first integer of the line that starts with `key`, times `unit`; None where there is none."""
    if not os.path.exists(path):
        return None
    with open(path, encoding="ascii") as file:
        for line in file:
            words = line.removeprefix(key).split()
            if line.startswith(key) and words and words[0].isdigit():
                return int(words[0]) * unit
    return None
