"""splits.csv: which image a run trained and evaluated on, under which name, and the way back from it."""

import csv
import os

from bitfast.data.dataset import Dataset, joined
from bitfast.data.decode import shown
from bitfast.data.listing import Fields, Listing
from bitfast.data.openers import list_data
from bitfast.data.shards import located
from bitfast.data.table import RECORDED, read_table
from bitfast.errors import DataError, UsageError
from bitfast.files import replacing


def write_splits(dataset, path):
    """Save which image is in which split, as UTF-8 CSV; replaces `path` atomically.

    Columns path, label, split; multi-label: path, split and a 0/1 column for each class. Where images are no files,
    path holds the name that their Source gives them.
    """
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = csv.writer(file)
        multilabel, classes = dataset.train.multilabel, dataset.train.classes
        rows.writerow([*RECORDED, *classes] if multilabel else ["path", "label", "split"])
        for part, split in (("train", dataset.train), ("val", dataset.val)):
            for i in range(len(split) if split is not None else 0):
                name = split.images.name(i)
                label = split.labels[i]
                rows.writerow([name, part, *label.astype(int)] if multilabel else [name, classes[label], part])


def read_splits(path, data=None, val=None, fields=None):
    """The Dataset that `write_splits` saved.

    data, val  the Python objects the run was started with; needed where the images are no files, and otherwise
               compared: every image must be there by name, with the same labels

    Raises:  DataError, naming file and line, if it is not one, or does not agree with data; UsageError if it names
             images of Python objects and they are not given
    """
    fields = fields or Fields()
    if not os.path.isfile(path):
        raise DataError(f"{shown(path)}: cannot read it (no such file): give the splits.csv of a run")
    table = read_table(path, fields=Fields())
    if table.parts is None:
        raise DataError(f"{shown(path)}: it has no split column: give the splits.csv of a run")
    given = _given(data, val, fields)
    train, held = (_part(table, part, path, given and given[part], fields) for part in ("train", "val"))
    classes = tuple(sorted({name for names in train.label_tuples() for name in names} | set(table.classes)))
    train_split = joined(train, classes, train.multilabel, train.where)
    val_split = joined(held, classes, train.multilabel, "its train part") if len(held.images) else None
    return Dataset(train_split, val_split, f"as recorded in {shown(path)}")


def _given(data, val, fields):
    """{"train": [listings], "val": [listings]} to look the images of either part up in, or None."""
    if data is None and val is None:
        return None
    parts = list_data(data, fields, where="the data given") if data is not None else None
    own = [listing for listing in (parts.train, parts.val) if listing is not None] if parts else []
    if val is not None:
        return {"train": own, "val": [list_data(val, fields, where="the val given").labelled]}
    return {"train": own[:1], "val": own[1:] or own}


def _part(table, part, path, given, fields):
    rows = [row for row, its in enumerate(table.parts) if its == part]
    names, labels = [table.paths[row] for row in rows], [table.names[row] for row in rows]
    where = f"the {part} part of {shown(path)}"
    folder = os.path.dirname(os.path.abspath(path))
    if given:
        images = _found(names, labels, given, where)
    elif all(os.path.isabs(name) or os.path.lexists(os.path.join(folder, name)) for name in names):
        images = located([os.path.join(folder, name) for name in names], fields)
    else:
        first, run = next(name for name in names if not os.path.isabs(name)), os.path.dirname(path)
        raise UsageError(
            f"{where} names images of Python objects ({shown(first)}, ...): give these again, to "
            f"bitfast.finetune(data, resume=True, out={run!r}) or to bitfast.load({run!r}).evaluate(data)"
        )
    return Listing(images, labels, where, table.classes)


def _found(names, labels, given, where):
    """The images of those names in the first of the given listings that has them."""
    for listing in given:
        position = {listing.images.name(i): i for i in range(len(listing.images))}
        if all(name in position for name in names):
            break
    else:
        position = {given[0].images.name(i): i for i in range(len(given[0].images))}
        gone = next(name for name in names if name not in position)
        raise DataError(f"{where} names {shown(gone)}, which {given[0].where} does not have: give the same data again")
    known = listing.label_tuples()
    for name, label in zip(names, labels, strict=True):
        has, had = known[position[name]], (label,) if isinstance(label, str) else label
        if sorted(has) != sorted(had):
            raise DataError(
                f"{where} has {shown(name)} as {' '.join(had)!r}, {listing.where} has it as {' '.join(has)!r}: "
                "give the same data again"
            )
    return listing.images.take([position[name] for name in names])
