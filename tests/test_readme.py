"""A new user's way: the README's first run, word for word, on a few photos; and that no command is made up."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from peers import import_onnx
from photos import write_class_folders
from PIL import Image

from bitfast import cli
from bitfast.config import FinetuneConfig
from bitfast.config_file import save_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def commands(text):
    """The arguments of every indented or fenced line that starts with bitfast."""
    lines = re.findall(r"^ {0,4}(?:torchrun .*-m )?bitfast (.*)$", text, flags=re.M)
    return [shlex.split(line, comments=True) for line in lines]


def section(title):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with the photos that the README speaks of; no network."""
    write_class_folders(tmp_path / "photos", per_class=8)
    write_class_folders(tmp_path / "other_photos", per_class=2, seed=1)
    (tmp_path / "more").mkdir()
    photo = np.full((60, 50, 3), (200, 40, 40), np.uint8)
    for name in ("new.jpg", "more/a.jpg", "more/b.png"):
        Image.fromarray(photo).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITFAST_WEIGHTS_URL", "http://127.0.0.1:9/never")
    return tmp_path


def test_first_run_works_word_for_word(here, capsys):
    import_onnx()
    first = section("A first run on your own photos").split("`plan` trains nothing")[0]
    told = [line for line in commands(first) if line[0] in cli.COMMANDS]
    assert [line[0] for line in told] == ["info", "check", "plan", "finetune", "info", "eval", "predict", "export"]
    said = []
    for line in told:
        capsys.readouterr()
        assert cli.main(line) == 0, line
        said.append(capsys.readouterr().out)
    assert "3 classes" in said[1] or "apple" in said[1]
    assert "about" in said[2] and "you" in said[2]
    assert json.loads(said[3])["metrics"]["top1"] > 0.5 and (here / "runs/first/report.md").is_file()
    assert json.loads(said[5])["images"] == 6
    rows = said[6].splitlines()
    assert len(rows) == 4 and all(",apple," in row for row in rows[1:])
    assert (here / "runs/first/export/onnx/model.onnx").is_file()
    assert sorted(path.name for path in here.iterdir()) == ["more", "new.jpg", "other_photos", "photos", "runs"]


def test_weights_that_are_not_here(here, capsys):
    """The README's promise: without a network the error says what to fetch and where to put it."""
    assert cli.main(["finetune", "photos/", "--model", "BiT-M-R50x1", "--out", "runs/photos"]) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert "fetch http://127.0.0.1:9/never/BiT-M-R50x1.npz elsewhere and put it at" in error
    assert not (here / "runs").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_told_exists(page, tmp_path, monkeypatch):
    """Its flags too: the parser takes each line, and nothing is run. runs/photos is there, begun with other values."""
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    save_config(FinetuneConfig(data="photos", lr=0.25), tmp_path / "runs" / "photos" / "config.yaml")
    monkeypatch.chdir(tmp_path)
    for name, *arguments in commands(page.read_text(encoding="utf-8")):
        assert name in cli.COMMANDS, f"{page.name}: bitfast {name}"
        config = cli._parse(name, arguments)
        if "--resume" in arguments or "--config" in arguments:
            assert config.lr == (0.001 if "--lr" in arguments else 0.25), arguments
        if hasattr(config, "validate"):
            config.validate()
