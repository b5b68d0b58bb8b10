"""The CUDA kernels as CMake and nvcc make them; nothing of CUDA runs here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ops import cuda_report

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
WITHOUT_NVCC = {"PATH": f"{BIN}:/usr/bin:/bin", "CUDA_HOME": "", "CUDA_PATH": ""}

needs_cmake = pytest.mark.skipif(shutil.which("cmake", path=f"{BIN}:{os.environ['PATH']}") is None, reason="no cmake")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


def cmake(*arguments, **environment):
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | environment
    return subprocess.run(["cmake", *map(str, arguments)], env=environment, capture_output=True, text=True)


def configure(folder, cuda, *options, **environment):
    found = ["-G", "Ninja", f"-DTORCH_ROOT={torch.__path__[0]}", f"-DBITFAST_CUDA={cuda}"]
    return cmake("-S", ROOT, "-B", folder, *found, *options, **environment)


@needs_cmake
def test_an_install_for_the_cpu_leaves_them_out_and_says_so(tmp_path):
    for cuda, why in (
        ("AUTO", "this torch is built without CUDA; -DBITFAST_CUDA=ON builds"),
        ("OFF", "BITFAST_CUDA is OFF"),
    ):
        result = configure(tmp_path / cuda, cuda)
        assert result.returncode == 0 and f"without CUDA kernels ({why}" in result.stdout


@needs_cmake
def test_a_torch_with_cuda_and_no_nvcc_leaves_them_out_and_says_so(tmp_path):
    for folder in ("include", "share"):
        (tmp_path / folder).symlink_to(Path(torch.__path__[0]) / folder)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libtorch_cuda.so").touch()
    nowhere = "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF"
    result = configure(tmp_path / "auto", "AUTO", f"-DTORCH_ROOT={tmp_path}", nowhere, **WITHOUT_NVCC)
    assert result.returncode == 0 and "without CUDA kernels (nvcc is not found: put it on PATH" in result.stdout


@needs_cmake
def test_cuda_asked_for_without_nvcc_is_an_error(tmp_path):
    result = configure(tmp_path, "ON", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", **WITHOUT_NVCC)
    assert result.returncode != 0 and "BITFAST_CUDA is ON: nvcc is not found" in result.stderr


@needs_cmake
def test_an_nvcc_that_does_not_work_is_left_alone_unless_asked_for(tmp_path):
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho 'error: unsupported GNU version' >&2\nexit 1\n")
    broken.chmod(0o755)
    result = configure(tmp_path / "on", "ON", f"-Dnvcc_program={broken}")
    assert result.returncode != 0 and "compiles nothing here: error: unsupported GNU version" in result.stderr


def test_a_report_of_ptxas_is_read():
    text = (
        "ptxas info    : Compiling entry function '_ZN7bitfast3gpu1_14forward_kernelIfEEvNS0_5SlabsE' for 'sm_80'\n"
        "    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers\n"
    )
    (row,) = cuda_report._parsed("group_norm/forward.cu", text)
    assert row == cuda_report.Row("group_norm/forward.cu", "forward_kernel<float>", "sm_80", 40, 12, 16)


def check(rows):
    assert len(rows) >= 3 and not [row for row in rows if row.spill_bytes or row.stack_bytes]
    assert all(0 < row.registers <= 128 for row in rows)


@needs_nvcc
def test_nothing_is_spilled_in_a_forward_on_an_h200():
    check(cuda_report.rows(cuda_report.CSRC / "group_norm/forward.cu", "sm_90a"))


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("target", cuda_report.TARGETS)
def test_nothing_is_spilled(target):
    check([row for source in cuda_report.sources() for row in cuda_report.rows(source, target)])


LOADED = """
import torch
from bitfast.ops import _cuda, group_norm_act, report, use_impl, weight_standardize
assert _cuda.missing() == "" and _cuda.architectures() == "80 90a 100", _cuda.architectures()
assert {row.op: row.impl for row in report()}["group_norm"] == "native"
x = torch.randn(1, 64, 4, 4).contiguous(memory_format=torch.channels_last)
group_norm_act(x, torch.ones(64), torch.zeros(64)), weight_standardize([x])
for refused in (lambda: group_norm_act(x, torch.ones(64), torch.zeros(64)), lambda: weight_standardize([x])):
    with use_impl("group_norm", "cuda"), use_impl("weight_std", "cuda"):
        try:
            refused()
        except Exception as error:
            print(type(error).__name__, error)
try:
    torch.ops.bitfast_cuda.weight_standardize([x], 1e-10, None)
except NotImplementedError as error:
    print(str(error).splitlines()[0])
"""


@pytest.mark.slow
@needs_cmake
@needs_nvcc
def test_the_library_with_cuda_loads_under_the_cpu_build_of_torch_and_refuses(tmp_path):
    """Compiled for sm_80, sm_90a and sm_100; linked to the CUDA runtime that it holds, and to no driver."""
    result = configure(tmp_path, "ON", "-DBITFAST_CUDA_ARCHITECTURES=80-real;90a-real;100-real")
    assert result.returncode == 0 and "with CUDA kernels for 80-real;90a-real;100-real" in result.stdout, result.stderr
    result = cmake("--build", tmp_path)
    assert result.returncode == 0, result.stdout[-4000:]
    made = tmp_path / "libbitfast.so"
    needed = subprocess.run(["readelf", "-d", made], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu.so" in needed and "cudart" not in needed and "libcuda.so" not in needed
    environment = {name: value for name, value in os.environ.items() if name != "BITFAST_SIMT"}
    environment |= {"BITFAST_LIBRARY": str(made), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    group_norm, weight_std, direct = result.stdout.splitlines()
    assert group_norm.startswith("UsageError group_norm=cuda was asked for and cannot run: it is made for cuda")
    assert weight_std.startswith("UsageError weight_std=cuda was asked for and cannot run: it is made for cuda")
    assert "'bitfast_cuda::weight_standardize' with arguments from the 'CPU' backend" in direct
