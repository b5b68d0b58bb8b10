"""Providers checked against the released definition, then timed in turn, a round after the other, in one process.

A provider that is wrong is not timed: `compare` raises before any number is printed.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from benchmarks.models.peers import COMPILED, FLOOR, NOT_BIT, OURS, PROVIDERS
from benchmarks.models.setting import Setting

_TOLERANCE = 1e-3  # of logits, relative to their norm
_CHECKED_CALLS = 2  # the second sees what the first step of a training did
_KEEPS_MEMORY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


@dataclass
class Row:
    """One provider on one case; times are of one step or inference.

    `first_call_s` has the compilation in it. `ours_faster`: its time over ours, `of_convolutions`: its time over that
    of the convolutions alone, medians over the rounds of the ratio within a round, with the lowest and the highest of
    them; None where that one was not timed.
    """

    case: str
    provider: str
    median_ms: float
    lowest_ms: float
    quartile_ms: tuple[float, float]
    rounds: int
    images_per_s: float
    first_call_s: float
    ours_faster: float | None
    ours_faster_range: tuple[float, float] | None
    of_convolutions: float | None
    of_convolutions_range: tuple[float, float] | None
    keeps_memory: bool


def compare(task: str, setting: Setting, names: list[str], *, rounds: int, seconds: float) -> list[Row]:
    """Build, check and time the named providers; task: "training" or "inference".

    At least so many rounds, and as many more as fit into `seconds`. Raises AssertionError, naming the provider, when
    logits are off.
    """
    torch.compiler.reset()
    calls = {name: getattr(PROVIDERS[name], task)(setting) for name in names}
    first_s = _check(task, setting, calls)
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in count(1):
        for name, call in calls.items():
            times[name].append(_seconds(call, setting.device) * 1e3)
        if done >= rounds and time.perf_counter() - start >= seconds:
            break
    return [_row(f"{task} {setting}", setting.batch, name, times, first_s[name]) for name in names]


def keeps_memory() -> bool:
    """Whether glibc was told by the environment to keep freed memory (see benchmarks/RESULTS.md)."""
    return all(name in os.environ for name in _KEEPS_MEMORY)


def times_of(ratio: float | None, what: str) -> str:
    """A cell of the table; empty where nothing was compared."""
    return "" if ratio is None else f"  {ratio:5.2f} x {what}"


def show(rows: list[Row]) -> None:
    """One line per provider of a case, then ours against the best peer."""
    kept = "keeps freed memory" if rows[0].keeps_memory else "maps large tensors anew (see benchmarks/RESULTS.md)"
    print(f"{rows[0].case}: {rows[0].rounds} rounds, {torch.get_num_threads()} threads, glibc {kept}")
    for row in rows:
        print(
            f"  {row.provider:26} {row.median_ms:9.2f} ms  [{row.quartile_ms[0]:.2f} .. {row.quartile_ms[1]:.2f}],"
            f" lowest {row.lowest_ms:.2f}  {row.images_per_s:7.1f} images/s"
            f"{times_of(row.ours_faster, 'ours')}{times_of(row.of_convolutions, 'convolutions')}"
            + (f"  first call {row.first_call_s:.0f} s" if row.provider in COMPILED else "")
        )
    peers = [row for row in rows if row.provider not in NOT_BIT and not row.provider.startswith(OURS)]
    if peers and any(row.provider == OURS for row in rows):
        best = min(peers, key=lambda row: row.median_ms)
        print(f"  {OURS} is {best.ours_faster:.2f} x as fast as the best peer, {best.provider}", flush=True)


def _check(task: str, setting: Setting, calls: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Two calls of each provider, which also warm it up; seconds of the first.

    The truth is the released definition in float32. A lower dtype may be as wrong as twice that definition in it.
    """
    truth = _logits(getattr(PROVIDERS["official"], task)(replace(setting, dtype=torch.float32)))
    official = truth
    if setting.dtype != torch.float32:
        official = _logits(getattr(PROVIDERS["official"], task)(setting))
    first_s = {}
    for name, call in calls.items():
        start = time.perf_counter()
        got = [call()]
        first_s[name] = time.perf_counter() - start
        got += [call() for _ in range(_CHECKED_CALLS - 1)]
        if name in NOT_BIT:
            continue
        for i in range(_CHECKED_CALLS):
            error, allowed = _error(got[i], truth[i]), max(_TOLERANCE, 2 * _error(official[i], truth[i]))
            assert error <= allowed, (
                f"{task} {setting}, {name}: logits of call {i + 1} off by {error:.2g} ({allowed:.2g})"
            )
    return first_s


def _logits(call: Callable[[], Tensor]) -> list[Tensor]:
    return [call() for _ in range(_CHECKED_CALLS)]


def _error(got: Tensor, truth: Tensor) -> float:
    return float((got.float() - truth).norm() / truth.norm())


def _seconds(call: Callable[[], Tensor], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _row(case: str, batch: int, name: str, times: dict[str, list[float]], first_s: float) -> Row:
    own = times[name]
    median = statistics.median(own)
    low, _, high = statistics.quantiles(own, n=4) if len(own) > 1 else own * 3

    def ratio(other: str) -> tuple[float | None, tuple[float, float] | None]:
        if other not in times:
            return None, None
        ratios = [a / b for a, b in zip(own, times[other], strict=True)]
        return round(statistics.median(ratios), 3), (round(min(ratios), 3), round(max(ratios), 3))

    ours_faster, ours_faster_range = ratio(OURS)
    of_convolutions, of_convolutions_range = ratio(FLOOR)

    return Row(
        case=case,
        provider=name,
        median_ms=round(median, 3),
        lowest_ms=round(min(own), 3),
        quartile_ms=(round(low, 3), round(high, 3)),
        rounds=len(own),
        images_per_s=round(batch / median * 1e3, 2),
        first_call_s=round(first_s, 2),
        ours_faster=ours_faster,
        ours_faster_range=ours_faster_range,
        of_convolutions=of_convolutions,
        of_convolutions_range=of_convolutions_range,
        keeps_memory=keeps_memory(),
    )
