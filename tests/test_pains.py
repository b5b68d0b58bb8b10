"""docs/pains.md: every test that it names exists; and the tests of what nothing else shows."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from photos import write_class_folders

import bitfast
from bitfast.cli import main
from bitfast.errors import DataError, UsageError
from bitfast.run import RunFolder

ROOT = Path(__file__).parents[1]
SMALL = dict(model="resnet26x0_5", steps=2, batch_size=4, crop=32)
pytestmark = pytest.mark.usefixtures("quick_estimates")
QUICK = ["--model", "resnet26x0_5", "--steps", "2", "--batch-size", "4", "--crop", "32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=4)


def told():
    """{number: [(file, test)]} of the table's rows."""
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", (ROOT / "docs" / "pains.md").read_text(encoding="utf-8"), re.M)
    return {int(number): re.findall(r"`(tests/\S+\.py)::(\w+)`", cell) for number, cell in rows}


@pytest.mark.parametrize("number", range(1, 21))
def test_each_names_tests_that_exist(number):
    assert told()[number]
    for file, name in told()[number]:
        names = [node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
        assert name in names, f"{file} has no {name}"


VALUES = {
    "steps": (7, "steps"),
    "batch_size": (9, "batch size"),
    "lr": (0.0123, "base lr"),
    "weight_decay": (0.0456, "weight decay"),
    "mixup": (0.789, "mixup alpha"),
    "resize": (77, "resize"),
    "crop": (55, "crop"),
    "micro_batch": (6, "micro-batch"),
    "test_crop": ("center", "test crop"),
    "interpolation": ("bicubic", "interpolation"),
    "memory": ("save", "memory"),
    "cache": ("off", "cache"),
}


@pytest.mark.parametrize("way", ["Python", "command line", "file"])
def test_an_explicit_value_wins_and_is_shown(photos, tmp_path, capsys, way):
    given = {name: value for name, (value, _) in VALUES.items()} | {"model": "resnet26x0_5"}
    if way == "Python":
        plan = bitfast.plan(photos, **given).to_dict()
    else:
        options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        if way == "file":
            (tmp_path / "options.yaml").write_text(json.dumps(given))
            options = ["--config", str(tmp_path / "options.yaml")]
        assert main(["plan", str(photos), *options, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in plan["settings"]}
    for value, row in VALUES.values():
        assert str(value) in rows[row]["value"] and rows[row]["origin"] == "you", rows[row]


def test_the_command_line_overrules_the_file(photos, tmp_path, capsys):
    (tmp_path / "options.yaml").write_text(f"data: {photos}\nmodel: R50x1\nlr: 0.5\nsteps: 3\n")
    options = ["plan", "--config", str(tmp_path / "options.yaml"), *QUICK, "--json"]
    assert main(options) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["base_lr"], plan["steps"], plan["batch_size"]) == (0.5, 2, 4)
    plan = bitfast.plan(config=tmp_path / "options.yaml", **SMALL)
    assert (plan.settings.plan.base_lr, plan.settings.plan.steps) == (0.5, 2)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("stepz: 3", UsageError, "no option 'stepz'; did you mean 'steps'"),
        ("steps: many", UsageError, "--steps 'many': it must be an integer or nothing"),
        ("steps: 2.5", UsageError, "--steps 2.5: it must be an integer or nothing"),
        ("no_flip: 1", UsageError, "--no-flip 1: it must be true or false"),
        ("device: tpu", UsageError, "--device 'tpu': it must be one of auto, cpu, cuda"),
        ("model: resnet50", UsageError, "did you mean resnet50x1"),
        ("- steps", DataError, "a YAML mapping is expected"),
    ],
)
def test_mistakes_in_a_file_are_named(photos, tmp_path, text, error, words):
    (tmp_path / "options.yaml").write_text(text)
    with pytest.raises(error, match=words):
        bitfast.plan(photos, config=tmp_path / "options.yaml")


def test_a_config_file_runs_again(photos, tmp_path, capsys):
    first = bitfast.finetune(photos, out=tmp_path / "first", **SMALL, lr=0.02, seed=3)
    config = tmp_path / "first" / "config.yaml"
    assert main(["finetune", "--config", str(config), "--out", str(tmp_path / "again")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"] == first.metrics and again["out"] == str(tmp_path / "again")
    texts = [(tmp_path / name / "config.yaml").read_text() for name in ("first", "again")]
    assert texts[0] == texts[1]


def test_an_empty_class_may_be_gone_without(tmp_path, capsys):
    root = write_class_folders(tmp_path / "fruit", per_class=4)
    (root / "void").mkdir()
    with pytest.raises(DataError, match="void has no images: add images or delete the folder, or .*--allow-empty"):
        bitfast.plan(root, **SMALL)
    assert bitfast.plan(root, **SMALL, allow_empty=True).facts["classes"] == 3
    assert main(["check", str(root)]) == 3
    assert main(["check", str(root), "--allow-empty"]) == 0


def test_waiting_for_images_is_recorded(photos, tmp_path):
    bitfast.finetune(photos, out=tmp_path / "run", **SMALL)
    steps = [record for record in RunFolder(tmp_path / "run").records() if record["kind"] == "train"]
    assert len(steps) == 2 and all(0 <= record["data_wait"] <= 1 for record in steps)


def test_the_whole_way_needs_no_torchvision_timm_or_network(photos, tmp_path):
    """With every connection refused and those packages not to be imported."""
    code = f"""
import socket, sys
for name in ("torchvision", "timm", "transformers", "huggingface_hub", "wandb", "tensorboard"):
    sys.modules[name] = None

def refuse(self, address):
    raise AssertionError(f"connects to {{address}}")

socket.socket.connect = refuse
from bitfast.cli import main
photos, out = {str(photos)!r}, {str(tmp_path / "run")!r}
for arguments in (
    ["info"], ["models"], ["check", photos], ["plan", photos, *{QUICK}],
    ["finetune", photos, "--out", out, *{QUICK}], ["eval", out, photos], ["predict", out, photos],
    ["export", out, "--format", "safetensors"],
):
    assert main(arguments) == 0, arguments
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
