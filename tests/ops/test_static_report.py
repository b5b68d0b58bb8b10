"""Every Triton kernel, compiled without a GPU: nothing is spilled, nothing computed in fp64."""

import json
import os
import subprocess
import sys

import pytest

TARGETS = {"sm_80", "sm_90", "sm_100"}
OPS = ["group_norm", "weight_std", "standardized_sgd", "stem_pool"]


def report(path, *options):
    """The rows of static_report, in a process of its own: an interpreted kernel cannot be compiled."""
    command = [sys.executable, "-m", "benchmarks.ops.static_report", "--json", str(path), *options]
    result = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(json.loads(path.read_text()))
    return json.loads(path.read_text())


def check(rows):
    assert {row["target"] for row in rows} == TARGETS
    assert {row["network"] for row in rows} == {"R50x1", "R152x4"}
    for row in rows:
        assert row["spill_bytes"] == 0 and row["fp64_instructions"] == 0, row
        assert 0 < row["registers"] * row["num_warps"] * 32 <= 65536 and row["shared_bytes"] <= 99 * 1024, row
        assert row["floor_us"] == pytest.approx(row["moved_bytes"] / 4.1e6, abs=0.006)


@pytest.mark.parametrize("op", OPS)
def test_representative_kernels(op, tmp_path):
    check(report(tmp_path / "rows.json", "--ops", op, "--representative"))


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_every_kernel(op, tmp_path):
    check(report(tmp_path / "rows.json", "--ops", op))
