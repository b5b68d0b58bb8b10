"""Compiles csrc/*.cu for the host behind the headers of this folder: a library for BITFAST_SIMT."""

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH = Path(torch.__path__[0])
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

_FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
_FLAGS += ["-Wno-unknown-pragmas", "-Wno-missing-field-initializers", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
_FLAGS += [f"-I{HERE}", f"-I{ROOT / 'csrc'}", "-isystem", f"{TORCH / 'include'}"]


def library(*flags: str, extra: tuple[Path, ...] = ()) -> Path:
    """The library of all kernels, with `extra` sources; made again only when a source or a flag is another."""
    sources = sorted((ROOT / "csrc").glob("*/*.cu")) + sorted((ROOT / "csrc/torch").glob("*_gpu.cpp"))
    sources += sorted(HERE.glob("*.cpp")) + list(extra)
    read = [p for folder in (HERE, ROOT / "csrc") for p in sorted(folder.rglob("*")) if p.suffix[:2] in {".c", ".h"}]
    text = repr((torch.__version__, flags, extra, [(p.name, p.read_bytes()) for p in (*read, *extra)]))
    folder = ROOT / "build/simt" / hashlib.sha256(text.encode()).hexdigest()[:16]
    made = folder / "libbitfast_simt.so"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        objects = [folder / f"{source.name}.{os.getpid()}.o" for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = [
                pool.submit(_run, *_FLAGS, *flags, "-x", "c++", "-c", source, "-o", made_of)
                for source, made_of in zip(sources, objects, strict=True)
            ]
            for each in compiled:
                each.result()
        linked = folder / f"{os.getpid()}.so"
        _run("-shared", *flags, *objects, f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-o", linked)
        linked.replace(made)
        for file in objects:
            file.unlink()
    return made


def _run(*arguments) -> None:
    result = subprocess.run([os.environ.get("CXX", "g++"), *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the kernels do not compile for the host:\n{result.stderr}")
