"""Listing folders and lists, joining classes by name, splitting, few-shot draws, splits.csv; errors."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from bitfast.data import folder
from bitfast.data.dataset import open_dataset
from bitfast.errors import UsageError


def names_of(split):
    return [split.classes[label] for label in split.labels]


def test_classes_are_sorted_by_code_point(tree):
    data = open_dataset(tree({"ant": 2, "10": 2, "Zebra": 2, "2": 2, "1": 2}), val_split=0)
    assert data.train.classes == ("1", "10", "2", "Zebra", "ant")
    assert data.val is None
    assert [Path(path).parent.name for path in data.train.images.paths] == names_of(data.train)
    assert data.train.labels.dtype == np.int64 and len(data.train) == 10
    assert all(os.path.isabs(path) for path in data.train.images.paths)


def test_litter_is_left_out_and_other_files_are_counted(save, tree):
    root = tree({"a": 2, "b": 2})
    for litter in (".ipynb_checkpoints/x.png", "__MACOSX/a/y.png", "a/.hidden/z.png"):
        save(root / litter)
    for name in ("Thumbs.db", "a/desktop.ini", "a/._000.png"):
        (root / name).write_bytes(b"x")
    for name in ("a/notes.txt", "b/x.SVG", "b/y.svg", "b/LICENSE"):
        (root / name).write_bytes(b"x")
    save(root / "cover.png")
    data = open_dataset(root, val_split=0)
    assert data.train.classes == ("a", "b") and len(data.train) == 4
    assert data.ignored == {".txt": 1, ".svg": 2, "(no suffix)": 1, folder.STRAY: 1}


def test_class_is_the_first_level_and_any_supported_suffix_counts(save, tree):
    root = tree({"a": 0, "b": 1})
    for i, suffix in enumerate("jpg JPEG jpe png bmp tif TIFF webp ppm".split()):
        save(root / "a" / "deep" / str(i) / f"x.{suffix}", seed=i)
    (root / "a" / "deep" / "loop").symlink_to(root / "a")
    data = open_dataset(root, val_split=0)
    assert names_of(data.train) == ["a"] * 9 + ["b"]


@pytest.mark.parametrize("val_name", ["val", "valid", "validation", "test", "Val"])
def test_split_folders(tree, tmp_path, val_name):
    tree({"cat": 3, "dog": 3, "emu": 1}, tmp_path / "d" / "train")
    tree({"dog": 2, "emu": 0}, tmp_path / "d" / val_name)
    data = open_dataset(tmp_path / "d")
    assert len(data.train) == 7 and len(data.val) == 2
    assert data.val.classes == data.train.classes == ("cat", "dog", "emu")
    assert names_of(data.val) == ["dog", "dog"]
    assert str(tmp_path / "d" / val_name) in data.origin


def test_train_may_be_a_class_but_not_when_it_holds_classes(tree, tmp_path):
    assert open_dataset(tree({"bus": 2, "train": 2}, tmp_path / "vehicles"), val_split=0).train.classes == (
        "bus",
        "train",
    )
    root = tmp_path / "split"
    tree({"cat": 2, "dog": 2}, root / "train")
    (root / "annotations").mkdir()
    assert open_dataset(root, val_split=0).train.classes == ("cat", "dog")


def test_separate_validation_folder_and_lists(tree, tmp_path):
    root, other = tree({"cat": 2, "dog": 2}), tree({"dog": 1}, tmp_path / "other")
    assert names_of(open_dataset(root, val=other).val) == ["dog"]
    paths = [str(root / "cat" / "000.png"), root / "dog" / "000.png"]
    data = open_dataset((paths, ["x", "y"]), val=([paths[0]], ["y"]))
    assert data.train.classes == ("x", "y") and names_of(data.val) == ["y"]
    assert open_dataset((paths, np.array([10, 9])), val_split=0).train.classes == ("10", "9")


def test_split_is_stratified_seeded_and_disjoint(tree):
    root = tree({"one": 1, "two": 2, "many": 40, "some": 14})
    data = open_dataset(root, val_split=0.1, seed=3)
    assert [names_of(data.val).count(name) for name in data.train.classes] == [4, 0, 1, 1]
    assert not set(data.train.images.paths) & set(data.val.images.paths)
    assert len(data.train) + len(data.val) == 57
    assert data.origin == f"10% of each class of {root} held out for validation (seed 3)"
    assert open_dataset(root, val_split=0.1, seed=3).val.images.paths == data.val.images.paths
    assert open_dataset(root, val_split=0.1, seed=4).val.images.paths != data.val.images.paths


@pytest.mark.parametrize("seed", range(8))
def test_duplicates_stay_on_one_side(tree, seed):
    root = tree({"a": 6, "b": 6, "twins": 0})
    for i in range(6):
        shutil.copy(root / "a" / f"{i:03d}.png", root / "a" / f"copy{i}.png")
        shutil.copy(root / "a" / "000.png", root / "twins" / f"{i}.png")
    shutil.copy(root / "b" / "000.png", root / "a" / "also_b.png")
    data = open_dataset(root, val_split=0.4, seed=seed)
    sides = [{Path(path).read_bytes() for path in split.images.paths} for split in (data.train, data.val)]
    assert not sides[0] & sides[1]
    assert names_of(data.val).count("a") in (4, 5, 6) and names_of(data.val).count("b") == 2
    assert "twins" not in names_of(data.val)


def test_few_shot_is_drawn_after_the_split(tree, refused):
    root = tree({"a": 10, "b": 10})
    whole = open_dataset(root)
    few = open_dataset(root, examples_per_class=3, examples_per_class_seed=1)
    assert names_of(few.train) == ["a"] * 3 + ["b"] * 3
    assert few.val.images.paths == whole.val.images.paths and set(few.train.images.paths) < set(
        whole.train.images.paths
    )
    other = open_dataset(root, examples_per_class=3, examples_per_class_seed=2)
    assert other.train.images.paths != few.train.images.paths
    refused(
        r"class b has 2 training images, but 5 .* --examples-per-class 2",
        tree({"a": 9, "b": 2}, root / "x"),
        examples_per_class=5,
        val_split=0,
    )
    refused("examples per class 0", root / "x", examples_per_class=0, error=UsageError)


def test_a_class_name_that_no_model_could_store_is_refused_at_once(tree, refused):
    root = tree({"a": 2, os.fsdecode(b"latin\xe9"): 2})
    refused(r"has class 'latin\\udce9', which is not UTF-8 .*: rename it", root)


def test_folder_errors(save, tree, tmp_path, refused):
    refused("nowhere: no such folder, table or pattern: check", tmp_path / "nowhere")
    file = save(tmp_path / "one.png")
    refused("one.png is a file, not a folder", file)
    (tmp_path / "empty").mkdir()
    refused("empty: no images, no class folders", tmp_path / "empty")
    save(tmp_path / "flat" / "x.png")
    refused(r"flat: no class folders, the images lie directly in it \(1\): put", tmp_path / "flat")
    refused("single has one class only, cat", tree({"cat": 3}, tmp_path / "single"))
    hollow = tree({"cat": 2, "dog": 2, "emu": 0}, tmp_path / "hollow")
    refused("class folder .*emu has no images: add images or delete", hollow)
    (hollow / "emu" / "x.svg").write_bytes(b"<svg/>")
    refused(r"class folder .*emu has no images \(1 .svg ignored\)", hollow)
    refused(r"none: no images in its 2 folders", tree({"cat": 0, "dog": 0}, tmp_path / "none"))
    refused("val_split 1 is not a share", hollow, val_split=1, error=UsageError)


@pytest.mark.parametrize(
    "wrong, hint", [("Tulip", "tulip"), ("tulips", "tulip"), ("sun-flower", "sun_flower"), ("tulpi", "tulip")]
)
def test_unknown_validation_class(tree, tmp_path, wrong, hint, refused):
    root = tmp_path / "d"
    tree({"rose": 2, "sun_flower": 2, "tulip": 2}, root / "train")
    tree({"rose": 1, wrong: 1}, root / "val")
    refused(rf"val has class '{wrong}' that .*train does not \(did you mean '{hint}'\?\): rename", root)


def test_list_errors(tmp_path, refused):
    refused("the list has 2 paths but 1 labels", (["a.png", "b.png"], ["x"]))
    refused(r"the list has the label 0.5 \(float\)", (["a.png", "b.png"], [0.5, 1.0]))
    refused("the list has no images", ([], []))
    refused("the list has one class only, x", (["a.png", "b.png"], ["x", "x"]))
    refused("the val list has class 'z' that the list does not: rename", (["a", "b"], ["x", "y"]), val=(["c"], ["z"]))
    refused("is a dict: give a folder, or a pair", {"a.png": "x"}, error=UsageError)


def test_unreadable_folder_is_named(refused):
    me = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        secret = Path(name, "secret")
        secret.mkdir(mode=0)
        if me == 0:  # root reads everything
            os.seteuid(65534)
        try:
            refused(r"secret: cannot list this folder \(permission denied\)", secret)
        finally:
            os.seteuid(me)
            secret.chmod(0o700)
