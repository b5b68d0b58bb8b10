"""Weight files of the BiT ecosystem: official npz, safetensors and state dicts both ways, published ones by name.

Names are loaded on first use: finding a released file needs no torch.
"""

import importlib

_HOME = {
    "LoadReport": "load",
    "classes_in": "load",
    "load_weights": "load",
    "save_weights": "save",
    "architecture_of": ".released",
    "cfg_of": ".released",
    "default_for": ".released",
    "identify": ".released",
    "released_names": ".released",
    "cached": "locate",
    "resolve": "locate",
    "timm_names": ".released",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
