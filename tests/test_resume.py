"""What a stopped run says and keeps, and what --resume takes: the newest run, its config, changes that are allowed."""

import json
import os
import re
import shutil
import signal

import pytest
import torch
import yaml
from photos import write_class_folders

import bitfast
from bitfast import signals
from bitfast.checkpoint import newest
from bitfast.cli import main
from bitfast.errors import UsageError
from bitfast.recipes import loop, recipe
from bitfast.run import RunFolder
from bitfast.train import NonFiniteLoss, Trainer

OPTIONS = dict(model="resnet26x0_5", steps=6, batch_size=8, resize=36, crop=32, lr=0.01, eval_every=2, save_every=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=8)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    return bitfast.finetune(photos, out=tmp_path_factory.mktemp("runs") / "whole", **OPTIONS)


def flags(**options):
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def records(folder):
    """Without what depends on the clock."""
    clock = ("images_per_second", "data_wait", "seconds", "peak_memory_bytes")
    return [{k: v for k, v in record.items() if k not in clock} for record in RunFolder(folder).records()]


def once(monkeypatch, where, name, nth, act):
    """act() in the nth call of where.name."""
    real, left = getattr(where, name), [nth]

    def patched(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            act()
        return real(*arguments, **options)

    monkeypatch.setattr(where, name, patched)


def raise_signal(number):
    return lambda: os.kill(os.getpid(), number)


def unfinish(folder, step):
    """As after a kill between the checkpoint of `step` and the next."""
    (folder / "result.json").unlink()
    for path in (folder / "checkpoints").iterdir():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)


@pytest.mark.parametrize(
    "number, evaluation",
    [(signal.SIGINT, 1), (signal.SIGUSR1, 1), (signal.SIGTERM, 3)],
    ids=["SIGINT", "SIGUSR1", "SIGTERM-in-the-last"],
)
def test_stops_in_an_evaluation(whole, photos, tmp_path, monkeypatch, capsys, number, evaluation):
    out = tmp_path / "run"
    before = signal.getsignal(number)
    once(monkeypatch, loop, "evaluate", evaluation, raise_signal(number))
    assert main(["finetune", str(photos), "--out", str(out), *flags(**OPTIONS)]) == 75
    monkeypatch.undo()
    assert signal.getsignal(number) is before
    done = 2 * evaluation
    said = capsys.readouterr().err
    assert f"stopped at step {done} of 6 and saved: continue with bitfast finetune --resume --out {out}" in said
    assert newest(out / "checkpoints").step == done
    assert main(["finetune", "--resume", str(out)]) == 0
    assert records(out) == records(whole.out)
    assert json.loads((out / "result.json").read_text())["metrics"] == whole.metrics


