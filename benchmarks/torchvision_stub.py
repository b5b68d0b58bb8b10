"""timm imports torchvision, its BiT models do not use it: a stub for where only timm is installed."""

import enum
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

_STUBBED = ("torchvision", "torchvision.datasets", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms")
_STUBBED += ("torchvision.transforms.functional",)


class _Stub(types.ModuleType):
    """A module in which every public name is an empty class: enough for timm's import-time uses of torchvision."""

    __path__ = ()
    InterpolationMode = enum.Enum("InterpolationMode", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def torchvision_or_stub() -> Iterator[None]:
    """Inside the block, torchvision can be imported: the installed one, or else the stub."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    modules = {name: _Stub(name) for name in _STUBBED}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in _STUBBED:
            del sys.modules[name]
