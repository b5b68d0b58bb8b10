"""Optional peers of the tests: other implementations that may or may not be installed."""

import enum
import importlib.util
import sys
import types

import pytest

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


def import_timm():
    """timm, or skip the test. Without torchvision, which timm imports but its BiT models do not use, a stub stands in
    for it during the import only."""
    pytest.importorskip("safetensors")
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return pytest.importorskip("timm")
    modules = {name: _Stub(name) for name in _STUBBED}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)
    try:
        return pytest.importorskip("timm")
    finally:
        for name in _STUBBED:
            del sys.modules[name]
