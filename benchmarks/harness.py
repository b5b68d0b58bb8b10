"""Measuring: providers of the same result, checked first, then timed in turn in one process.

A case that is wrong is not timed: `measure` raises before any number is printed. Nor is one timed while other processes
use the machine: on Linux, passes in which they took more than a few per cent of it are thrown away.
On a GPU every call begins with a cold L2 cache, and with enough work before it that its kernels are all queued by then.
"""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from bitfast.numerics import assert_matches

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_PASS_S = 0.5
_OTHERS_SHARE = 0.06  # of one core
_BACKLOG_CYCLES = 4_000_000  # of a GPU, about 2 ms


@dataclass
class Row:
    """One provider on one case; times are of one call, `copy_percent` of the bandwidth of `copy` in this process."""

    case: str
    provider: str
    median_ms: float
    lowest_ms: float
    quartile_ms: tuple[float, float]
    rounds: int
    moved_bytes: int
    gb_per_s: float
    copy_percent: float


@dataclass
class Case:
    """`providers`: name -> call; all give `truth` (float64) as closely as `baseline` does. `moved_bytes`: the floor."""

    name: str
    providers: dict[str, Callable[[], Tensor]]
    truth: Tensor
    baseline: Tensor
    moved_bytes: int


def measure(case: Case, *, seconds: float = 3.0, patience: float = 20.0) -> list[Row]:
    """Check every provider, then time them in turn, a copy of the same size among them, for `seconds` of quiet machine.

    Raises TimeoutError when less than a quarter of that was quiet in `patience` times as long.
    """
    for name, call in case.providers.items():
        assert_matches(call(), case.truth, case.baseline, name=f"{case.name} {name}")
    device = case.truth.device
    source = torch.zeros(case.moved_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls = {"copy": lambda: target.copy_(source), **case.providers}
    times: dict[str, list[float]] = {name: [] for name in calls}
    start, quiet_s = time.perf_counter(), 0.0
    while quiet_s < seconds and time.perf_counter() - start < patience * seconds:
        begin, others = time.perf_counter(), _others_cpu_s()
        one_pass: dict[str, list[float]] = {name: [] for name in calls}
        while time.perf_counter() - begin < _PASS_S or len(one_pass["copy"]) < 3:
            for name, call in calls.items():
                one_pass[name].append(_milliseconds(call, device))
        elapsed = time.perf_counter() - begin
        if _others_cpu_s() - others <= _OTHERS_SHARE * elapsed:
            quiet_s += elapsed
            for name in calls:
                times[name] += one_pass[name][1:]
    if quiet_s < seconds / 4:
        raise TimeoutError(
            f"{case.name}: other processes kept the machine busy; {quiet_s:.1f} s of {seconds} s were quiet"
        )
    copy_ms = statistics.median(times["copy"])
    return [_row(case, name, values, copy_ms) for name, values in times.items()]


def show(rows: list[Row]) -> None:
    """One line per provider."""
    for row in rows:
        print(
            f"{row.case:34} {row.provider:22} {row.median_ms:9.3f} ms"
            f"  [{row.quartile_ms[0]:.3f} .. {row.quartile_ms[1]:.3f}], lowest {row.lowest_ms:.3f}"
            f"  {row.gb_per_s:6.1f} GB/s  {row.copy_percent:4.0f} % of copy",
            flush=True,
        )


def save(name: str, rows: list[Row | dict], *, keep: bool = False, absent: Sequence[str] = ()) -> Path:
    """Write the rows with what they were measured on to benchmarks/results/<name>.json.

    With `keep`, a file of the same commit keeps its rows of other cases. `absent`: providers that are not installed.
    """
    record = {"benchmark": name, "time": datetime.now(UTC).isoformat(timespec="seconds"), **environment()}
    record["absent"] = list(absent)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if keep and path.exists() else None
    same = before is not None and before["commit"] == record["commit"]
    rows = [row if isinstance(row, dict) else asdict(row) for row in rows]
    kept = [old for old in before["rows"] if all(old["case"] != row["case"] for row in rows)] if same else []
    record["rows"] = kept + rows
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def environment() -> dict:
    """The command, commit, machine and versions; `changed` if files other than results are not as committed."""
    return {
        "command": _command(),
        "commit": _output("git", "rev-parse", "HEAD") or "none",
        "changed": bool(_output("git", "status", "--porcelain", ":/", ":!results")),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "triton", "bitfast")},
    }


def _milliseconds(call: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_BACKLOG_CYCLES)
        _filled_cache(device).zero_()
        start.record()
        result = call()
        end.record()
        end.synchronize()
        elapsed = start.elapsed_time(end)
    else:
        start = time.perf_counter()
        result = call()
        elapsed = (time.perf_counter() - start) * 1e3
    del result
    return elapsed


@cache
def _filled_cache(device: torch.device) -> Tensor:
    """Twice what the L2 cache holds."""
    return torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)


def _others_cpu_s() -> float:
    """Processor seconds that everything but this process has used since the machine started; 0 where unknown."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    mine = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - mine.user - mine.system


def _row(case: Case, provider: str, times: list[float], copy_ms: float) -> Row:
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    gb_per_s = case.moved_bytes / median / 1e6
    return Row(
        case=case.name,
        provider=provider,
        median_ms=round(median, 4),
        lowest_ms=round(min(times), 4),
        quartile_ms=(round(low, 4), round(high, 4)),
        rounds=len(times),
        moved_bytes=case.moved_bytes,
        gb_per_s=round(gb_per_s, 2),
        copy_percent=round(100 * copy_ms / median, 1),
    )


def _command() -> str:
    """What was run, as typed in the project's root."""
    name = getattr(sys.modules["__main__"].__spec__, "name", None)
    return shlex.join(["python", "-m", name, *sys.argv[1:]]) if name else shlex.join(sys.argv)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} cores {platform.machine()}"


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent)
    return result.stdout.strip() if result.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
