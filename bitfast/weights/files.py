"""Reading a weights file of any supported kind into tensors under timm's names, never running code from it."""

import json
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import WeightsError
from ..numerics import WS_EPS, WS_EPS_TIMM
from . import official
from .names import rename, to_timm

_AGAIN = "copy or download it again"
_FLOATS = (np.float16, np.float32, np.float64)
_LAYOUT_EPS = {"official": WS_EPS, "big_transfer": WS_EPS, "timm": WS_EPS_TIMM, "transformers": WS_EPS_TIMM}


@dataclass(frozen=True)
class Content:
    """What a file holds: tensors by timm name (head as stored), the layout they came in, the epsilon to use."""

    tensors: dict
    layout: str
    ws_eps: float


def read(path):
    """Content of a weights file, of a model folder (model.safetensors, config.json), or of a run folder (its model/).

    Kinds by suffix: .npz official; .safetensors; .pth .pt .bin .ckpt .tar state dicts, plain or (first found) under
    'state_dict', 'model', 'state_dict_ema'. The epsilon is the one the file or folder states, else 1e-10 for the BiT
    release's layouts and 1e-8 for timm's and transformers'.
    Raises WeightsError, one line, for a path that is missing, unreadable, damaged or not a weights file.
    """
    folder_eps = None
    if path.is_dir():
        folder = path / "model" if (path / "model" / "model.safetensors").exists() else path
        path, folder_eps = folder / "model.safetensors", _folder_eps(folder / "config.json")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    if empty:
        raise WeightsError(f"{path}: the file is empty; {_AGAIN}")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise WeightsError(f"{path}: not a weights file by its name; expected {', '.join(_READERS)} or a model folder")
    tensors, layout, file_eps = _READERS[suffix](path)
    return Content(tensors, layout, file_eps or folder_eps or _LAYOUT_EPS[layout])


def _read_npz(path):
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"{path}: not a whole .npz archive (cut short, or another kind of file); {_AGAIN}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path}: damaged or not an array archive ({_short(error)}); {_AGAIN}") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype not in _FLOATS:
            raise WeightsError(f"{path}: {key} is not an array of floats; is it really an official .npz?")
    arrays = rename(arrays, official.to_name, path)
    return {name: official.to_tensor(array) for name, array in arrays.items()}, "official", None


def _read_safetensors(path):
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or not safetensors ({_short(error)}); {_AGAIN}") from error
    if "folded" in metadata:
        raise WeightsError(
            f"{path}: holds folded weights, an export for inference; take the run or model folder it was exported from"
        )
    return *to_timm(tensors, path), _positive(metadata.get("ws_eps"), path)


def _read_state_dict(path):
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols: refused or fine, nothing to act on
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler fed with foreign bytes can raise anything
        raise WeightsError(
            f"{path}: damaged, or not tensors alone ({type(error).__name__}); "
            f"{_AGAIN}, or save it with torch.save(model.state_dict(), ...)"
        ) from error
    state = payload
    if isinstance(payload, Mapping):
        nested = (payload.get(key) for key in ("state_dict", "model", "state_dict_ema"))
        state = next((value for value in nested if isinstance(value, Mapping)), payload)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: not a state dict of tensors; save it with torch.save(model.state_dict(), ...)")
    stated = getattr(state, "_metadata", {}).get("", {}).get("ws_eps")
    return *to_timm(state, path), _positive(stated, path)


_READERS = {".npz": _read_npz, ".safetensors": _read_safetensors}
_READERS |= dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), _read_state_dict)


def _folder_eps(config):
    if not config.exists():
        return None
    try:
        stated = json.loads(config.read_text(encoding="utf-8")).get("bitfast", {}).get("ws_eps")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{config}: not a model's config.json ({_short(error)}); {_AGAIN}") from error
    return _positive(stated, config)


def _positive(eps, path):
    """The stated epsilon as a float, or None if none is stated."""
    if eps is None:
        return None
    try:
        value = float(eps)
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < 1:
        raise WeightsError(f"{path}: ws_eps is {eps!r}, expected a small positive number such as 1e-10")
    return value


def _short(error):
    return " ".join(str(error).split())[:120] or type(error).__name__
