"""CSV and TSV tables: columns found, delimiters and quotes understood, lines named when something is wrong."""

import os

import numpy as np
import pytest

from bitfast.data.dataset import open_dataset
from bitfast.data.listing import Fields
from bitfast.errors import UsageError


@pytest.fixture
def folder(save, tmp_path):
    for i in range(6):
        save(tmp_path / "pictures" / f"{i}.png", seed=i)
    return tmp_path


def opened(folder, text, name="labels.csv", **options):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_dataset(path, **{"val_split": 0} | options)


def rows(split):
    return [(os.path.basename(path), *split.names(i)) for i, path in enumerate(split.images.paths)]


PLAIN = [("0.png", "cat"), ("1.png", "dog"), ("2.png", "cat")]
BODY = "pictures/0.png,cat\npictures/1.png,dog\npictures/2.png,cat\n"


@pytest.mark.parametrize(
    "header",
    [
        "path,label",
        "file,class",
        "filename,target",
        "File Name,Category",
        "IMAGE_PATH,label",
        "image,labels",
        "id,breed",
    ],
)
def test_header_names_are_found(folder, header):
    assert rows(opened(folder, f"{header}\n{BODY}").train) == PLAIN


@pytest.mark.parametrize(
    "name, text",
    [
        ("no_header.csv", BODY),
        ("swapped.csv", "label,path\ncat,pictures/0.png\ndog,pictures/1.png\ncat,pictures/2.png\n"),
        ("bom.csv", "\ufeffpath,label\n" + BODY),
        ("crlf.csv", ("path,label\n" + BODY).replace("\n", "\r\n")),
        ("no_last_newline.csv", ("path,label\n" + BODY).rstrip()),
        ("blank_lines.csv", "\npath,label\n\n" + BODY + "\n\n"),
        ("quoted.csv", 'path,label\n"pictures/0.png","cat"\npictures/1.png,"dog"\n"pictures/2.png",cat\n'),
        ("spaced.csv", ("path,label\n" + BODY).replace(",", ", ")),
        ("semicolon.csv", ("path,label\n" + BODY).replace(",", ";")),
        ("tabs.csv", ("path,label\n" + BODY).replace(",", "\t")),
        ("table.tsv", ("path,label\n" + BODY).replace(",", "\t")),
        ("pandas.csv", ",path,label\n" + "".join(f"{i},{row}\n" for i, row in enumerate(BODY.split()))),
        ("more_columns.csv", "path,size,label\n" + BODY.replace(",", ",10,")),
        ("utf16.csv", ("path,label\n" + BODY).encode("utf-16")),
    ],
)
def test_dialects(folder, name, text):
    assert rows(opened(folder, text, name).train) == PLAIN


def test_paths_are_relative_to_the_table_or_to_the_image_root(folder, tmp_path):
    text = "path,label\n" + BODY.replace("pictures/", "")
    root = str(folder / "pictures")
    assert rows(opened(folder, text, fields=Fields(root=root)).train) == PLAIN
    (folder / "tables").mkdir()
    absolute = "path,label\n" + BODY.replace("pictures", root)
    assert rows(opened(folder / "tables", absolute).train) == PLAIN


def test_numbers_are_names_and_awkward_names_survive(folder):
    data = opened(folder, 'path,label\npictures/0.png,10\npictures/1.png,9\npictures/2.png,"a, ""b"""\n')
    assert data.train.classes == ("10", "9", 'a, "b"')


@pytest.mark.parametrize(
    "column, train, val", [("split", "train", "val"), ("set", "Training", "valid"), ("is_valid", "False", "True")]
)
def test_the_split_column_is_taken_as_it_is(folder, column, train, val):
    text = f"path,label,{column}\n" + "".join(
        f"pictures/{i}.png,{label},{part}\n"
        for i, (label, part) in enumerate([("a", train), ("b", train), ("a", val), ("b", train)])
    )
    data = opened(folder, text, val_split=0.5)
    assert rows(data.train) == [("0.png", "a"), ("1.png", "b"), ("3.png", "b")] and rows(data.val) == [("2.png", "a")]
    assert "as recorded in" in data.origin and f"columns path, label, {column}" in data.origin


def test_test_rows_serve_as_validation_only_where_there_is_none(folder):
    text = "path,label,split\npictures/0.png,a,train\npictures/1.png,b,train\npictures/2.png,a,test\n"
    assert rows(opened(folder, text).val) == [("2.png", "a")]
    data = opened(folder, text + "pictures/3.png,b,val\n")
    assert rows(data.val) == [("3.png", "b")] and "1 test rows left out" in data.origin
    alone = opened(folder, text.replace("test", "train"), val_split=0.5)
    assert alone.val is None and len(alone.train) == 3


def test_several_labels_per_cell(folder):
    text = "path,label\npictures/0.png,cat | dog\npictures/1.png,\npictures/2.png,dog|\npictures/3.png,emu\n"
    train = opened(folder, text, fields=Fields(separator="|")).train
    assert train.classes == ("cat", "dog", "emu")
    assert train.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]] and train.labels.dtype == bool
    assert [train.names(i) for i in range(4)] == [("cat", "dog"), (), ("dog",), ("emu",)]


