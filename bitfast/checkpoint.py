"""Training state on disk: raw float32 weights, momentum and the step, one safetensors file per checkpoint.

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
from .runtime import is_main, say
from .sharding import share_of, whole

KEEP = 2
NAME = re.compile(r"step-(\d{8})\.safetensors")


def save(folder, step, model, optimizer, facts):
    """Write the state after `step` optimizer steps, then drop all but the newest two.

    facts  small dict of what else has to be the same for a bit-equal continuation (micro-batch, threads, epsilon)
    """
    folder = Path(folder)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer
    tensors = {name: whole(tensor) for name, tensor in tensors.items()}
    if not is_main():
        return
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
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
        """Put weights and momentum into a model and the StandardizedSGD made for it."""
        like = model.state_dict()
        model.load_state_dict({name: share_of(tensor, like[name]) for name, tensor in self._part("model.").items()})
        momentum = self._part("momentum.")
        for name, parameter in model.named_parameters():
            if name in momentum:
                optimizer.state[parameter]["momentum_buffer"] = share_of(momentum[name].to(parameter.dtype), parameter)
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
