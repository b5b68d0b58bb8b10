"""Compiles csrc/*.cu for the host behind the headers of this folder: a library for BITFAST_SIMT."""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = [*sorted(CSRC.glob("*/*.cu")), *sorted((CSRC / "torch").glob("*_gpu.cpp"))]
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

_TORCH = Path(torch.__path__[0])
_FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
_FLAGS += ["-Wno-unknown-pragmas", "-Wno-missing-field-initializers", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
_FLAGS += [f"-I{HERE}", f"-I{CSRC}", "-isystem", f"{_TORCH / 'include'}"]


def library(*flags: str, sources: Sequence[Path] = KERNELS) -> Path:
    """The library of `sources`, made again only when one of them, a header or a flag is another."""
    sources = [*sources, *sorted(HERE.glob("*.cpp"))]
    headers = [p for folder in (HERE, CSRC) for p in sorted(folder.rglob("*")) if p.suffix in {".h", ".cuh"}]
    text = repr((torch.__version__, flags, [(p.name, p.read_bytes()) for p in (*sources, *headers)]))
    folder = HERE.parents[1] / "build/simt" / hashlib.sha256(text.encode()).hexdigest()[:16]
    made = folder / "libbitfast_simt.so"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        objects = [folder / f"{source.name}.{os.getpid()}.o" for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            commands = [(*flags, "-x", "c++", "-c", *pair) for pair in zip(sources, objects, strict=True)]
            list(pool.map(_compile, commands))
        linked = folder / f"{os.getpid()}.so"
        _run("-shared", *flags, *objects, f"-L{_TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-o", linked)
        linked.replace(made)
        for file in objects:
            file.unlink()
    return made


def _compile(command: tuple) -> None:
    *options, source, made = command
    _run(*_FLAGS, *options, source, "-o", made)


def _run(*arguments) -> None:
    result = subprocess.run([os.environ.get("CXX", "g++"), *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the kernels do not compile for the host:\n{result.stderr}")