def test_indicator_columns(folder):
    text = "file,wet,Dry,cold\npictures/0.png,1,0,0\npictures/1.png,0,1,0\npictures/2.png,0,0,0\n"
    train = opened(folder, text).train
    assert train.classes == ("Dry", "cold", "wet")
    assert train.labels.astype(int).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]


HEAD = "path,label\n"


@pytest.mark.parametrize(
    "text, match",
    [
        ("", "labels.csv is empty"),
        (HEAD, "has a header and no rows"),
        (HEAD + BODY + "pictures/3.png\n", "line 5: 1 columns instead of 2: put names"),
        (HEAD + "pictures/0.png,a,b\n", "line 2: 3 columns instead of 2"),
        (HEAD + BODY + "pictures/3.png,\n", "line 5: no label in column label"),
        (HEAD + BODY + ",cat\n", "line 5: no path in column path"),
        (HEAD + BODY + 'pictures/3.png,"cat\n', "line 5: .*correct the quotes"),
        ('"path,label\n' + BODY, "line 1: .*correct the quotes"),
        (HEAD + BODY + "pictures/0.png,dog\n", "line 5: pictures/0.png has label 'dog' here and 'cat' in line 2"),
        ("a,b,c,d\n1,2,3,4\n", "line 1: 4 columns and no header"),
        ("path,length,width\npictures/0.png,3,4\n", "line 2: no label column among path, length, width"),
        (HEAD + BODY + "pictures/9.png,cat\npictures/8.png,cat\n", r"line 5: no such file: .*9.png \(2 of 5 files are"),
        ("photo,flower\n" + BODY, "line 1: no such file: .*photo.* call the columns path and label"),
        (HEAD + BODY.replace("2.png", "x.png").replace("/", "\\"), r"line 2: no such file.*write / instead of \\"),
        (HEAD + BODY + "https://x.org/a.png,cat\n", "line 5: .*download it"),
        (HEAD + BODY + "pictures/3,cat\n", "line 5: .*write the suffix too, 3.png"),
        ("path,label,split\npictures/0.png,a,train\npictures/1.png,b,0\n", "line 3: '0' in column split is not train"),
        ("path,label,split\npictures/0.png,a,val\n", "no row is in split train"),
        (HEAD + "pictures/0.png,a\x00b\n", "is not a text file"),
        (HEAD + "pictures/0.png,a\npictures/1.png,a\n", "has one class only, a: add"),
        (
            "path,label,split\npictures/0.png,cat,train\npictures/1.png,dog,train\npictures/2.png,Dogs,val\n",
            r"the val part of .* has class 'Dogs' that the train part of .* does not \(did you mean 'dog'\?\)",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(folder, refused, text, match):
    (folder / "labels.csv").write_text(text)
    refused(match, folder / "labels.csv")


def test_paths_from_the_current_folder_are_recognized(folder, refused, monkeypatch):
    (folder / "tables").mkdir()
    (folder / "tables" / "labels.csv").write_text(HEAD + BODY)
    monkeypatch.chdir(folder)
    refused("line 2: .*for this folder instead pass --image-root .", "tables/labels.csv")
    assert len(open_dataset("tables/labels.csv", val_split=0, fields=Fields(root=".")).train) == 3


def test_named_columns(folder, refused):
    text = "who,what,label\npictures/0.png,cat,x\npictures/1.png,dog,y\npictures/2.png,cat,x\n"
    assert rows(opened(folder, text, fields=Fields(image="who", label="what")).train) == PLAIN
    refused(
        "has no column whom .who, what, label.: correct --image-field",
        folder / "labels.csv",
        fields=Fields("whom", "what"),
    )
    refused("nowhere: no such folder", folder / "labels.csv", fields=Fields("who", root="nowhere"))


def test_missing_files_may_be_left_to_the_scan(folder, refused):
    (folder / "labels.csv").write_text(HEAD + BODY + "pictures/9.png,cat\n")
    assert len(open_dataset(folder / "labels.csv", val_split=0, allow_missing=True).train) == 4
    (folder / "labels.csv").write_text(HEAD + BODY.replace("pictures", "elsewhere"))
    refused(r"\(3 of 3 files are missing\)", folder / "labels.csv", allow_missing=True)


def test_validation_table_beside_a_folder(tree, folder):
    root = tree({"cat": 2, "dog": 2}, folder / "d")
    (folder / "val.csv").write_text(HEAD + BODY)
    data = open_dataset(root, val=folder / "val.csv")
    assert rows(data.val) == PLAIN and len(data.train) == 4
    assert np.array_equal(data.val.labels, [0, 1, 0])


def test_options_are_refused_in_words(refused, tree):
    refused("val_split 1.5 is not a share", tree({"a": 1, "b": 1}), val_split=1.5, error=UsageError)
