"""Where weights are on this machine: a path, a released name in the cache, a repository of the Hub."""

import os
from pathlib import Path

from ..errors import UsageError, WeightsError
from ..files import cache_folder
from ..released import canonical, released_names, unknown_weights
from . import hub
from .download import download

BASE_URL = "https://storage.googleapis.com/bit_models/"


def cached(name):
    """Path of a released name's file in the cache, there or not."""
    return cache_folder() / f"{name}.npz"


def resolve(name_or_path):
    """Path of weights: an existing path is itself, a released name (or timm's name of it) is in the cache or gets
    downloaded to it, "hf-hub:OWNER/NAME" likewise through huggingface_hub and its cache.

    Cache:   files.cache_folder()
    Network: only for a name that is not in the cache; $BITFAST_WEIGHTS_URL names a mirror of the bucket
    Raises WeightsError for a path that does not exist, a failed download (the line says where to put the file), or a
    cached file whose size changed; UsageError for an unknown name.
    """
    text = str(name_or_path)
    if text.startswith(hub.PREFIX):
        return hub.download(text)
    path = Path(text).expanduser()
    if path.exists():
        return path
    text = canonical(text) or text
    if text in released_names():
        base = os.environ.get("BITFAST_WEIGHTS_URL", BASE_URL).rstrip("/")
        return download(text, f"{base}/{text}.npz", cached(text))
    if path.suffix or (isinstance(name_or_path, Path) or os.sep in text):
        stem = text.removesuffix(".npz")
        hint = f'"{stem}" without .npz downloads it' if stem in released_names() else "check the path"
        raise WeightsError(f"{text}: no such weights file; {hint}")
    raise UsageError(unknown_weights(text))
