"""What a run leaves behind: the tables against an independent count, the page well-formed and closed to the world."""

import csv
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from photos import write_class_folders
from PIL import Image
from report_runs import class_names, finished, label_sets_of, predictions_of, started, write_photos

import bitfast
from bitfast.cli import _parse, main
from bitfast.config_file import load_config
from bitfast.data.dataset import Split
from bitfast.data.sampler import Sampler
from bitfast.data.source import Arrays
from bitfast.data.transform import Transform
from bitfast.errors import DataError, UsageError
from bitfast.report import sheet
from bitfast.report.markup import VOID, element
from bitfast.report.record import Record, wilson
from bitfast.run import RunFolder

ODD = ("<script>alert(1)</script>", 'say "hi" & <b>', "مرحبا", "日本語", "a|b", "long " * 30)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), [f"{i}.png" for i in range(30)])


@pytest.fixture(scope="module")
def ten(photos, tmp_path_factory):
    """(folder, predictions) of a run with ten classes."""
    predictions = predictions_of(10, 400)
    return finished(tmp_path_factory.mktemp("runs") / "ten", predictions, class_names(10), photos), predictions


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was really trained, with MixUp."""
    data = write_class_folders(tmp_path_factory.mktemp("data") / "fruit")
    options = dict(model="resnet26x0_5", steps=4, batch_size=8, resize=36, crop=32, eval_every=2, mixup=0.3)
    return bitfast.finetune(data, out=tmp_path_factory.mktemp("runs") / "fruit", **options)


def rows_of(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """Tags balanced, no script and nothing that a browser would fetch; the text of it all."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.tags, self.headings = [], "", [], []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names))
        assert not any(name.startswith("on") for name in names)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data and "@import" not in data
        else:
            self.text += data + "\n"
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings.append(int(self.open[-1][1]))


def check_closed(path):
    """The parsed page, after everything that can be seen without a browser is seen to be right."""
    page = Page(Path(path).read_text(encoding="utf-8"))
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            value = attributes.get(name, "data:")
            assert value.startswith("data:") or (value.startswith("#") and value[1:] in ids), (tag, name, value[:80])
        assert "url(" not in attributes.get("style", "")
        if tag == "img":
            assert attributes["alt"].strip()
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"].strip()
    assert page.headings[0] == 1 and set(page.headings) <= {1, 2} and page.headings.count(1) == 1
    assert dict(page.tags)["html"]["lang"] == "en" and any(a.get("name") == "viewport" for _, a in page.tags)
    return page


def test_tables_agree_with_a_count_by_hand(ten):
    folder, predictions = ten
    classes = class_names(10)
    guesses = predictions.probabilities.argmax(1)
    rows = rows_of(folder.path / "predictions_val.csv")
    assert len(rows) == 400
    for row, label, p in zip(rows, predictions.labels, predictions.probabilities, strict=True):
        order = sorted(range(10), key=lambda c: -p[c])
        names = [row["predicted"], *(row[f"predicted_{k}"] for k in range(2, 6))]
        assert row["label"] == classes[label] and names == [classes[c] for c in order[:5]]
        assert float(row["probability"]) == pytest.approx(p.max(), abs=1e-6)
        assert float(row["probability_5"]) == pytest.approx(p[order[4]], abs=1e-6)
        assert float(row["loss"]) == pytest.approx(-np.log(p[label]), rel=1e-4)
    matrix = np.zeros((10, 10), int)
    for label, guess in zip(predictions.labels, guesses, strict=True):
        matrix[label, guess] += 1
    run = bitfast.Run(folder.path)
    assert run.metrics == pytest.approx(predictions.metrics())
    np.testing.assert_array_equal(run.confusion_matrix(), matrix)
    pairs = run.most_confused(100)
    assert sum(n for *_, n in pairs) == (predictions.labels != guesses).sum()
    assert [n for *_, n in pairs] == sorted((n for *_, n in pairs), reverse=True)
    assert all(matrix[classes.index(a), classes.index(b)] == n for a, b, n in pairs)
    losses = -np.log(predictions.probabilities[np.arange(400), predictions.labels])
    assert [t.loss for t in run.top_losses(20)] == pytest.approx(sorted(losses, reverse=True)[:20], rel=1e-5)
    worst = run.top_losses(1)[0]
    assert worst.path == rows[losses.argmax()]["path"] and worst.label == classes[predictions.labels[losses.argmax()]]
    per_class = rows_of(folder.path / "per_class.csv")
    assert [int(row["images"]) for row in per_class] == matrix.sum(1).tolist()
    recall = matrix.diagonal() / matrix.sum(1)
    assert [float(row["recall"]) for row in per_class] == pytest.approx(recall, abs=1e-4)
    evaluations = rows_of(folder.path / "results.csv")
    assert [int(row["step"]) for row in evaluations] == [10, 20, 30, 40]
    assert float(evaluations[-1]["top1"]) == predictions.top1


