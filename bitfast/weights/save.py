"""save_weights(): a model's raw weights to a file that the BiT ecosystem reads."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import UsageError, WeightsError
from ..files import replacing
from ..numerics import WS_EPS
from ..runtime import say
from . import official
from .raw import require_raw


def save_weights(model, path):
    """Write the raw weights of `model` (a ResNetV2) to `path`, replacing a file there in one step.

    .npz          official layout (`resnet/...`, HWIO), float32 (float64 for a float64 model), no epsilon: readers use
                  1e-10, and a model with another is told so in one line
    .safetensors  timm names, the parameters' dtype, metadata ws_eps
    .pth, .pt     state dict under timm names, the parameters' dtype, ws_eps in its torch metadata

    Raises UsageError for another suffix or a folded model; WeightsError if the file cannot be written.
    """
    require_raw(model)
    path = Path(path).expanduser()
    if path.suffix not in _WRITERS:
        raise UsageError(f"{path}: cannot save weights as '{path.suffix}'; expected {', '.join(_WRITERS)}")
    try:
        with replacing(path) as aside:
            _WRITERS[path.suffix](model, aside)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"{path}: cannot be written ({reason}); check the folder and the free space") from error


def _write_npz(model, path):
    arrays = {official.to_key(name): official.to_array(value) for name, value in model.state_dict().items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)
    if model.ws_eps != WS_EPS:
        say(f"an .npz has no place for ws_eps={model.ws_eps:g}: it will be read as {WS_EPS:g}; .safetensors keeps it")


def _write_safetensors(model, path):
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt", "ws_eps": repr(model.ws_eps)})


def _write_state_dict(model, path):
    state = model.state_dict()
    state._metadata[""]["ws_eps"] = model.ws_eps
    with path.open("wb") as file:
        torch.save(state, file)


_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors, ".pth": _write_state_dict, ".pt": _write_state_dict}