def test_stops_before_the_training(photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    once(monkeypatch, recipe, "scanned", 1, raise_signal(signal.SIGTERM))
    assert main(["finetune", str(photos), "--out", str(out), *flags(**OPTIONS)]) == 75
    assert "stopped by SIGTERM, nothing is lost: the same command" in capsys.readouterr().err
    assert not out.exists()


def test_a_second_ctrl_c_stops_at_once(photos, tmp_path, monkeypatch):
    def twice():
        raise_signal(signal.SIGINT)()
        raise_signal(signal.SIGINT)()

    once(monkeypatch, loop, "evaluate", 1, twice)
    assert main(["finetune", str(photos), "--out", str(tmp_path / "run"), *flags(**OPTIONS)]) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_python_gets_interrupted_as_an_exception(photos, tmp_path, monkeypatch):
    once(monkeypatch, loop, "evaluate", 1, raise_signal(signal.SIGTERM))
    with pytest.raises(bitfast.errors.Interrupted, match="stopped at step 2 of 6 and saved"):
        bitfast.finetune(photos, out=tmp_path / "run", **OPTIONS)


def bad_loss(loss, network):
    return loss * torch.nan


def bad_gradient(loss, network):
    """As large as before, with a gradient of 0 * infinity."""
    return loss + (network.norm.weight * 0).sum().abs().sqrt()


@pytest.mark.parametrize("spoil, what", [(bad_loss, "loss nan"), (bad_gradient, "a gradient that is not finite")])
def test_not_finite(photos, tmp_path, monkeypatch, capsys, spoil, what):
    out, real = tmp_path / "run", Trainer._loss

    def loss(self, x, micro):
        value = real(self, x, micro)
        return spoil(value, self.optimizer.network) if micro.step == 4 else value

    monkeypatch.setattr(Trainer, "_loss", loss)
    with pytest.raises(NonFiniteLoss, match=rf"{what}.* at step 4 with lr [\d.e-]+ \(images .*\.png") as caught:
        bitfast.finetune(photos, out=out, **OPTIONS)
    message = str(caught.value)
    assert "\n" not in message and f"--resume --out {out} --allow-change lr --lr 0.001" in message
    assert "checkpoint after step 4" in message and newest(out / "checkpoints").step == 4
    facts = json.loads((out / "non_finite.json").read_text())
    assert facts["step"] == 4 and len(facts["images"]) == 8 and all(os.path.isfile(name) for name in facts["images"])
    assert all(name in message for name in facts["images"])
    assert len([r for r in records(out) if r["kind"] == "train"]) == 4

    monkeypatch.undo()
    command = re.search(r"bitfast (finetune --resume .*?);", message)[1].split()
    assert main(command) == 0
    assert len([r for r in records(out) if r["kind"] == "train"]) == 6


def test_resume_alone_finds_the_newest_run(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "--resume"]) == 2
    assert "--resume: no run in runs; name one: bitfast finetune --resume RUN" in capsys.readouterr().err
    options = {**OPTIONS, "steps": 2}
    runs = [bitfast.finetune(photos, out=f"runs/{name}", **options).out for name in ("a", "c", "b")]
    unfinish(tmp_path / runs[1], 0)
    os.utime(tmp_path / runs[1] / "metrics.jsonl")
    capsys.readouterr()
    assert main(["finetune", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == "runs/c"
    assert bitfast.finetune(resume=True).out == "runs/c", "finished now, and still the newest"


def test_resume_starts_a_run_where_there_is_none(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["finetune", str(photos), "--resume", *flags(**{**OPTIONS, "steps": 2})]
    assert main(command) == 0 and main(command) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 1


def copy_at_step_3(whole, tmp_path):
    shutil.copytree(whole.out, tmp_path / "run")
    unfinish(tmp_path / "run", 4)
    return tmp_path / "run"


def test_a_changed_value_has_to_be_allowed(whole, tmp_path, capsys):
    out = copy_at_step_3(whole, tmp_path)
    command = ["finetune", "--resume", str(out), "--lr", "0.002", "--steps", "8"]
    assert main([*command, "--allow-change", "lr"]) == 2
    said = capsys.readouterr().err
    assert "started with steps = 6, this call says 8" in said and "--allow-change steps" in said
    assert records(out) == records(whole.out), "nothing was touched"
    assert main([*command, "--allow-change", "lr", "--allow-change", "steps"]) == 0
    said = capsys.readouterr().err
    assert "changed: lr = 0.002, before 0.01" in said and "plan\n" in said
    train = [r for r in records(out) if r["kind"] == "train"]
    before = [r for r in records(whole.out) if r["kind"] == "train"]
    assert len(train) == 8 and train[:4] == before[:4] and max(r["lr"] for r in train[4:]) <= 0.002
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["lr"], config["steps"]) == (0.002, 8) and "allow_change" not in config
    assert json.loads((out / "plan.json").read_text())["steps"] == 8


def test_changes_from_python(whole, tmp_path):
    out = copy_at_step_3(whole, tmp_path)
    with pytest.raises(UsageError, match="--steps 3: 4 are done already"):
        bitfast.finetune(out=out, resume=True, steps=3, allow_change="steps")
    run = bitfast.finetune(
        out=out, resume=True, micro_batch=4, save_every=1, allow_change=("micro-batch", "save_every")
    )
    assert run.steps == 6 and newest(out / "checkpoints").facts["micro_batch"] == 4


@pytest.mark.parametrize("name, why", [("lrr", "did you mean 'lr'"), ("model", "a run keeps its model")])
def test_changes_that_cannot_be(whole, name, why, capsys):
    assert main(["finetune", "--resume", whole.out, "--allow-change", name]) == 2
    assert why in capsys.readouterr().err


def test_a_signal_that_a_launcher_passes_on_is_no_second_one(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with signals.stop_signals() as stop, stop.deferred():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.is_set()
        monkeypatch.setattr(signals, "PASSED_ON", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