def test_calibration_agrees_with_a_count_by_hand(ten):
    folder, predictions = ten
    confidence, right = predictions.probabilities.max(1), predictions.probabilities.argmax(1) == predictions.labels
    bins = rows_of(folder.path / "calibration.csv")
    assert sum(int(b["images"]) for b in bins) == 400 and len(bins) > 5
    gap = 0
    for b in bins:
        inside = (confidence > float(b["low"])) & (confidence <= float(b["high"]))
        assert int(b["images"]) == inside.sum() and float(b["accuracy"]) == pytest.approx(
            right[inside].mean(), rel=1e-4
        )
        gap += abs(float(b["accuracy"]) - float(b["confidence"])) * inside.sum() / 400
    assert gap == pytest.approx(predictions.metrics()["ece"], rel=1e-4)


@pytest.mark.parametrize(
    "share, n, low, high", [(0.5, 10, 0.2366, 0.7634), (1.0, 10, 0.7225, 1.0), (0.0, 4, 0.0, 0.4899)]
)
def test_wilson_interval(share, n, low, high):
    """Against tables of the interval."""
    assert wilson(share, n) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize("count, images", [(2, 40), (10, 300), (120, 600), (3000, 900)])
def test_page_of_any_number_of_classes(photos, tmp_path, count, images):
    predictions = predictions_of(count, images)
    folder = finished(tmp_path / "run", predictions, class_names(count), photos)
    page = check_closed(folder.report_html)
    hits, low, high = (
        (predictions.probabilities.argmax(1) == predictions.labels).sum(),
        *wilson(predictions.top1, images),
    )
    assert f"{hits:,} of {images:,} validation images are named right: {predictions.top1:.1%}" in page.text
    assert f"{100 * low:.1f} to {high:.1%}" in page.text
    for words in ("Most confused classes", "training loss", "learning rate", "peak memory", "norm_conv", "origin"):
        assert words in page.text, words
    assert ("Confusion matrix: images" in page.text) == (count <= 50)
    assert ("is in confusion_matrix.csv" in page.text) == (count == 120)
    assert (folder.path / "confusion_matrix.csv").exists() == (count <= 2000)
    assert "Most confused" in folder.report_md.read_text() and len(rows_of(folder.path / "per_class.csv")) == count
    assert folder.report_html.stat().st_size < 1_500_000
    if count > 2000:
        with pytest.raises(UsageError, match="3,000 classes: above 2,000 no matrix is made, use most_confused"):
            bitfast.Run(folder.path).confusion_matrix()


def test_no_matrix_of_many_classes_is_allocated(photos, tmp_path, monkeypatch):
    predictions = predictions_of(3000, 300)
    monkeypatch.setattr(type(predictions), "confusion", property(lambda self: pytest.fail("a matrix was made")))
    finished(tmp_path / "run", predictions, class_names(3000), photos)


