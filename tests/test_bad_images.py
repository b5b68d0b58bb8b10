"""Images that cannot be read: "error" stops at once, "skip" goes on with exact counts, also if they go bad later."""

import csv
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from photos import write_class_folders
from safetensors.torch import load_file

import bitfast
from bitfast.cli import main
from bitfast.data.loader import chosen_engine
from bitfast.data.sampler import Sampler
from bitfast.data.transform import Transform
from bitfast.errors import DataError, UsageError
from bitfast.run import RunFolder

# With 24 images this is one epoch, each image seen once, and a batch of step 10 is not read ahead by the end of step 1.
QUICK = dict(model="resnet26x0_5", steps=12, batch_size=2, resize=36, crop=32, lr=0.02, eval_every=4, save_every=3)


@pytest.fixture(params=["dali", "pillow"])
def engine(request):
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return chosen_engine(request.param)


@pytest.fixture
def photos(tmp_path):
    """train/ with 8 and val/ with 2 images of each of three classes."""
    root = tmp_path / "fruit"
    write_class_folders(root / "train", per_class=8)
    write_class_folders(root / "val", per_class=2, seed=9)
    return root


def arguments(data, out, loader, **options):
    options = {**QUICK, "out": out, "loader": loader, **options}
    return [
        str(data),
        *(text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))),
    ]


def rows_of(out):
    with open(out / "bad_images.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def train_records(out):
    return [record for record in RunFolder(out).records() if record["kind"] == "train"]


def weights(out):
    return load_file(RunFolder(out).model / "model.safetensors")


def same(run, other):
    assert [(r["step"], r["loss"], r["images"]) for r in train_records(run)] == [
        (r["step"], r["loss"], r["images"]) for r in train_records(other)
    ]
    expected = weights(other)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())


def damage(path):
    path.write_bytes(path.read_bytes()[:-30])


def once_at(monkeypatch, step, act):
    """Call act() when a run logs this training step."""
    log = RunFolder.log

    def logging(folder, record):
        log(folder, record)
        if record["kind"] == "train" and record["step"] == step:
            act()

    monkeypatch.setattr(RunFolder, "log", logging)


def victim_of(photos, step, batch_size=QUICK["batch_size"]):
    """An image that the batch of this step has."""
    listed = sorted((photos / "train").rglob("*.png"))
    return listed[Sampler(len(listed), batch_size, Transform.test(8)).batch(step).indices[-1]]


@pytest.mark.parametrize("split_folders", [True, False])
def test_error_stops_at_once_and_names_the_next_command(photos, tmp_path, capsys, engine, split_folders):
    data = photos if split_folders else photos / "train"
    zoo.write_broken(photos / "train" / "lime" / "zoo")
    zoo.write_awkward(photos / "train" / "plum" / "fine")
    began = time.monotonic()
    assert main(["finetune", *arguments(data, tmp_path / "out", engine)]) == 3
    assert time.monotonic() - began < 10
    output = capsys.readouterr()
    last = output.err.splitlines()[-1]
    first = photos / "train" / "lime" / "zoo" / sorted(set(zoo.REASONS) - {"folder.jpg"})[0]
    assert last.startswith(f"bitfast: error: {first}: zero bytes ("), last
    assert f"({len(zoo.REASONS)} of " in last and "bitfast check" in last and "--bad-images skip" in last
    assert output.out == "" and not (tmp_path / "out").exists()


def test_skip_trains_on_what_is_left_with_exact_counts(photos, tmp_path, capsys, engine):
    broken = zoo.write_broken(photos / "train" / "lime" / "zoo")
    good = zoo.write_awkward(photos / "train" / "plum" / "fine")
    damage(photos / "val" / "apple" / "0.png")
    before = {path: path.lstat().st_mtime_ns for path in photos.rglob("*")}
    out = tmp_path / "out"
    assert main(["finetune", *arguments(photos, out, engine, bad_images="skip")]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["train_images"] == 24 + len(good) and result["metrics"]["images"] == 5
    assert json.loads((out / "plan.json").read_text())["n_examples"] == 24 + len(good)
    assert f"{len(broken) + 1} unreadable images left out, {len(broken)} of train and 1 of val" in output.err
    rows = rows_of(out)
    assert list(rows[0])[:4] == ["path", "class", "split", "reason"]
    assert sorted(Path(row["path"]).name for row in rows if row["split"] == "train") == broken
    assert [(row["class"], row["reason"]) for row in rows if row["split"] == "val"] == [("apple", "truncated PNG")]
    for row in rows[:-1]:
        assert row["class"] == "lime" and zoo.REASONS[Path(row["path"]).name] in row["reason"]
    assert [r["images"] for r in train_records(out)] == [2] * 12
    with open(out / "splits.csv", newline="", errors="surrogateescape") as file:
        assert len(list(csv.reader(file))) == 1 + 24 + len(good) + 5
    assert {path: path.lstat().st_mtime_ns for path in photos.rglob("*")} == before


def test_skip_draws_the_split_from_readable_images(photos, tmp_path):
    """As if the bad ones had never been there: same held-out images, same few-shot draw."""
    options = {**QUICK, "steps": 2, "examples_per_class": 3}
    clean = bitfast.finetune(photos / "train", out=tmp_path / "clean", **options)
    zoo.write_broken(photos / "train" / "apple" / "zoo", only=["zero bytes.jpg", "page.jpg", "pipe.jpg"])
    skipped = bitfast.finetune(photos / "train", out=tmp_path / "skipped", bad_images="skip", **options)
    assert clean.train_images == skipped.train_images == 9
    same(Path(skipped.out), Path(clean.out))
    assert (tmp_path / "clean" / "splits.csv").read_text() == (tmp_path / "skipped" / "splits.csv").read_text()


def test_a_class_without_readable_images_is_an_error(photos, tmp_path):
    for path in (photos / "train" / "lime").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="class lime: none of its 8 images can be read .*zero bytes.*delete the class"):
        bitfast.finetune(photos, out=tmp_path / "out", bad_images="skip", **QUICK)


