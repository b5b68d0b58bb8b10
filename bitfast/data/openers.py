"""Which kind of DATA it is, and the listing of its images and labels."""

import os
from collections import Counter

from bitfast.data import folder, shards
from bitfast.data.decode import shown
from bitfast.data.listing import TRAIN, VALIDATION, Listing, Parts
from bitfast.data.objects import list_objects
from bitfast.data.source import Files
from bitfast.data.table import list_table
from bitfast.errors import DataError

TABLES = (".csv", ".tsv", ".tab", ".txt")
_PARTS = {"train": TRAIN, "val": VALIDATION, "test": ("test", "testing")}


def list_data(data, fields, *, where, allow_empty=False, allow_missing=False, part=None):
    """The Parts of a folder, table, pattern of shards, or Python object (called `where` in messages).

    A dict with "train", and perhaps "val", "valid", "validation" or "test", holds one of these for each part.

    allow_empty    class folders without images are fine
    allow_missing  files of a table that are not there are left to the scan
    part           of a table the rows of this part alone (table.list_table)
    """
    if isinstance(data, dict) and any(name in data for name in TRAIN):
        return _list_dict(data, fields, where, allow_missing)
    if not is_name(data):
        parts = list_objects(data, where, fields)
    elif os.path.isdir(data):
        parts = _list_folder(data, allow_empty or fields.empty)
    elif shards.is_pattern(data):
        parts = Parts(shards.list_shards(shards.expand(data), fields, os.fspath(data)))
    elif is_table(data):
        parts = list_table(data, fields, allow_missing, part)
    elif os.path.isfile(data) and shards.is_shard(data):
        parts = Parts(shards.list_shards([os.path.abspath(data)], fields, os.fspath(data)))
    elif os.path.isfile(data):
        raise DataError(
            f"{shown(data)} is a file, not a folder: give the folder that holds one sub-folder per class, "
            "a .csv or .tsv table, or a .tar or .tfrecord file"
        )
    else:
        raise DataError(f"{shown(data)}: no such folder, table or pattern: check the path")
    if fields.separator is not None:
        parts.train = parts.train.separated(fields.separator)
        parts.val = parts.val and parts.val.separated(fields.separator)
    return parts


def list_part(data, part, fields, *, where):
    """The Listing of the "train", "val" or "test" part of a folder, table or dict. Raises DataError if it has none."""
    if is_name(data) and is_table(data):
        return list_data(data, fields, where=where, part=part).train
    names = {}
    if isinstance(data, dict):
        names = {name: name for name in data}
    elif is_name(data) and os.path.isdir(data):
        names = {name.casefold(): name for name in folder.entries(data)[0]}
    found = next((names[name] for name in _PARTS[part] if name in names), None)
    if found is None:
        what = shown(data) if is_name(data) else where
        raise DataError(f"{what} has no {part} part: leave out --split, or name the images of that part as DATA")
    inner = data[found] if isinstance(data, dict) else os.path.join(data, found)
    return list_data(inner, fields, where=f"{where}[{found!r}]", allow_empty=True).labelled


def is_table(name):
    """Whether a name is a file that is read as a table, by its suffix."""
    return os.path.isfile(name) and os.path.splitext(name)[1].lower() in TABLES


def is_name(data):
    """Whether data is text: the name of a folder, a file or a pattern."""
    return isinstance(data, (str, os.PathLike))


def _list_dict(data, fields, where, allow_missing):
    train = next(name for name in TRAIN if name in data)
    held = next((name for name in VALIDATION if name in data), None)
    parts = list_data(data[train], fields, where=f"{where}[{train!r}]", allow_missing=allow_missing)
    if held is None:
        return parts
    where = f"{where}[{held!r}]"
    val = list_data(data[held], fields, where=where, allow_empty=True, allow_missing=allow_missing)
    return Parts(parts.train, val.labelled, ignored=Counter(parts.ignored) + Counter(val.ignored))


def _list_folder(root, allow_empty):
    ignored = Counter()
    train, val = folder.split_folders(root)
    train = _class_tree(train or os.fspath(root), ignored, allow_empty)
    return Parts(train, val and _class_tree(val, ignored, True), ignored=dict(ignored))


def _class_tree(root, ignored, allow_empty):
    paths, names = folder.list_classes(root, ignored, allow_empty=allow_empty)
    return Listing(Files(paths), names, os.fspath(root))
