"""--report-to: what TensorBoard and a stand-in for wandb are told, and what is refused before anything starts."""

import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
from photos import write_class_folders

import bitfast
from bitfast.cli import main
from bitfast.errors import UsageError
from bitfast.report.trackers import wandb_mode
from bitfast.run import RunFolder

SMALL = dict(model="resnet26x0_5", steps=4, batch_size=8, resize=36, crop=32, eval_every=2, save_every=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit")


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """A module that notes what it is asked; nobody is logged in."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    module = ModuleType("wandb")
    module.started, module.logged, module.finished = [], [], 0

    def finish():
        module.finished += 1

    def init(**options):
        module.started.append(options)
        return SimpleNamespace(log=lambda values, step: module.logged.append((step, values)), finish=finish)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def expected_scalars(result):
    """{name: [(step, value)]} of a finished run, from its files."""
    records = RunFolder(result.out).records() + [{"kind": "eval", "step": SMALL["steps"], **result.metrics}]
    found = {}
    for record in records:
        part = "train" if record.pop("kind") == "train" else "val"
        step = record.pop("step")
        for name, value in record.items():
            found.setdefault(f"{part}/{name}", []).append((step, value))
    return found


def test_wandb_is_told_everything_and_stays_offline(photos, tmp_path, wandb):
    result = bitfast.finetune(photos, out=tmp_path / "run", report_to="wandb", **SMALL)
    (options,) = wandb.started
    assert options["mode"] == "offline" and options["project"] == "bitfast" and options["name"] == "run"
    assert options["dir"] == str(tmp_path / "run") and options["config"]["batch_size"] == 8
    got = {}
    for step, values in wandb.logged:
        for name, value in values.items():
            got.setdefault(name, []).append((step, value))
    assert got == expected_scalars(result) and wandb.finished == 1
    assert [step for step, _ in got["val/top1"]] == [2, 4] and len(got["train/loss"]) == 4
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    bitfast.finetune(out=tmp_path / "run", resume=True)
    assert wandb.started[1]["id"] == options["id"] and wandb.started[1]["resume"] == "allow"


def test_wandb_is_ended_when_the_run_fails(photos, tmp_path, wandb, monkeypatch):
    monkeypatch.setattr("bitfast.recipes.loop._loop", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bitfast.finetune(photos, out=tmp_path / "run", report_to="wandb", **SMALL)
    assert wandb.finished == 1


def test_tensorboard_reads_the_event_file(photos, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = bitfast.finetune(photos, out=tmp_path / "run", report_to="tensorboard", **SMALL)
    (file,) = (tmp_path / "run").glob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    expected = expected_scalars(result)
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, points in expected.items():
        got = events.Scalars(name)
        assert [event.step for event in got] == [step for step, _ in points]
        assert [event.value for event in got] == pytest.approx([value for _, value in points], rel=1e-6)


@pytest.mark.parametrize(
    "environment, mode",
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "online"}, "offline"),
        ({"WANDB_MODE": "dryrun", "WANDB_API_KEY": "k"}, "offline"),
    ],
)
def test_online_only_with_a_key(environment, mode, tmp_path):
    assert wandb_mode({"NETRC": str(tmp_path / "none"), **environment}) == mode


def test_a_login_in_netrc_counts(tmp_path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / "netrc").chmod(0o600)
    environment = {"NETRC": str(tmp_path / "netrc")}
    assert wandb_mode(environment) == "online"
    assert wandb_mode({**environment, "WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"


@pytest.mark.parametrize(
    "name, words",
    [("tensorbord", "did you mean tensorboard"), ("mlflow", "use tensorboard or wandb"), ("wandb,x", "'x': no such")],
)
def test_unknown_tracker(photos, tmp_path, name, words, wandb):
    with pytest.raises(UsageError, match=words):
        bitfast.finetune(photos, out=tmp_path / "run", report_to=name, **SMALL)
    assert not (tmp_path / "run").exists()


def test_missing_package_is_said_before_anything_starts(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # what wandb leaves in a folder is not the package
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, command in (("wandb", "pip install wandb"), ("tensorboard", "pip install 'bitfast[tensorboard]'")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None) if name == "tensorboard" else None
        monkeypatch.delitem(sys.modules, name, raising=False)
        assert main(["finetune", str(photos), "--report-to", name, "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert f"--report-to {name} needs a package that is not here: {command}" in error
    assert not (tmp_path / "run").exists()