def test_gone_bad_during_training_makes_the_batch_smaller(photos, tmp_path, engine, monkeypatch, capsys):
    victim = victim_of(photos, 10)
    once_at(monkeypatch, 1, lambda: damage(victim))
    out = tmp_path / "out"
    options = {**QUICK, "mixup": 0.3, "micro_batch": 2, "bad_images": "skip", "loader": engine}
    result = bitfast.finetune(photos, out=out, **options)
    assert [r["images"] for r in train_records(out)] == [2] * 10 + [1, 2]
    assert all(math.isfinite(r["loss"]) for r in train_records(out)) and result.train_images == 24
    (row,) = rows_of(out)
    assert list(row.values()) == [str(victim), victim.parent.name, "train", "truncated PNG", "10"]
    assert f"bad image at step 10, left out of train from now on: {victim}: truncated PNG" in capsys.readouterr().err

    (out / "result.json").unlink()
    shutil.rmtree(out / "checkpoints" / "step-00000012")
    expected, final = train_records(out), weights(out)
    bitfast.finetune(out=out, resume=True)
    assert [(r["step"], r["loss"]) for r in train_records(out)] == [(r["step"], r["loss"]) for r in expected]
    assert all(torch.equal(tensor, final[name]) for name, tensor in weights(out).items())
    assert len(rows_of(out)) == 1 and "bad_images.csv" in (out / "report.md").read_text()


