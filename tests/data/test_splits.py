"""splits.csv: what is written is read back, for files, shards and Python objects, one label or several."""

import os

import numpy as np
import pytest

from bitfast.data.dataset import open_dataset
from bitfast.data.listing import Fields
from bitfast.data.splits import read_splits, write_splits
from bitfast.errors import DataError, UsageError


def same(a, b):
    for got, expected in ((a.train, b.train), (a.val, b.val)):
        assert got.classes == expected.classes and np.array_equal(got.labels, expected.labels)
        assert len(got) == len(expected)
        for i in range(len(expected)):
            assert got.images.name(i) == expected.images.name(i)
            assert np.array_equal(got.images.read(i), expected.images.read(i))


def test_round_trip_with_awkward_names(tree, save, tmp_path):
    awkward = [
        "a b, c",
        'quote"s',
        "new\nline",
        "carriage\rreturn",
        "ünïcødé",
        "; tab\t",
        " x ",
    ]
    root = tree({name: 3 for name in awkward})
    for i, name in enumerate((os.fsdecode(b"latin\xe9.png"), "a:b.png", "line\nbreak, 'quoted\".png", " x .png")):
        save(root / "ünïcødé" / name, seed=90 + i)
    data = open_dataset(root, val_split=0.34)
    write_splits(data, tmp_path / "splits.csv")
    for again in (read_splits(tmp_path / "splits.csv"), open_dataset(tmp_path / "splits.csv")):
        same(again, data)
    assert sorted(os.listdir(tmp_path)) == ["photos", "splits.csv"]
    write_splits(open_dataset(root, val_split=0), tmp_path / "splits.csv")
    assert read_splits(tmp_path / "splits.csv").val is None
    assert open_dataset(tmp_path / "splits.csv", val_split=0.5).val is None


def test_multilabel_round_trip_keeps_classes_without_images(save, tmp_path):
    paths = [save(tmp_path / f"{i}.png", seed=i) for i in range(12)]
    labels = np.random.default_rng(0).integers(0, 2, (12, 11))
    labels[:, 4] = 0
    data = open_dataset((paths, labels), val_split=0.3)
    assert data.val is not None and data.train.classes == tuple(f"{column:02d}" for column in range(11))
    write_splits(data, tmp_path / "splits.csv")
    same(read_splits(tmp_path / "splits.csv"), data)
    same(open_dataset(tmp_path / "splits.csv"), data)
    names = (["x", "y"], ["label", "path"], [], ["split", "x"], [" id", "id"], ["file", "set"])
    data = open_dataset((paths, [*names, *names]), val_split=0.3)
    write_splits(data, tmp_path / "splits.csv")
    same(read_splits(tmp_path / "splits.csv"), data)


def test_objects_are_found_again_by_name(photo, tmp_path):
    pictures = np.stack([photo(9, 8, seed=i) for i in range(10)])
    labels = [f"class {i % 2}" for i in range(10)]
    given = pictures, labels
    data = open_dataset(given, val_split=0.3)
    path = tmp_path / "splits.csv"
    write_splits(data, path)
    same(read_splits(path, given), data)
    with pytest.raises(UsageError, match=r"names images of Python objects \(images\[\d\], ...\): give these again"):
        read_splits(path)
    with pytest.raises(DataError, match=r"names images\[9\], which the data given does not have"):
        read_splits(path, (pictures[:9], labels[:9]))
    with pytest.raises(
        DataError, match=r"as 'class \d', the data given has it as 'class \d': give the same data again"
    ):
        read_splits(path, (pictures, labels[::-1]))


def test_a_separate_validation_object_has_its_own_names(photo, tmp_path):
    pictures = np.stack([photo(9, 8, seed=i) for i in range(6)])
    train, val = (pictures[:4], ["a", "b", "a", "b"]), (pictures[4:], ["b", "a"])
    data = open_dataset(train, val=val)
    write_splits(data, tmp_path / "splits.csv")
    same(read_splits(tmp_path / "splits.csv", train, val), data)
    both = {"train": train, "val": val}
    same(open_dataset(both), data)
    same(read_splits(tmp_path / "splits.csv", both), data)


def test_files_given_again_are_compared(save, tmp_path):
    paths = [save(tmp_path / f"{i}.png", seed=i) for i in range(4)]
    write_splits(open_dataset((paths, "abab"), val_split=0), tmp_path / "splits.csv")
    assert len(read_splits(tmp_path / "splits.csv", (paths, "abab")).train) == 4
    with pytest.raises(DataError, match="0.png as 'a', the data given has it as 'b'"):
        read_splits(tmp_path / "splits.csv", (paths, "baba"))


def test_errors(tmp_path):
    table = tmp_path / "splits.csv"
    with pytest.raises(DataError, match="splits.csv: cannot read it .no such file.: give the splits.csv of a run"):
        read_splits(table)
    table.write_text("a,b\n")
    with pytest.raises(DataError, match="splits.csv: it has no split column"):
        read_splits(table)
    table.write_text("path,label,split\nx.png,cat,train\ny.png,cat,holdout\n")
    with pytest.raises(DataError, match="splits.csv line 3: 'holdout' in column split is not train, val or test"):
        read_splits(table)
    table.write_text(
        f"path,label,split\n{tmp_path}/x.png,cat,train\n{tmp_path}/y.png,dog,train\n{tmp_path}/z.png,Dogs,val\n"
    )
    with pytest.raises(DataError, match=r"has class 'Dogs' that its train part does not \(did you mean 'dog'\?\)"):
        read_splits(table)


def test_shards_are_found_by_splits_alone(tars, tmp_path):
    data = open_dataset(str(tars({"a": 5, "b": 5}) / "*.tar"), val_split=0.3)
    write_splits(data, tmp_path / "splits.csv")
    same(read_splits(tmp_path / "splits.csv", fields=Fields()), data)
    same(open_dataset(tmp_path / "splits.csv"), data)
