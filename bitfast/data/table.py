"""CSV and TSV tables of images: path, label[, split], or path[, split] and one 0/1 column per class."""

import csv
import glob
import io
import os
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice

from bitfast.data.decode import shown
from bitfast.data.listing import TRAIN, VALIDATION, Listing, Parts
from bitfast.data.shards import located
from bitfast.data.source import Files
from bitfast.errors import DataError

PATHS = tuple("path file filename filepath image imagepath imagefile imagename img imgpath imageid id".split())
LABELS = tuple(
    "label labels class classname classlabel category categories target targets labelname tag tags classid".split()
)
SPLITS = tuple("split set fold subset partition isvalid isval".split())
RECORDED = ["path", "split"]  # how splits.csv begins when labels are multi-label

_DELIMITERS = {".tsv": "\t", ".tab": "\t"}
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
_SNIFFED = 20


@dataclass
class Table:
    """Rows of a table: paths as written, names as in a Listing, part of each row, and the line it is on.

    parts    "train", "val" or "test" of each row; None without a split column
    classes  the 0/1 columns, if labels are given so
    columns  which columns were read, in words
    """

    paths: list[str]
    names: list
    parts: list[str] | None
    lines: list[int]
    classes: tuple[str, ...]
    columns: str


def list_table(path, fields, allow_missing=False, part=None):
    """The Parts of a .csv or .tsv. Paths are relative to fields.root, or to the folder of the table.

    part  "train", "val" or "test": the rows of that part alone, as `train` of the Parts

    Rows say train|training, val|valid|validation|dev or test|testing in the split column, if there is one; then it is
    taken as it is. Test rows serve as validation where no row says val; otherwise they are left out, which is noted.

    Raises:  DataError naming file and line on whatever cannot be read, a missing file, a label or split that is
             empty, an image that has two labels; with allow_missing only if every file is missing
    """
    table = read_table(path, fields)
    _require_one_label(table, path)
    root = _root(path, fields)
    count = Counter(table.parts)
    held = "val" if count["val"] else "test"
    used = (part,) if part else ("train", held) if table.parts else (None,)
    if part and not count[part]:
        raise DataError(f"{shown(path)}: no row is in split {part}: mark rows with {part} in a column split")
    rows = {name: [i for i, its in enumerate(table.parts or [None] * len(table.paths)) if its == name] for name in used}
    images = {name: located([os.path.join(root, table.paths[i]) for i in rows[name]], fields) for name in used}
    _require_files(images, rows, table, path, root, allow_missing)
    note = f"columns {table.columns}"
    if table.parts is None:
        return Parts(Listing(images[None], table.names, os.fspath(path), table.classes), note=note)
    listings = {
        name: Listing(
            images[name],
            [table.names[i] for i in rows[name]],
            f"the {name} part of {os.fspath(path)}",
            table.classes,
        )
        for name in used
    }
    if part:
        return Parts(listings[part], settled=True, note=note)
    if not count["train"]:
        raise DataError(f"{shown(path)}: no row is in split train: mark the training rows with train")
    if count["val"] and count["test"]:
        note += f"; {count['test']:,} test rows left out"
    return Parts(listings["train"], listings[held] if count[held] else None, settled=True, note=note)


def read_paths(path, fields):
    """The image paths in a .csv or .tsv, absolute as list_table makes them; labels are not needed, files not looked at.

    The column is fields.image or has one of the usual names; in a table without a header it is the first.
    Raises:  DataError as read_table
    """
    rows = _rows(path)
    if not rows:
        raise DataError(f"{shown(path)} is empty: write a header path and one row per image")
    header = rows[0][1]
    keys = _keys(header)
    named = any(key in PATHS for key in keys) or fields.image is not None
    at = _column(path, header, keys, PATHS, fields.image, "image") if named else 0
    rows = rows[1:] if named else rows
    short = next((line for line, row in rows if len(row) <= at or not row[at]), None)
    if short is not None:
        raise DataError(f"{shown(path)} line {short}: no path in column {at + 1}: fill it or drop the row")
    root = _root(path, fields)
    return [os.path.join(root, row[at]) for _, row in rows]


