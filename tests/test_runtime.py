"""Keeping freed memory: a setting of a program's own process, never made by importing the library."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading, torch

def faults(megabytes):
    # glibc before 2.38 keeps up to seven slivers of aligned blocks apart, so a size settles after some rounds
    for _ in range(30):
        torch.empty(megabytes << 18).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(megabytes << 18).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
"""
PAGES_OF_64_MB = (64 << 20) // os.sysconf("SC_PAGE_SIZE")


def python(code, **environment):
    """The last line that a new process prints; the allocator's own variables are those given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_freed_memory_is_kept():
    code = FAULTS + "from bitfast.runtime import keep_freed_memory\nsaid = keep_freed_memory()\nprint(faults(64), said)"
    faults, _, said = python(code).partition(" ")
    assert said.startswith("allocator: glibc keeps freed memory")
    assert int(faults) < PAGES_OF_64_MB / 100


def test_freed_memory_is_given_back():
    code = FAULTS + "from bitfast.runtime import keep_freed_memory, return_freed_memory\nkeep_freed_memory()\n"
    faults, _, said = python(code + "said = return_freed_memory()\nprint(faults(64), said)").partition(" ")
    assert said.startswith("allocator: glibc gives freed memory back")
    assert int(faults) >= PAGES_OF_64_MB


def test_importing_the_library_changes_nothing():
    code = FAULTS + "import bitfast, bitfast.recipes.finetune, bitfast.classifier, bitfast.cli, bitfast.demo\n"
    assert int(python(code + "print(faults(64))")) >= PAGES_OF_64_MB


def test_other_threads_still_get_large_blocks():
    """An arena of another thread ends at 64 MB, and mapping is off: glibc must find the memory elsewhere."""
    code = """
import threading, torch
from bitfast.runtime import keep_freed_memory
keep_freed_memory()
sums = []
def allocate():
    blocks = [torch.ones(megabytes << 18) for megabytes in (1, 40, 70, 200, 200)]
    sums.append(sum(block.numel() for block in blocks) + blocks[-1][-1].item())
threads = [threading.Thread(target=allocate) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sums == [(511 << 18) + 1.0] * 3)
"""
    assert python(code) == "True"


SAY = "from bitfast.runtime import keep_freed_memory\nprint(keep_freed_memory())"


@pytest.mark.parametrize(
    "name, value",
    [("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.top_pad=65536")],
)
def test_environment_stays_in_charge(name, value):
    assert python(SAY, **{name: value}) == f"allocator: glibc, as {name} in the environment says"
    code = FAULTS + SAY + "\nprint(faults(64))"
    assert int(python(code, **{name: value})) >= PAGES_OF_64_MB


def test_another_allocator_is_left_alone(tmp_path):
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    source.write_text(
        "#include <stddef.h>\nvoid *__libc_malloc(size_t);\nvoid *malloc(size_t n) { return __libc_malloc(n); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert python(SAY, LD_PRELOAD=str(library)) == "allocator: not glibc's, left as it is"
