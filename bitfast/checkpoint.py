"""Training state on disk: raw float32 weights, momentum, averages and the step, one safetensors file per checkpoint.

A run is a pure function of (seed, step), so the step is all there is to know beyond weights and momentum. Files are
written aside, flushed and renamed; the newest two are kept; nothing is pickled.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import DataError
from .files import replacing
from .runtime import say

KEEP = 2
STATE = {"momentum": "momentum_buffer", "average": "average"}  # part of a checkpoint: key in the optimizer's state
NAME = re.compile(r"step-(\d{8})\.safetensors")


def save(folder, step, model, optimizer, facts):
    """Write the state after `step` optimizer steps, then drop all but the newest two.

    facts  small dict of what else has to be the same for a bit-equal continuation (micro-batch, threads, epsilon)
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{part}.{name}": state[key] for part, key in STATE.items() if key in state}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(folder / f"step-{step:08d}.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "facts": json.dumps(facts)})
    for stale in _newest_first(folder)[KEEP:]:
        stale.unlink()
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


@dataclass(frozen=True)
class State:
    """A checkpoint read back: optimizer steps done, the facts saved with it, and its tensors."""

    step: int
    facts: dict
    tensors: dict

    def restore(self, model, optimizer):
        """Put weights, momentum and averages into a model and the StandardizedSGD made for it."""
        model.load_state_dict(self._part("model."))
        parameters = dict(model.named_parameters())
        for part, key in STATE.items():
            for name, tensor in self._part(f"{part}.").items():
                optimizer.state[parameters[name]][key] = tensor.to(parameters[name])
        optimizer.refresh()

    def _part(self, prefix):
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


def newest(folder):
    """The State of the newest readable checkpoint, or None if there is none.

    A damaged newest file is named and the one before is used. DataError if files exist but none can be read.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            return State(int(metadata["step"]), json.loads(metadata["facts"]), tensors)
        except (SafetensorError, OSError) as error:
            say(f"checkpoint {path} is damaged ({error}): trying the one before")
    if paths:
        raise DataError(
            f"no checkpoint in {folder} can be read ({len(paths)} damaged): start a new run with another --out"
        )
    return None


def _newest_first(folder):
    return sorted((path for path in Path(folder).glob("step-*.safetensors") if NAME.fullmatch(path.name)), reverse=True)
