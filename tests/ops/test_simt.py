"""The stand-in for a GPU that the CUDA kernels are tested on: it shows the mistakes that a GPU would punish."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from simt.build import HERE, SANITIZE, library

KERNELS = ["no_barrier", "barrier_for_some", "shuffle_of_some", "copy_not_waited_for", "copy_not_aligned"]
KERNELS += ["past_shared_memory", "past_global_memory"]

# Its operators are those of the library that other tests have loaded: so it runs in a process of its own.
RUN = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
for kernel, schedule, shared_bytes, cluster in json.loads(sys.argv[2]):
    torch.ops.bitfast_simt.settings(schedule, 227 << 10, 9)
    out = torch.arange(64.0)
    try:
        torch.ops.bitfast_simt.fault(out, kernel, shared_bytes, cluster)
        print(out.tolist())
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


def case(kernel, schedule=0, shared_bytes=256, cluster=1):
    return KERNELS.index(kernel), schedule, shared_bytes, cluster


RACE = [case("no_barrier", schedule=schedule) for schedule in range(3)]
EARLY = case("copy_not_waited_for")
REFUSED = {
    case("barrier_for_some"): "threads wait at a barrier that others never come to",
    case("shuffle_of_some"): "threads wait at a barrier that others never come to",
    case("copy_not_aligned"): "an asynchronous copy of other than 4, 8 or 16 aligned bytes",
    case("no_barrier", shared_bytes=50 << 10): "more shared memory than the kernel's attribute allows",
    case("no_barrier", cluster=16): "clusters do not divide the grid, or are too large",
    case("no_barrier", cluster=3): "clusters do not divide the grid, or are too large",
}


def run(cases, *flags, **environment):
    path = library(*flags, sources=[HERE / "faults/faults.cpp"])
    command = [sys.executable, "-c", RUN, path, json.dumps(cases)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def outcome():
    cases = [*RACE, EARLY, *REFUSED]
    return dict(zip(cases, run(cases).stdout.splitlines(), strict=True))


def test_a_race_gives_other_bits_in_another_schedule(outcome):
    assert len({outcome[each] for each in RACE}) == 3


def test_a_copy_is_not_there_before_it_is_waited_for(outcome):
    assert outcome[EARLY] == str([float("nan")] * 64)


@pytest.mark.parametrize("each", REFUSED, ids=str)
def test_what_a_gpu_refuses_or_waits_for_forever_is_an_error(each, outcome):
    assert REFUSED[each] in outcome[each]


def sanitized():
    """The environment in which the sanitizers watch a library that Python loads."""
    compiler, names = os.environ.get("CXX", "g++"), ("libasan.so", "libubsan.so")
    found = [subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip() for name in names]
    return {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["past_shared_memory", "past_global_memory"])
def test_an_access_past_the_end_is_found_by_the_sanitizer(kernel):
    assert "AddressSanitizer: heap-buffer-overflow" in run([case(kernel)], *SANITIZE, **sanitized()).stderr


@pytest.mark.slow
@pytest.mark.parametrize("op", ["weight_std", "standardized_sgd", "group_norm"])
def test_the_kernels_under_the_sanitizers(op):
    test = Path(__file__).parent / f"test_{op}_cuda.py"
    command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", test, "-k", "not opcheck"]
    environment = os.environ | sanitized() | {"BITFAST_SIMT": str(library(*SANITIZE))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-2000:] + result.stderr[-4000:]
