"""The native library of this installation."""

import subprocess
import sys

import torch

from bitfast.ops import _library, report


def test_loads_and_runs_by_default():
    assert _library.native_missing() == ""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert {row.op: row.impl for row in report("cpu", dtype)}["group_norm"] == "native"


WITHOUT = """
import pathlib
from bitfast.ops import _library
_library._NATIVE_PATH = pathlib.Path({path!r})
import torch
from bitfast.ops import group_norm_act, report
x = torch.randn(1, 32, 4, 4)
for _ in range(2):
    group_norm_act(x, torch.ones(32), torch.zeros(32))
print({{row.op: row.impl for row in report()}}["group_norm"])
"""


def run_without(path):
    code = WITHOUT.format(path=str(path))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_absent_library_is_said_once_and_the_reference_runs(tmp_path):
    result = run_without(tmp_path / "absent.so")
    assert result.stdout == "reference\n"
    assert result.stderr.count("not built") == 1


def test_library_that_does_not_load_is_said_once_and_the_reference_runs(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    result = run_without(broken)
    assert result.stdout == "reference\n"
    assert result.stderr.count("does not load") == 1