def read_table(path, fields):
    """The Table in a file; nothing but the file itself is looked at. Raises DataError, naming file and line."""
    rows = _rows(path)
    if not rows:
        raise DataError(f"{shown(path)} is empty: write a header path,label and one row per image")
    _, header = rows[0]
    keys = _keys(header)
    if not any(key in PATHS for key in keys) and not {fields.image, fields.label} & set(header):
        header = {2: ["path", "label"], 3: ["path", "label", "split"]}.get(len(header))
        if header is None:
            raise DataError(
                f"{shown(path)} line {rows[0][0]}: {len(rows[0][1])} columns and no header: begin the file with "
                "a line path,label or path,label,split, or with your names of these columns"
            )
        keys = header
    else:
        rows = rows[1:]
        if not rows:
            raise DataError(f"{shown(path)} has a header and no rows: add one row per image")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{shown(path)} line {line}: {len(row)} columns instead of {len(header)}: "
                "put names that contain the delimiter in double quotes"
            )
    return _typed(path, header, keys, rows, fields)


def _keys(header):
    return [re.sub(r"[^a-z0-9]", "", cell.casefold()) for cell in header]


def _root(path, fields):
    """The folder that the paths in a table start from."""
    if fields.root and not os.path.isdir(fields.root):
        raise DataError(
            f"{shown(fields.root)}: no such folder: give the folder that the paths in {shown(path)} start from"
        )
    return fields.root or os.path.dirname(os.path.abspath(path))


def _typed(path, header, keys, rows, fields):
    recorded = header[:2] == RECORDED
    at = _column(path, header, keys, PATHS, fields.image, "image")
    split = 1 if recorded else _column(path, header, keys, SPLITS, None, "split")
    label = None if recorded else _column(path, header, keys, LABELS, fields.label, "label")
    others = [i for i, key in enumerate(keys) if i not in (at, split) and (recorded or not _is_index(key))]
    if label is None and len(others) == 1 and not recorded:
        label = others[0]
    classes = ()
    if label is None:
        classes = tuple(header[i] for i in others)
        names = [_indicated(path, line, row, header, others) for line, row in rows]
    else:
        names = [row[label] for _, row in rows]
        empty = next((line for (line, _), name in zip(rows, names, strict=True) if not name), None)
        if empty is not None and fields.separator is None:
            raise DataError(f"{shown(path)} line {empty}: no label in column {header[label]}: fill it or drop the row")
    parts = None
    if split is not None:
        flag = keys[split] in ("isvalid", "isval")
        parts = [_part_of(path, line, row[split], flag, header[split]) for line, row in rows]
    paths = [row[at] for _, row in rows]
    empty = next((line for (line, _), name in zip(rows, paths, strict=True) if not name), None)
    if empty is not None:
        raise DataError(f"{shown(path)} line {empty}: no path in column {header[at]}: fill it or drop the row")
    used = [header[at], header[label] if label is not None else f"{len(classes)} of 0/1"]
    used += [header[split]] if split is not None else []
    return Table(paths, names, parts, [line for line, _ in rows], classes, ", ".join(map(shown, used)))


def _column(path, header, keys, usual, wanted, what):
    """Index of the column that was asked for, or of the first usual name; None if there is none of the latter."""
    if wanted is not None:
        if wanted not in header:
            there = ", ".join(map(shown, header))
            raise DataError(f"{shown(path)} has no column {shown(wanted)} ({there}): correct --{what}-field")
        return header.index(wanted)
    return next((keys.index(name) for name in usual if name in keys), None)


def _is_index(key):
    """Whether a column is the row number that pandas writes."""
    return not key or re.fullmatch(r"unnamed\d+", key) is not None


def _indicated(path, line, row, header, others):
    values = [row[i].casefold() for i in others]
    wrong = next((i for i, value in zip(others, values, strict=True) if value not in _YES + _NO), None)
    if wrong is not None or len(others) < 2:
        raise DataError(
            f"{shown(path)} line {line}: no label column among {', '.join(map(shown, header))}, and not 0/1 columns: "
            "name it label, or pass --label-field COLUMN"
        )
    return tuple(header[i] for i, value in zip(others, values, strict=True) if value in _YES)


