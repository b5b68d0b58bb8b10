"""bitfast predict and bitfast eval: what they take, what they write, and what they never overwrite."""

import csv
import io
import json
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from photos import COLOURS, write_class_folders, write_model

import bitfast
from bitfast.cli import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=3, size=(32, 32))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def names(run, photos):
    """{path: class name} by the Classifier."""
    paths = sorted(map(str, photos.rglob("*.png")))
    return dict(zip(paths, bitfast.load(run).predict(paths).tolist(), strict=True))


def predict(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == code
    output = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(output.out))), output.err


def labels(rows):
    return {row["path"]: row["label"] for row in rows}


def test_folders_files_patterns_and_their_order(capsys, run, photos, names, tmp_path):
    rows, _ = predict(capsys, run, photos)
    assert labels(rows) == names and [row["path"] for row in rows] == list(names)
    assert list(rows[0]) == ["path", "label", "prob", "error"]
    rows, _ = predict(capsys, run, photos / "plum" / "1.png", f"{photos}/a*/*.png", photos / "lime")
    wanted = [f"{photos}/plum/1.png", *(p for p in names if "/apple/" in p), *(p for p in names if "/lime/" in p)]
    assert [row["path"] for row in rows] == wanted and labels(rows) == {path: names[path] for path in wanted}
    rows, _ = predict(capsys, run, f"{photos}/**/2.png")
    assert [row["path"] for row in rows] == [path for path in names if path.endswith("/2.png")]
    for pattern in (f"{photos}/x*.png", tmp_path / "none.png"):
        assert predict(capsys, run, pattern, code=3)[0] == []
    (tmp_path / "void").mkdir()
    assert "no images in this folder" in predict(capsys, run, tmp_path / "void", code=3)[1]


@pytest.mark.parametrize(
    "name, text",
    [
        ("list.csv", "path\n{}"),
        ("list.csv", "label,image_path\nx,{}"),
        ("list.tsv", "file\tnote\n{}\tsome, text"),
        ("list.txt", "{}"),
    ],
)
def test_tables_of_paths(capsys, run, photos, names, tmp_path, name, text):
    header, _, row = text.rpartition("\n")
    rows = [row.format(path) for path in (*names, "gone.png")]
    (tmp_path / name).write_text("\n".join([*filter(None, [header]), *rows, ""]))
    found, said = predict(capsys, run, tmp_path / name)
    assert labels(found[:-1]) == names
    assert found[-1]["path"] == f"{tmp_path}/gone.png" and found[-1]["error"] == "no such file"
    assert "1 of 10 images could not be read" in said


def test_own_columns_and_roots(capsys, run, photos, names, tmp_path):
    (tmp_path / "list.csv").write_text("photo,where\nx,apple/1.png\ny,lime/0.png\n")
    rows, _ = predict(capsys, run, tmp_path / "list.csv", "--image-field", "where", "--image-root", photos)
    assert labels(rows) == {path: names[path] for path in (f"{photos}/apple/1.png", f"{photos}/lime/0.png")}
    error = predict(capsys, run, tmp_path / "list.csv", "--image-field", "who", code=3)[1]
    assert "has no column who (photo, where): correct --image-field" in error


def test_archives_without_labels(capsys, run, photos, names, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos, "some.photos")
        archive.add(__file__, "notes.txt")
    rows, _ = predict(capsys, run, tmp_path / "photos.tar", photos / "lime" / "0.png")
    inside = {row["path"].partition("some.photos/")[2]: row["label"] for row in rows[:-1]}
    assert inside == {path.removeprefix(f"{photos}/"): name for path, name in names.items()}
    assert rows[0]["path"].startswith(f"{tmp_path}/photos.tar:some.photos/") and len(rows) == 10


