"""A fine-tune from every kind of data: table, shards, arrays, lists and datasets train alike, and resume."""

import csv
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
from photos import write_class_folders
from PIL import Image

import bitfast
from bitfast.cli import main
from bitfast.errors import DataError, UsageError
from bitfast.run import RunFolder

SMALL = dict(model="resnet26x0_5", steps=4, batch_size=4, resize=36, crop=32, lr=0.02, save_every=2)
QUICK = ["--model", "resnet26x0_5", "--steps", "2", "--batch-size", "4", "--resize", "36", "--crop", "32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=6)


@pytest.fixture(scope="module")
def listed(photos):
    paths = sorted(photos.rglob("*.png"))
    return paths, [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory):
    return losses(bitfast.finetune(photos, out=tmp_path_factory.mktemp("runs") / "folder", **SMALL).out)


def losses(folder):
    return [record["loss"] for record in RunFolder(folder).records() if record["kind"] == "train"]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def write_tars(folder, paths, labels):
    for start in range(0, len(paths), 5):
        with tarfile.open(folder / f"s-{start // 5:03d}.tar", "w") as archive:
            for i in range(start, min(start + 5, len(paths))):
                archive.add(paths[i], f"{i:06d}.png")
                label = tarfile.TarInfo(f"{i:06d}.cls")
                label.size = len(labels[i])
                archive.addfile(label, io.BytesIO(labels[i].encode()))


def forms(listed, folder):
    paths, labels = listed
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "class"), *zip(paths, labels, strict=True)])
    write_tars(folder, paths, labels)
    last = (len(paths) - 1) // 5
    return {
        "table": str(folder / "labels.csv"),
        "tars": str(folder / f"s-{{000..{last:03d}}}.tar"),
        "arrays": (np.stack([pixels(path) for path in paths]), labels),
        "dataset": [(Image.open(path), label) for path, label in zip(paths, labels, strict=True)],
    }


@pytest.mark.parametrize("form", ["table", "tars", "arrays", "dataset"])
def test_every_form_trains_the_same_and_resumes(form, listed, expected, tmp_path):
    data = forms(listed, tmp_path)[form]
    run = bitfast.finetune(data, out=tmp_path / "run", **SMALL)
    assert losses(run.out) == expected
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    if isinstance(data, str):
        assert main(["finetune", "--resume", run.out]) == 0
    else:
        with pytest.raises(UsageError, match=r"names images of Python objects .*bitfast.finetune\(data, resume=True"):
            bitfast.finetune(out=run.out, resume=True)
        assert main(["eval", run.out]) == 2
        with pytest.raises(DataError, match="give the same data again"):
            bitfast.finetune(data[:-1] if form == "dataset" else (data[0], data[1][::-1]), out=run.out, resume=True)
        bitfast.finetune(data, out=run.out, resume=True)
    assert losses(run.out) == expected


def test_the_command_line_takes_tables_and_shards(listed, tmp_path, capsys):
    paths = forms(listed, tmp_path)
    out = tmp_path / "run"
    assert main(["finetune", paths["tars"], "--val", paths["table"], "--out", str(out), *QUICK]) == 0
    assert f"{paths['tars']} for training, {paths['table']} for validation" in capsys.readouterr().err
    with open(out / "splits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36 and {row["split"] for row in rows} == {"train", "val"}
    assert rows[0]["path"] == f"{tmp_path}/s-000.tar:000000.png"
    assert all(os.path.isfile(row["path"]) for row in rows if row["split"] == "val")
    assert main(["eval", str(out)]) == 0 and main(["eval", str(out), paths["tars"]]) == 0
    assert main(["finetune", str(out / "splits.csv"), "--out", str(tmp_path / "again"), *QUICK]) == 0
    assert losses(tmp_path / "again") == losses(out)


def test_a_classifier_takes_what_a_fine_tune_takes(photos, listed, tmp_path):
    classifier = bitfast.load(bitfast.finetune(photos, out=tmp_path / "run", **SMALL).out)
    paths, labels = listed
    arrays = np.stack([pixels(path) for path in paths])
    expected = classifier.predict_proba(paths)
    for images in (arrays, list(arrays), [Image.open(path) for path in paths], [path.read_bytes() for path in paths]):
        np.testing.assert_allclose(classifier.predict_proba(images), expected, atol=1e-6)
    assert [p.path for p in classifier.stream(arrays[:2])] == ["images[0]", "images[1]"]
    assert [p.path for p in classifier.stream(paths[:2])] == [str(path) for path in paths[:2]]
    assert classifier.top_k(str(paths[0])) == classifier.top_k([paths[0]])
    metrics = classifier.evaluate((arrays, labels)).metrics()
    assert metrics == pytest.approx(classifier.evaluate(photos).metrics()) and metrics["images"] == 18


def test_awkward_class_names_survive_to_the_report(photos, tmp_path):
    names = ["$\\frac$", 'a|b, "c"', "new\nline", "ünï 花", " x "]
    for i, name in enumerate(names):
        shutil.copytree(photos / ("apple", "lime")[i % 2], tmp_path / "d" / name)
    run = bitfast.finetune(tmp_path / "d", val=tmp_path / "d", out=tmp_path / "run", **SMALL)
    assert bitfast.load(run.out).classes_ == tuple(sorted(names))
    with open(tmp_path / "run" / "per_class.csv", newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == sorted(names)


@pytest.mark.parametrize(
    "name, content, code, words",
    [
        ("gone.csv", None, 3, ["no such folder, table or pattern"]),
        ("empty.csv", "", 3, ["is empty"]),
        ("lost.csv", "path,label\nx.png,a\ny.png,b\n", 3, ["lost.csv line 2: no such file", "2 of 2", "--image-root"]),
        ("odd.xyz", "path,label\n", 3, ["odd.xyz is a file, not a folder"]),
        ("no-{0..3}.tar", None, 3, ["no-0.tar: no such file"]),
        ("no-*.tfrecord", None, 3, ["no file matches"]),
    ],
)
def test_mistakes_are_one_line_with_their_exit_code(tmp_path, capsys, name, content, code, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert main(["finetune", str(tmp_path / name), *QUICK]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bitfast: error: ")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), errors


def test_an_empty_separator_is_refused(photos, capsys):
    assert main(["finetune", str(photos), "--label-separator", "", *QUICK]) == 2
    assert "--label-separator must be at least one character" in capsys.readouterr().err