def _part_of(path, line, text, flag, column):
    value = text.strip().casefold()
    if flag and value in _YES + _NO:
        return "val" if value in _YES else "train"
    if value in TRAIN:
        return "train"
    if value in (*VALIDATION, "dev") and value != "test":
        return "val"
    if value in ("test", "testing"):
        return "test"
    raise DataError(f"{shown(path)} line {line}: {text!r} in column {column} is not train, val or test: correct it")


def _require_one_label(table, path):
    seen = {}
    for row, name in enumerate(table.paths):
        key = name, table.parts and table.parts[row]
        first = seen.setdefault(key, row)
        if table.names[first] != table.names[row]:
            raise DataError(
                f"{shown(path)} line {table.lines[row]}: {shown(name)} has label {table.names[row]!r} here and "
                f"{table.names[first]!r} in line {table.lines[first]}: keep one, or write several labels of an image "
                "into one cell (a|b) and pass --label-separator '|'"
            )


def _require_files(images, rows, table, path, root, allow_missing):
    """Raise for the first row whose file is not there; images and rows by part."""
    gone = [
        (row, source.path(i))
        for part, source in images.items()
        if isinstance(source, Files)
        for i, row in enumerate(rows[part])
        if not os.path.lexists(source.path(i))
    ]
    total = sum(map(len, rows.values()))
    if not gone or (allow_missing and len(gone) < total):
        return
    first, name = min(gone)
    written = table.paths[first]
    count = f" ({len(gone):,} of {total:,} files are missing)" if len(gone) > 1 else ""
    if re.match(r"[a-z][a-z0-9+]+://", written):
        advice = "download it, and write its path"
    elif "\\" in written and os.path.lexists(os.path.join(root, written.replace("\\", "/"))):
        advice = "write / instead of \\ in paths"
    elif os.path.lexists(written):
        advice = "paths are relative to the table; for this folder instead pass --image-root ."
    elif suffixed := sorted(glob.glob(glob.escape(name) + ".*")):
        advice = f"write the suffix too, {shown(os.path.basename(suffixed[0]))}"
    elif first == 0 and not os.path.splitext(written)[1]:
        advice = "if this line is a header, call the columns path and label"
    else:
        advice = "correct the path, or pass --image-root with the folder it starts from"
    raise DataError(f"{shown(path)} line {table.lines[first]}: no such file: {shown(name)}{count}: {advice}")


def _rows(path):
    """(line, cells) of each row that is not blank."""
    text = _text(path)
    suffix = os.path.splitext(path)[1].lower()
    delimiter = _DELIMITERS.get(suffix) or _sniffed(text)
    rows, before = [], 0
    try:
        spaced = any(cell.startswith(" ") for cell in next(_reader(text, delimiter, False), [])[1:2])
        reader = _reader(text, delimiter, spaced)
        for row in reader:
            if any(row):
                rows.append((before + 1, row))
            before = reader.line_num
    except csv.Error as error:
        raise DataError(f"{shown(path)} line {before + 1}: {error}: correct the quotes of this line") from error
    return rows


def _reader(text, delimiter, spaced):
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced, strict=True)


def _sniffed(text):
    """The first of , ; tab | that cuts the first rows into equally many cells, at least two; else the comma."""
    for delimiter in ",;\t|":
        try:
            widths = {len(row) for row in islice(_reader(text, delimiter, False), _SNIFFED) if any(row)}
        except csv.Error:
            continue
        if len(widths) == 1 and widths.pop() > 1:
            return delimiter
    return ","


def _text(path):
    """The file as text: UTF-8 with or without a mark, or UTF-16 with one; other bytes survive as surrogates."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(
            f"{shown(path)}: cannot read it ({error.strerror.lower()}): check path and permission"
        ) from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    text = content.decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise DataError(f"{shown(path)} is not a text file: give a CSV or TSV with the columns path and label")
    return text