def test_odd_names_are_text(tmp_path):
    files = ["<img src=x onerror=alert(1)>.png", 'q"uote.png', "עברית.png", "x" * 200 + ".png"]
    folder = finished(tmp_path / "run", predictions_of(6, 60), ODD, write_photos(tmp_path / "photos", files))
    page = check_closed(folder.report_html)
    for name in (*ODD, *files):
        assert name.strip() in page.text, name
    isolated = [attributes for tag, attributes in page.tags if tag == "bdi"]
    assert len(isolated) > 40
    assert "<script" not in folder.report_md.read_text()


def test_names_that_are_no_unicode():
    assert element("p", "a\udcffb\0c\n") == "<p>a\ufffdb\ufffdc\n</p>"
    assert element("p", title='"<&') == '<p title="&quot;&lt;&amp;"></p>'


def test_multilabel_page(photos, tmp_path):
    predictions = label_sets_of(8, 120)
    folder = finished(tmp_path / "run", predictions, class_names(8), photos)
    page = check_closed(folder.report_html)
    assert f"Mean average precision {predictions.metrics()['mAP']:.1%} on 120" in page.text
    assert "average precision" in page.text and "Most confused" not in page.text and "and is there in" in page.text
    bins = rows_of(folder.path / "calibration.csv")
    assert sum(int(b["images"]) for b in bins) == 8 * 120
    run = bitfast.Run(folder.path)
    assert [t.loss for t in run.top_losses(5)] == pytest.approx(sorted(predictions.losses, reverse=True)[:5], rel=1e-5)
    with pytest.raises(DataError, match="confusion_matrix.csv: it is made where an image has one label"):
        run.confusion_matrix()


def test_without_validation_and_unfinished(tmp_path, capsys):
    whole = started(tmp_path / "whole")
    whole.model.mkdir()
    page = check_closed(bitfast.Run(whole.path).report())
    assert "No validation split, so no accuracy." in page.text and "Top losses" not in page.text
    half = started(tmp_path / "half", steps_done=13)
    assert main(["report", str(half.path)]) == 0
    assert json.loads(capsys.readouterr().out)["report_html"] == str(half.report_html)
    page = check_closed(half.report_html)
    assert "Not finished: 13 of 40 steps are done." in page.text
    with pytest.raises(DataError, match="it is not finished, continue it with bitfast finetune --resume"):
        bitfast.Run(half.path).top_losses()
    check_closed(bitfast.Run(started(tmp_path / "new", steps_done=0).path).report())


def test_report_of_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 3
    assert f"{tmp_path} is not a run (it has no config.yaml)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plan.json", "metrics.jsonl", "config.yaml"])
def test_damaged_files_are_named(tmp_path, capsys, name):
    folder = started(tmp_path / "run")
    (folder.path / name).write_text("{oops\n")
    assert main(["report", str(folder.path)]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(folder.path / name) in error


@pytest.mark.parametrize("k", [0, 101])
def test_only_so_many_are_kept(ten, k):
    with pytest.raises(UsageError, match="k must be from 1 to 100"):
        bitfast.Run(ten[0].path).top_losses(k)


def test_images_that_are_gone_are_shown_as_such(tmp_path):
    paths = write_photos(tmp_path / "photos", [f"{i}.png" for i in range(6)])
    folder = finished(tmp_path / "run", predictions_of(3, 6), class_names(3), paths)
    before = folder.report_html.read_text()
    Path(paths[0]).unlink()
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:200])
    page = check_closed(bitfast.Run(folder.path).report())
    assert "cannot be read" not in before and page.text.count("cannot be read any more: ") == 2
    assert "no such file" in page.text and "truncated PNG" in page.text
    folder.top_losses.unlink()
    assert "no picture" in check_closed(bitfast.Run(folder.path).report()).text


def test_an_image_that_goes_bad_before_the_report(tmp_path):
    paths = write_photos(tmp_path / "photos", ["0.png", "1.png"])
    Path(paths[1]).write_text("no picture")
    folder = finished(tmp_path / "run", predictions_of(2, 2), class_names(2), paths)
    assert "cannot be read: not an image" in check_closed(folder.report_html).text


