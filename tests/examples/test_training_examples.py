"""The training scripts of examples/ on a few small photos, as a user starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from photos import write_class_folders
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"
NETWORK = "resnet26x0_5"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=6)


def start(name, *arguments, cwd):
    """Lines on stdout of an example."""
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_finetune_folder(photos, tmp_path):
    lines = start(
        "finetune_folder.py", photos, NETWORK, "--steps", "3", "--batch-size", "4", "--crop", "32", cwd=tmp_path
    )
    assert lines[0] == "plan" and "top-1" in "".join(lines)
    assert "classes: apple, lime, plum" in lines
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model" / "model.safetensors").is_file()


def losses(lines):
    return torch.tensor([float(found[1]) for line in lines if (found := re.search(r"loss (\S+)", line))])


def test_both_ways_of_a_custom_loop_are_one(photos, tmp_path):
    options = ["--steps", "6", "--batch-size", "6"]
    fast = start("finetune_custom_loop.py", photos, NETWORK, *options, "--out", "a.safetensors", cwd=tmp_path)
    plain = start("finetune_custom_loop.py", photos, NETWORK, *options, "--drop-in", cwd=tmp_path)
    assert len(losses(fast)) == 6
    torch.testing.assert_close(losses(fast), losses(plain), rtol=1e-4, atol=1e-5)
    assert losses(fast)[0] == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-5)
    assert len(set(losses(fast).tolist())) > 3
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "custom.safetensors")
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=1e-4, msg=name)


def test_sweep(photos, tmp_path):
    options = ["--shots", "1", "2", "--seeds", "2", "--steps", "2", "--batch-size", "4", "--crop", "32"]
    lines = start("sweep_fewshot.py", photos, NETWORK, *options, cwd=tmp_path)
    assert lines[-3].split() == ["shots", "top-1", "spread", "runs"]
    assert [line.split()[0] for line in lines[-2:]] == ["1", "2"]
    runs = sorted(path.name for path in (tmp_path / "runs" / "fewshot").iterdir())
    assert runs == ["1-shot-0", "1-shot-1", "2-shot-0", "2-shot-1"]
    splits = [(tmp_path / "runs" / "fewshot" / run / "splits.csv").read_text() for run in runs]
    assert splits[0] != splits[1] and len(set(splits)) == 4
    assert start("sweep_fewshot.py", photos, NETWORK, *options, cwd=tmp_path)[-3:] == lines[-3:], "done is done"