def test_paths_on_stdin(run, photos, names, tmp_path):
    odd = tmp_path.joinpath("a, b\udcff.png")
    odd.write_bytes((photos / "apple" / "0.png").read_bytes())
    given = [*names, "", str(odd), "gone.png"]
    command = [sys.executable, "-m", "bitfast", "predict", run, "-"]
    text = "\n".join(given).encode(errors="surrogateescape")
    done = subprocess.run(command, input=text, capture_output=True, check=True)
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode(errors="surrogateescape"))))
    assert [row["path"] for row in rows] == [path for path in given if path] and labels(rows[:-2]) == names
    assert rows[-2]["label"] == names[f"{photos}/apple/0.png"] and rows[-1]["error"] == "no such file"
    done = subprocess.run(command, input=b"\n", capture_output=True)
    assert done.returncode == 3 and b"no paths came on stdin" in done.stderr


def test_topk_threshold_and_json(capsys, run, photos, names):
    rows, _ = predict(capsys, run, photos, "--topk", 7)
    assert list(rows[0]) == ["path", "label", "prob", "label_2", "prob_2", "label_3", "prob_3", "error"]
    for row in rows:
        probabilities = [float(row[column]) for column in ("prob", "prob_2", "prob_3")]
        assert sum(probabilities) == pytest.approx(1, abs=2e-6) and sorted(probabilities)[::-1] == probabilities
    level = sorted(float(row["prob"]) for row in rows)[4] + 2e-6
    above, said = predict(capsys, run, photos, "--threshold", level)
    expected = {row["path"]: row["label"] if float(row["prob"]) >= level else "" for row in rows}
    assert labels(above) == expected and list(expected.values()).count("") == 5
    assert "5 of 9 images have no label" in said
    assert main(["predict", str(run), str(photos), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["path"]: line["label"] for line in lines} == names
    assert all(line["top"] == [{"label": line["label"], "prob": line["prob"]}] and not line["error"] for line in lines)


def test_several_labels_in_one_cell(capsys, photos, tmp_path):
    write_model(tmp_path, multilabel=True)
    rows, _ = predict(capsys, tmp_path, photos)
    classifier = bitfast.load(tmp_path)
    for row, expected in zip(rows, classifier.predict([row["path"] for row in rows]), strict=True):
        assert sorted(filter(None, row["label"].split("|"))) == sorted(expected)
        assert len(row["prob"].split("|")) == max(1, len(expected))
    assert any("|" in row["label"] for row in rows)


def test_all_bad_is_exit_code_3(capsys, run, tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_text("x")
    rows, said = predict(capsys, run, tmp_path, code=3)
    assert len(rows) == 2 and all("not an image" in row["error"] and not row["label"] for row in rows)
    assert "2 of 2 images could not be read" in said


def test_nothing_is_overwritten_without_force(capsys, run, photos, names, tmp_path):
    out, array, sibling = (tmp_path / name for name in ("out.csv", "f.npy", "f.csv"))
    for path, option in ((out, ["--output", out]), (array, ["--embed", array]), (sibling, ["--embed", array])):
        path.write_text("precious")
        error = predict(capsys, run, photos, *option, code=2)[1]
        assert f"{path} is there already and is not overwritten" in error and "--force" in error
        assert path.read_text() == "precious" and sorted(tmp_path.iterdir()) == [path]
        path.unlink()
    out.write_text("old")
    assert predict(capsys, run, photos, "--output", out, "--force")[0] == []
    assert labels(csv.DictReader(out.open())) == names
    assert "is a folder" in predict(capsys, run, photos, "--output", tmp_path, "--force", code=2)[1]
    assert "ends in .npy" in predict(capsys, run, photos, "--embed", "x.csv", code=2)[1]
    same = ["--embed", array, "--output", sibling]
    assert "is where --embed lists its paths" in predict(capsys, run, photos, *same, code=2)[1]
    lost = predict(capsys, run, photos, "--output", tmp_path / "no" / "out.csv", code=1)[1]
    assert "out.csv cannot be written (No such file or directory)" in lost


def test_embeddings_with_their_paths(capsys, run, photos, names, tmp_path):
    (tmp_path / "bad.png").write_text("x")
    array = tmp_path / "features.npy"
    rows, _ = predict(capsys, run, photos / "apple", tmp_path / "bad.png", photos / "lime", "--embed", array)
    assert len(rows) == 7 and rows[3]["error"]
    listed = list(csv.DictReader((tmp_path / "features.csv").open()))
    assert [row["path"] for row in listed] == [row["path"] for row in rows if not row["error"]]
    assert [int(row["row"]) for row in listed] == list(range(6))
    features = np.load(array)
    assert features.dtype == np.float32
    expected = bitfast.load(run).embed([row["path"] for row in listed])
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.glob(".*.tmp"))


def test_sorting_copies_and_overwrites_nothing(capsys, photos, tmp_path):
    write_model(tmp_path / "run", classes=("../up", ".hidden", "plain 50%"))
    source = tmp_path / "in"
    for part in ("a", "b"):
        (source / part).mkdir(parents=True)
    for i, path in enumerate(sorted(photos.rglob("*.png"))):
        (source / "ab"[i % 2] / f"{i // 2}.png").write_bytes(path.read_bytes())
    (source / "bad.jpg").write_text("x")
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    rows, _ = predict(capsys, tmp_path / "run", source, "--sort-into", tmp_path / "out")
    copies = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sorted(path.read_bytes() for path in copies) == sorted(
        content for path, content in before.items() if path.name != "bad.jpg"
    )
    folders = {"../up": "%2E.%2Fup", ".hidden": "%2Ehidden", "plain 50%": "plain 50%25"}
    assert rows[0]["error"] and len(rows) == 10
    for row in rows[1:]:
        inside = {path.read_bytes() for path in copies if path.parent.name == folders[row["label"]]}
        assert before[type(source)(row["path"])] in inside
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    predict(capsys, tmp_path / "run", source, "--sort-into", tmp_path / "out")
    again = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert again == copies, "the same files are not copied twice"


def test_a_signal_leaves_whole_rows(run, photos, tmp_path):
    paths = "\n".join(sorted(map(str, photos.rglob("*.png"))) * 400)
    (tmp_path / "list.txt").write_text(paths)
    out = tmp_path / "out.csv"
    arguments = ["predict", run, tmp_path / "list.txt", "--output", out, "--embed", tmp_path / "f.npy", "-b", "4"]
    process = subprocess.Popen([sys.executable, "-m", "bitfast", *map(str, arguments)], stderr=subprocess.PIPE)
    while not out.exists() or out.stat().st_size < 2000:
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 75 and b"whose rows are whole" in said
    text = out.read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.endswith("\n") and 10 < len(rows) < 3600 and all(row["label"] in COLOURS for row in rows)
    assert len(np.load(tmp_path / "f.npy")) == len(list(csv.DictReader((tmp_path / "f.csv").open()))) == len(rows)


def test_values_that_cannot_be(capsys, run, photos):
    for option, words in {
        ("--topk", "0"): "--topk must be at least 1, got 0",
        ("--threshold", "1.5"): "--threshold must be from 0 to 1, got 1.5",
        ("--batch-size", "0"): "--batch-size must be at least 1, got 0",
        ("--max-pixels", "0"): "--max-pixels must be at least 1, got 0",
    }.items():
        assert words in predict(capsys, run, photos, *option, code=2)[1]


def test_eval_writes_predictions_and_json(capsys, run, photos, names, tmp_path):
    out = tmp_path / "out.csv"
    arguments = ["eval", str(run), str(photos), "--predictions", str(out), "--json"]
    assert main(arguments) == 0
    output = capsys.readouterr()
    metrics = json.loads(output.out)
    assert metrics["images"] == 9 and {"top1", "balanced_accuracy", "macro_f1", "ece", "correct"} <= set(metrics)
    assert "top1" not in output.err
    rows = list(csv.DictReader(out.open()))
    assert {row["path"]: row["predicted"] for row in rows} == names
    assert sum(row["label"] == row["predicted"] for row in rows) == metrics["correct"]
    assert main(arguments) == 2 and "is not overwritten" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert main(["eval", str(run), str(photos)]) == 0 and "balanced_accuracy  0." in capsys.readouterr().err


def test_eval_of_a_model_folder_needs_data(capsys, run):
    assert main(["eval", str(run)]) == 3
    assert "has no splits.csv; name a folder" in capsys.readouterr().err