def test_a_moved_run_makes_the_same_report(ten, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(ten[0].path, moved)
    (moved / "report.html").unlink()
    bitfast.Run(moved).report()
    here, there = str(ten[0].path), str(moved)
    assert (moved / "report.html").read_text().replace(there, here) == ten[0].report_html.read_text()


def test_a_real_run(trained):
    folder = RunFolder(trained.out)
    page = check_closed(trained.report_html)
    assert trained.confusion_matrix().sum() == trained.metrics["images"] == 3
    assert trained.report() == trained.report_html and json.loads(trained.to_json())["report"] == str(folder.report_md)
    assert len(trained.top_losses(3)) == 3 and "Environment" in page.text and "training time" in page.text
    command = folder.command.read_text().strip()
    assert "--mixup 0.3" in command
    assert command in page.text and command.startswith("bitfast finetune /")

    again = _parse("finetune", shlex.split(command)[2:])
    assert again == load_config(bitfast.FinetuneConfig, folder.config), "the command starts the same run"
    ops = json.loads((folder.path / "env.json").read_text())["ops"]
    assert {"norm_conv", "stem_pool"} <= {op["op"] for op in ops} and all(op["impl"] and op["why"] for op in ops)
    records = [r for r in folder.records() if r["kind"] == "train"]
    assert all(r["peak_memory_bytes"] > 50 << 20 and r["seconds"] > 0 for r in records)
    speed = Record(folder.path).speed
    assert speed.images_per_second == pytest.approx(32 / sum(r["seconds"] for r in records), rel=1e-3)


def test_first_batch_is_what_the_network_got(trained):
    tiles = sheet.read_sheet(RunFolder(trained.out).train_batch)
    assert len(tiles) == 8
    names = {"apple", "lime", "plum"}
    for tile in tiles:
        parts = re.fullmatch(r"(\d\.\d\d) (\w+) \+ (\d\.\d\d) (\w+)", tile.caption)
        assert parts and {parts[2], parts[4]} <= names and float(parts[1]) + float(parts[3]) == pytest.approx(1)


def test_first_batch_against_its_formula():
    """Windows, flips and mixing by hand, of images that need no resize."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 160, 160, 3), dtype=np.uint8)
    split = Split(Arrays(pixels), np.arange(9) % 3, ("a", "b", "c"))
    transform = Transform.train(160, sheet.EDGE)
    sampler = Sampler(9, 6, transform, 0.4, 0)
    batch, tiles = sampler.batch(0), sheet.train_batch(split, transform, sampler, "pillow", {})
    windows = []
    for i, y, x, flip in zip(batch.indices, batch.crop_y, batch.crop_x, batch.flip, strict=True):
        window = pixels[i, y : y + sheet.EDGE, x : x + sheet.EDGE].astype(float)
        windows.append(window[:, ::-1] if flip else window)
    for row, tile in enumerate(tiles):
        expected = batch.lam * windows[row] + (1 - batch.lam) * windows[batch.partner[row]]
        assert np.abs(np.asarray(tile.picture) - expected).max() <= 1
    gone = int(batch.indices[0])
    assert len(sheet.train_batch(split, transform, sampler, "pillow", {gone: 0})) == 5


def test_sheet_is_read_back_as_it_was_written(tmp_path):
    tiles = [sheet.Tile(Image.new("RGB", (144, 100 - i), (9 * i, 0, 50)), f"Überß {i} \udcff" * 9) for i in range(8)]
    tiles.append(sheet.Tile(None, "日本", "truncated JPEG"))
    sheet.write_sheet(tmp_path / "plots" / "sheet.png", tiles)
    back = sheet.read_sheet(tmp_path / "plots" / "sheet.png")
    assert [(t.caption, t.why) for t in back] == [(t.caption, t.why) for t in tiles]
    for got, expected in zip(back[:-1], tiles[:-1], strict=True):
        np.testing.assert_array_equal(np.asarray(got.picture), np.asarray(expected.picture))
    assert back[-1].picture is None
    assert sheet.read_sheet(tmp_path / "none.png") == []
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    assert sheet.read_sheet(tmp_path / "bad.png") == []