def test_gone_bad_is_an_error_by_default_and_resumable(photos, tmp_path, engine, monkeypatch, capsys):
    whole = tmp_path / "whole"
    assert main(["finetune", *arguments(photos, whole, engine)]) == 0
    victim = victim_of(photos, 10)
    content = victim.read_bytes()
    once_at(monkeypatch, 1, victim.unlink)
    out = tmp_path / "out"
    capsys.readouterr()
    assert main(["finetune", *arguments(photos, out, engine)]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{victim} went bad during the run: no such file" in last
    assert f"bitfast finetune --resume --out {out}" in last and "--bad-images skip" in last
    monkeypatch.undo()
    assert len(train_records(out)) == 10, "what was trained is kept"
    victim.write_bytes(content)
    assert main(["finetune", "--resume", str(out)]) == 0
    same(out, whole)
    assert not (out / "bad_images.csv").exists()


def test_resume_may_change_the_policy(photos, tmp_path, monkeypatch):
    victim = victim_of(photos, 10)
    once_at(monkeypatch, 1, victim.unlink)
    out = tmp_path / "out"
    with pytest.raises(DataError, match="went bad"):
        bitfast.finetune(photos, out=out, **QUICK)
    monkeypatch.undo()
    result = bitfast.finetune(out=out, resume=True, bad_images="skip")
    assert result.steps == 12 and [r["images"] for r in train_records(out)] == [2] * 10 + [1, 2]
    assert "bad_images: skip" in (out / "config.yaml").read_text()


def test_validation_image_gone_bad_is_left_out_and_counted(photos, tmp_path, engine, monkeypatch):
    victim = photos / "val" / "plum" / "1.png"
    once_at(monkeypatch, 5, lambda: damage(victim))
    out = tmp_path / "out"
    result = bitfast.finetune(photos, out=out, bad_images="skip", loader=engine, **QUICK)
    assert result.metrics["images"] == 5 and result.metrics["bad_images"] == 1
    evals = list(csv.DictReader((out / "results.csv").open()))
    assert [(r["step"], r["images"], r["bad_images"]) for r in evals] == [
        ("4", "6", "0"),
        ("8", "5", "1"),
        ("12", "5", "1"),
    ]
    assert [(row["split"], row["step"]) for row in rows_of(out)] == [("val", "8")]
    predicted = list(csv.DictReader((out / "predictions_val.csv").open()))
    assert str(victim) not in {row["path"] for row in predicted} and len(predicted) == 5
    assert all(Path(row["path"]).parent.name == row["label"] for row in predicted)


def test_evaluation_counts(photos, tmp_path, engine, capsys):
    out = tmp_path / "out"
    bitfast.finetune(photos, out=out, loader=engine, **{**QUICK, "steps": 2})
    broken = zoo.write_broken(photos / "val" / "lime", only=["pipe.jpg", "page.jpg", "zero\nbytes.jpg"])
    command = ["eval", str(out), str(photos), "--loader", engine]
    capsys.readouterr()
    assert main(command) == 3
    assert f"({len(broken)} of 9 images cannot be read)" in capsys.readouterr().err.splitlines()[-1]
    assert main([*command, "--bad-images", "skip"]) == 0
    output = capsys.readouterr()
    metrics = json.loads(output.out)
    assert (metrics["images"], metrics["bad_images"]) == (6, 3)
    assert output.err.count("bad image, left out: ") == 3


def test_when_a_whole_batch_is_gone_the_run_stops(photos, tmp_path, engine, monkeypatch):
    files = sorted((photos / "train").rglob("*.png"))
    contents = [path.read_bytes() for path in files]
    whole = tmp_path / "whole"
    bitfast.finetune(photos, out=whole, bad_images="skip", loader=engine, **QUICK)
    once_at(monkeypatch, 1, lambda: [path.unlink() for path in files])
    out = tmp_path / "out"
    with pytest.raises(
        DataError, match="none of the 2 images of step .* can be read any more .*no such file.*--resume"
    ):
        bitfast.finetune(photos, out=out, bad_images="skip", loader=engine, **QUICK)
    monkeypatch.undo()
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    bitfast.finetune(out=out, resume=True)
    same(out, whole)
    assert not (out / "bad_images.csv").exists()


def checkpoint_tensors(folder):
    (shard,) = folder.glob("*.safetensors")
    return load_file(shard)


def test_a_step_without_images_changes_nothing(photos, tmp_path, monkeypatch):
    victim = victim_of(photos, 11, batch_size=1)
    once_at(monkeypatch, 1, victim.unlink)
    out = tmp_path / "out"
    bitfast.finetune(photos, out=out, bad_images="skip", **{**QUICK, "batch_size": 1, "save_every": 1})
    records = train_records(out)
    assert [r["images"] for r in records] == [1] * 11 + [0] and records[11]["loss"] is None
    before, after = (checkpoint_tensors(out / "checkpoints" / f"step-{step:08d}") for step in (11, 12))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (out / "report.md").is_file()


@pytest.mark.parametrize("with_val", [True, False])
def test_python_objects(photos, tmp_path, with_val):
    """Names such as images[3] are the same in train and val."""
    files = sorted((photos / "train").rglob("*.png"))
    contents, labels = [path.read_bytes() for path in files], [path.parent.name for path in files]
    contents[3] = b"no image"
    val = ([contents[0], contents[9], b"", contents[17]], ["apple", "lime", "lime", "plum"]) if with_val else None
    result = bitfast.finetune((contents, labels), val=val, out=tmp_path / "out", bad_images="skip", **QUICK)
    held = 3 if with_val else result.metrics["images"]
    assert result.train_images == 23 - (0 if with_val else held) and result.metrics["images"] == held
    rows = [(row["path"], row["split"], row["reason"]) for row in rows_of(tmp_path / "out")]
    assert rows[0] == ("images[3]", "train", "not an image: starts with text")
    assert rows[1:] == ([("images[2]", "val", "zero bytes")] if with_val else [])


def test_policies_by_name(photos, tmp_path):
    for call in (lambda: bitfast.finetune(photos, bad_images="ignore"), lambda: bitfast.check(photos, bad_images="x")):
        with pytest.raises(UsageError, match="unknown policy '.*' for bad images: use one of error, skip"):
            call()


def test_pixel_limit_reaches_every_command(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["finetune", *arguments(photos, out, "pillow", steps=1, max_pixels=1919)]) == 3
    assert "image too large: 1920 pixels, over the limit of 1919 (--max-pixels)" in capsys.readouterr().err
    assert main(["finetune", *arguments(photos, out, "pillow", steps=1)]) == 0
    assert main(["eval", str(out), "--max-pixels", "1919"]) == 3
    assert main(["predict", str(out), str(photos / "val"), "--max-pixels", "1919"]) == 3
    assert "too large" in capsys.readouterr().out
    assert main(["eval", str(out), "--max-pixels", "0"]) == 2


def test_predict_keeps_the_bytes_of_a_name(photos, tmp_path):
    out, name = tmp_path / "out", b"latin \xe9.jpg"
    bitfast.finetune(photos, out=out, loader="pillow", **{**QUICK, "steps": 1})
    zoo.write_awkward(tmp_path / "new")
    done = subprocess.run(
        [sys.executable, "-m", "bitfast", "predict", str(out), str(tmp_path / "new")], capture_output=True
    )
    assert done.returncode == 0 and name in done.stdout, done.stderr


def test_batch_without():
    batch = Sampler(10, 7, Transform.test(8), mixup_alpha=0.2).batch(3)
    gone = batch.indices[[1, 6]].tolist()
    rest = batch.without(gone)
    assert rest.indices.tolist() == np.delete(batch.indices, [1, 6]).tolist()
    assert rest.partner.tolist() == [0, 2, 1, 4, 3] and rest.lam == batch.lam
    assert batch.without([]) is batch and len(batch.without(range(10))) == 0
