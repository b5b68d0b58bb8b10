"""What the CUDA kernels take on GPUs that need not be here: python -m benchmarks.ops.cuda_report

Every kernel of csrc/*/*.cu, compiled by nvcc for sm_80, sm_90a and sm_100: registers per thread, bytes of registers
spilled and of the stack, as ptxas says. Nothing is run, nothing is measured. The exit code is 1 where a kernel spills.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

TARGETS = ("sm_80", "sm_90a", "sm_100")  # A100, H100 and H200, B200

CSRC = Path(__file__).parents[2] / "csrc"
_ENTRY = re.compile(r"Compiling entry function '(?P<kernel>\w+)' for '(?P<target>\w+)'")
_SPILLED = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass
class Row:
    """One kernel for one target."""

    file: str
    kernel: str
    target: str
    registers: int
    spill_bytes: int
    stack_bytes: int


def sources() -> list[Path]:
    return sorted(CSRC.glob("*/*.cu"))


def rows(source: Path, target: str) -> list[Row]:
    """Those of one file for one target. Raises RuntimeError with what nvcc says where it does not compile."""
    architecture = target.removeprefix("sm_")
    generate = f"arch=compute_{architecture},code={target}"
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++20", "-O3", f"-I{CSRC}", "-cubin", "-gencode", generate, "-Xptxas", "-v"]
        command += [str(source), "-o", str(Path(folder) / "kernels.cubin")]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{source.name} does not compile for {target}:\n{result.stderr}")
    return list(_parsed(source.relative_to(CSRC).as_posix(), result.stderr))


def _parsed(file: str, text: str) -> Iterator[Row]:
    row = None
    for line in text.splitlines():
        if found := _ENTRY.search(line):
            row = Row(file, _name(found["kernel"]), found["target"], 0, 0, 0)
        elif row and (found := _SPILLED.search(line)):
            stack, stores, loads = map(int, found.groups())
            row.spill_bytes, row.stack_bytes = stores + loads, stack
        elif row and (found := _REGISTERS.search(line)):
            row.registers = int(found[1])
            yield row
            row = None


def _name(mangled: str) -> str:
    """`forward_kernel<float>` of what the compiler calls it."""
    kernel = re.search(r"\d(?P<name>[a-z_]+_kernel)(I\d*(?P<type>\w+?)E)?", mangled)
    of = {"f": "float", "__nv_bfloat16": "bfloat16", "__half": "float16"}.get(kernel["type"])
    return f"{kernel['name']}<{of}>" if of else kernel["name"]


def show(row: Row) -> None:
    print(
        f"{row.file:28} {row.kernel:26} {row.target:7} {row.registers:4} registers {row.spill_bytes:4} B spilled"
        f" {row.stack_bytes:4} B stack",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--json", help="file to write the rows to")
    options = parser.parse_args(argv)
    if shutil.which("nvcc") is None:
        sys.exit("cuda_report: nvcc is not found: put the bin folder of a CUDA toolkit on PATH")
    with ThreadPoolExecutor(2) as pool:
        pairs = [(source, target) for source in sources() for target in options.targets]
        found = [row for made in pool.map(lambda pair: rows(*pair), pairs) for row in made]
    for row in found:
        show(row)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in found], indent=1), encoding="utf-8")
    if any(row.spill_bytes for row in found):
        sys.exit("cuda_report: registers are spilled")


if __name__ == "__main__":
    main()
