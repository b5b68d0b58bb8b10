"""docs/architecture.md shows how an operator is added: its code is taken from the page, built, and its test run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(?:python|cpp)\n(?:#|//) (\S+\.(?:py|h|cpp))\n(.*?)```", re.S)


def run(*command, cwd, **environment):
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_operator_of_the_page(tmp_path):
    """Only its own sources are compiled; that all of csrc/ builds is what the installation shows."""
    for name in ("bitfast", "csrc", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "results"))
    for name in ("conftest.py", "ops/conftest.py"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    files = dict(BLOCK.findall(page))
    assert len(files) == 7
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "bitfast/ops/layer_scale/__init__.py").touch()
    lists = (ROOT / "CMakeLists.txt").read_text()
    for variable, source in (
        ("torch_sources", "csrc/torch/layer_scale.cpp"),
        ("cpu_kernels", "csrc/layer_scale/layer_scale_cpu.cpp"),
    ):
        assert source in page
        lists, found = re.subn(rf"set\({variable}\n[^)]*\)", f"set({variable} {source})", lists)
        assert found == 1
    (tmp_path / "CMakeLists.txt").write_text(lists)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    torch_root = f"-DTORCH_ROOT={torch.__path__[0]}"
    run("cmake", "-S.", "-Bbuild", "-GNinja", "-DBITFAST_CUDA=OFF", torch_root, cwd=tmp_path, PATH=path)
    run("cmake", "--build", "build", cwd=tmp_path, PATH=path)
    here = {"BITFAST_LIBRARY": str(tmp_path / "build/libbitfast.so"), "PYTHONPATH": str(tmp_path)}
    shown = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tmp_path, **here)
    assert "18 passed" in shown
    assert "benchmarks" in run(
        sys.executable, "-c", "import benchmarks.ops.bench_layer_scale as b; print(b.__name__)", cwd=tmp_path, **here
    )
