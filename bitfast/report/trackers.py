"""--report-to: the scalars of a run for TensorBoard and Weights & Biases. Both are imported only when asked for."""

import netrc
import os
from contextlib import contextmanager
from dataclasses import asdict
from urllib.parse import urlparse

from ..config import trackers
from ..runtime import is_main, say


@contextmanager
def tracking(config, folder, start):
    """Within, the trackers of config.report_to get every record of the run, from its first process.

    start  the step that it begins at
    """
    opened = [_OPENERS[name](config, folder, start) for name in trackers(config.report_to) if is_main()]
    folder.listeners += [tracker.send for tracker in opened]
    try:
        yield
    finally:
        folder.listeners.clear()
        for tracker in opened:
            tracker.close()


class _TensorBoard:
    """An event file in the run folder. Of a resumed run, TensorBoard hides the steps that are done twice."""

    def __init__(self, config, folder, start):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder.path), purge_step=start or None)
        say(f"tensorboard: tensorboard --logdir {folder.path}")

    def send(self, record):
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def close(self):
        self.writer.close()


class _Wandb:
    """A run of the project "bitfast", kept in the run folder; its id is kept there too, so a resume goes on."""

    def __init__(self, config, folder, start):
        import wandb

        mode = wandb_mode(os.environ)
        path = folder.path.absolute()
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "bitfast"),
            name=path.name,
            id=_identifier(folder),
            resume="allow",
            dir=str(path),
            mode=mode,
            config=asdict(config),
        )
        say(f"wandb: {mode}" + (f", wandb sync {path / 'wandb'}/offline-run-* uploads it" if mode == "offline" else ""))

    def send(self, record):
        self.run.log(scalars(record), step=record["step"])

    def close(self):
        self.run.finish()


_OPENERS = {"tensorboard": _TensorBoard, "wandb": _Wandb}


def scalars(record):
    """{"train/loss": ...} of a record of metrics.jsonl: every number but the step, under train/ or val/."""
    part = {"eval": "val"}.get(record["kind"], record["kind"])
    return {
        f"{part}/{name}": value
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def wandb_mode(environment):
    """ "online" if a key is at hand and WANDB_MODE does not say otherwise, else what it says, else "offline".

    Without a key wandb would ask for one and wait: so it is offline, whatever WANDB_MODE says.
    """
    wanted = environment.get("WANDB_MODE") or "online"
    if wanted in ("offline", "disabled", "dryrun"):
        return "offline" if wanted == "dryrun" else wanted
    return "online" if _logged_in(environment) else "offline"


def _logged_in(environment):
    if environment.get("WANDB_API_KEY"):
        return True
    host = urlparse(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    path = environment.get("NETRC") or os.path.join(environment.get("HOME", ""), ".netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _identifier(folder):
    """One for each run: kept in the run folder, so that it goes with a run that is moved."""
    path = folder.path / "wandb_id.txt"
    if not path.is_file():
        path.write_text(os.urandom(8).hex() + "\n", encoding="ascii")
    return path.read_text(encoding="ascii").strip()
