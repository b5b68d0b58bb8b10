"""`bitfast check`: everything that is in the data and what is wrong with it, by name, as a table and as JSON."""

import json
import os
import shutil

import numpy as np
import pytest
import zoo
from photos import write_class_folders
from PIL import Image

import bitfast
from bitfast.cli import main
from bitfast.data import decode
from bitfast.errors import DataError


@pytest.fixture
def photos(tmp_path):
    write_class_folders(tmp_path / "fruit" / "train", per_class=4)
    write_class_folders(tmp_path / "fruit" / "val", per_class=1, seed=5)
    return tmp_path / "fruit"


def test_fine_data(photos, capsys):
    assert main(["check", str(photos)]) == 0
    table = capsys.readouterr().out
    assert "train 12 images, 12 readable, 3 classes, median 40 x 48 px" in table and "15 PNG" in table
    assert table.endswith(f"{photos}: fine to train on\n") and "warning" not in table
    assert main(["check", str(photos), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["problems"] == [] and report["recalled"] == 15
    assert report["splits"]["train"]["classes"] == {"apple": 4, "lime": 4, "plum": 4}
    assert bitfast.check(photos).to_dict() == report
    assert bitfast.check(photos, cache=False).recalled == 0


def test_every_broken_file_by_name_and_reason(photos, capsys):
    broken = zoo.write_broken(photos / "train" / "lime" / "zoo")
    zoo.write_awkward(photos / "train" / "plum" / "fine")
    before = sorted(photos.rglob("*"))
    assert main(["check", str(photos)]) == 3
    output = capsys.readouterr()
    last = output.err.splitlines()[-1]
    assert last.startswith(f"bitfast: error: {len(broken)} of {15 + 10 + len(broken)} images cannot be read")
    assert "--bad-images skip" in last
    for name in broken:
        shown = decode.shown(photos / "train" / "lime" / "zoo" / name)
        line = next(line for line in output.out.splitlines() if f" {shown}: " in line and "problem" not in line)
        assert zoo.REASONS[name] in line
    report = bitfast.check(photos, bad_images="skip")
    assert report.ok and {os.path.basename(image["path"]) for image in report.unreadable} == set(broken)
    assert all(image["class"] == "lime" and image["split"] == "train" for image in report.unreadable)
    assert report.splits["train"]["images"] == 22 + len(broken) and report.splits["train"]["readable"] == 22
    assert sorted(photos.rglob("*")) == before
    assert main(["check", str(photos), "--bad-images", "skip", "--json"]) == 0


def test_faults_of_classes_are_all_reported(photos, capsys):
    (photos / "val" / "lime").rename(photos / "val" / "Limes")
    (photos / "train" / "void").mkdir()
    shutil.rmtree(photos / "val" / "plum")
    assert main(["check", str(photos)]) == 3
    out = capsys.readouterr().out
    assert "problem: val has class 'Limes' that train does not (did you mean 'lime'?)" in out
    assert "problem: class folder void of" in out and "problem" in out
    assert "warning: classes of train that val lacks: 2, lime, plum" in out


def test_duplicates_within_and_between_splits(photos):
    train, val = photos / "train", photos / "val"
    shutil.copy(train / "apple" / "0.png", train / "apple" / "again.png")
    shutil.copy(train / "apple" / "1.png", val / "apple" / "copy.png")
    shutil.copy(train / "plum" / "2.png", train / "lime" / "other.png")
    report = bitfast.check(photos)
    found = {
        tuple(os.path.relpath(image["path"], photos) for image in group["images"]): (
            group["same_class"],
            group["between_splits"],
        )
        for group in report.duplicates
    }
    assert found == {
        ("train/apple/0.png", "train/apple/again.png"): (True, False),
        ("train/apple/1.png", "val/apple/copy.png"): (True, True),
        ("train/lime/other.png", "train/plum/2.png"): (False, False),
    }
    assert report.ok and len(report.warnings) == 2


def test_kinds_of_images(photos):
    folder, exif = photos / "train" / "lime", Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(folder / "0.png")
    picture.save(folder / "turned.jpg", exif=exif)
    picture.save(folder / "x.bmp")
    picture.save(folder / "x.webp")
    picture.save(folder / "x.tif")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "deep.png")
    picture.resize((300, 40)).save(folder / "wide.png")
    picture.resize((20, 20)).save(folder / "tiny.png")
    (folder / ".hidden").mkdir()
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    report = bitfast.check(photos)
    assert report.formats == {"PNG": 19, "JPEG": 2, "BMP": 1, "TIFF": 1, "WEBP": 1}
    kinds = {trait: [os.path.basename(name) for name in names] for trait, names in report.traits.items()}
    assert kinds == {
        "EXIF-rotated": ["turned.jpg"],
        "16-bit": ["deep.png"],
        "alpha": ["alpha.png"],
        "CMYK": ["cmyk.jpg"],
        "grayscale": ["deep.png"],
        "tiny": ["tiny.png"],
        "extreme aspect": ["wide.png"],
    }
    assert report.ignored == {".txt": 1, "hidden files and system litter": 2}


def test_imbalance(tmp_path):
    write_class_folders(tmp_path / "a", per_class=11, classes=["apple"])
    write_class_folders(tmp_path / "a", per_class=1, classes=["plum"], seed=3)
    (warning,) = bitfast.check(tmp_path / "a").warnings
    assert warning.startswith("imbalanced: apple has 11 images, plum 1 (11 to 1)")


def test_other_kinds_of_data(photos, tmp_path, capsys):
    table = tmp_path / "list.csv"
    table.write_text("path,label\nfruit/train/apple/0.png,apple\nfruit/train/plum/0.png,plum\nfruit/gone.png,plum\n")
    report = bitfast.check(table)
    assert [(image["reason"], image["class"]) for image in report.unreadable] == [("no such file", "plum")]
    arrays = np.zeros((4, 8, 8, 3), np.uint8)
    arrays[1:] += np.arange(3, dtype=np.uint8)[:, None, None, None]
    report = bitfast.check((arrays, ["x", "x", "y", "y"]))
    assert report.ok and report.formats == {"pixels": 4}
    assert [[image["path"] for image in group["images"]] for group in report.duplicates] == [["images[0]", "images[1]"]]
    with pytest.raises(DataError, match="no such folder"):
        bitfast.check(tmp_path / "nowhere")
    assert main(["check", str(tmp_path / "nowhere")]) == 3
    assert main(["check", str(photos), "--max-pixels", "0"]) == 2
    assert "--max-pixels must be at least 1" in capsys.readouterr().err


def test_pixel_limit_is_settable(photos, capsys):
    assert main(["check", str(photos), "--max-pixels", "1919"]) == 3
    assert "image too large: 1920 pixels, over the limit of 1919 (--max-pixels)" in capsys.readouterr().out
    assert main(["check", str(photos), "--max-pixels", "1920"]) == 0
