"""Which implementation of an operator runs, and why.

Every operator has an ordered table of `Impl`; the first whose `supports` has no objection runs. An objection of an
implementation made for the tensor's device is said once; an implementation is never tried and caught.

A choice is forced by `BITFAST_IMPL=group_norm=native,weight_std=reference` or by `use_impl`; a forced implementation
that cannot run raises with its objection.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bitfast.errors import UsageError
from bitfast.runtime import say


class Impl(NamedTuple):
    """One implementation: `supports(x, **call)` returns why it cannot take a tensor like `x`, or "".

    `call`: what else of a call counts, by name; each has a default.
    `on_request`: devices that it can run on too, but only does where it is forced.
    """

    name: str
    fn: Callable
    supports: Callable[..., str]
    devices: tuple[str, ...] = ("cpu", "cuda")
    on_request: tuple[str, ...] = ()


class Choice(NamedTuple):
    """A row of `report`: the implementation of `op` that would run, and why."""

    op: str
    impl: str
    why: str


_table: dict[str, tuple[Impl, ...]] = {}
_forced: dict[str, str] = {}
_said: set[str] = set()


def register(op: str, *impls: Impl) -> None:
    """Set the implementations of `op`, the preferred first."""
    _table[op] = impls


def anything(x: Tensor, **call) -> str:
    """The `supports` of an implementation in plain torch."""
    return ""


def implementation(op: str, name: str) -> Impl:
    """The implementation called `name`. Raises UsageError, listing the known ones."""
    if op not in _table:
        raise UsageError(f"no operator {op!r}; one of {', '.join(_table)}")
    for impl in _table[op]:
        if impl.name == name:
            return impl
    raise UsageError(f"{op} has no implementation {name!r}; one of {', '.join(impl.name for impl in _table[op])}")


def select(op: str, *tensors: Tensor, **call) -> Callable:
    """The function that runs `op` on tensors like these; the first one's device decides which implementations count."""
    forced = _forced_impl(op)
    if forced is not None:
        objection = _objection(forced, *tensors, devices=forced.devices + forced.on_request, **call)
        if objection:
            raise UsageError(f"{op}={forced.name} was asked for and cannot run: {objection}")
        return forced.fn
    device = tensors[0].device.type
    skipped = []
    for impl in _table[op]:
        if device in impl.devices:
            objection = _objection(impl, *tensors, devices=impl.devices, **call)
            if not objection:
                for name, why in skipped:
                    say_once(f"{op} runs as {impl.name}, not {name}: {why}")
                return impl.fn
            skipped.append((impl.name, objection))
    raise UsageError(f"{op} has no implementation for {device} tensors; one of {', '.join(_devices(op))}")


def say_once(message: str) -> None:
    """Tell the person at the terminal, the first time."""
    if message not in _said:
        _said.add(message)
        say(f"bitfast: {message}")


@contextmanager
def use_impl(op: str, name: str) -> Iterator[None]:
    """Force an implementation inside a `with` block; holds for the whole process, autograd threads included."""
    implementation(op, name)
    before = _forced.get(op)
    _forced[op] = name
    try:
        yield
    finally:
        if before is None:
            del _forced[op]
        else:
            _forced[op] = before


def report(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> list[Choice]:
    """What would run for each operator of this device on activations of this dtype: the rows of the banner."""
    x = torch.empty(1, 64, 2, 2, device=device, dtype=dtype)
    return [_choice(op, x) for op in _table if x.device.type in _devices(op)]


def _choice(op: str, x: Tensor) -> Choice:
    forced = _forced_impl(op)
    if forced is not None:
        objection = _objection(forced, x, devices=forced.devices + forced.on_request)
        return Choice(op, forced.name, f"forced, but cannot run: {objection}" if objection else "forced")
    objections = []
    for impl in _table[op]:
        objection = _objection(impl, x, devices=impl.devices)
        if not objection:
            return Choice(op, impl.name, "; ".join(objections) or "first choice")
        objections.append(f"not {impl.name}: {objection}")
    return Choice(op, "none", "; ".join(objections))


def _objection(impl: Impl, *tensors: Tensor, devices: tuple[str, ...], **call) -> str:
    for x in tensors:
        if x.device.type not in devices:
            return f"it is made for {', '.join(devices)}, the tensor is on {x.device.type}"
        objection = impl.supports(x, **call)
        if objection:
            return objection
    return ""


def _forced_impl(op: str) -> Impl | None:
    name = _forced.get(op) or _forced_by_environment().get(op)
    return implementation(op, name) if name else None


@cache
def _forced_by_environment() -> dict[str, str]:
    forced = {}
    for item in filter(None, os.environ.get("BITFAST_IMPL", "").split(",")):
        op, separator, name = item.partition("=")
        if not separator:
            raise UsageError(f"BITFAST_IMPL holds {item!r}; write op=implementation, separated by commas")
        implementation(op.strip(), name.strip())
        forced[op.strip()] = name.strip()
    return forced


def _devices(op: str) -> list[str]:
    return sorted({device for impl in _table[op] for device in impl.devices})
