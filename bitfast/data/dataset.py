"""A user's images as paths and labels: class folders, lists or a splits.csv; classes joined by name."""

import csv
import difflib
import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from bitfast.data import draw, folder
from bitfast.data.decode import shown
from bitfast.data.source import Files, Source
from bitfast.errors import DataError, UsageError
from bitfast.files import replacing

_COLUMNS = ["path", "label", "split"]


@dataclass(frozen=True, eq=False)
class Split:
    """Images with one label each.

    images   a Source
    labels   (n,) int64, positions in classes
    classes  names sorted by Unicode code point, the same tuple in train and val
    """

    images: Source
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self):
        return len(self.images)

    def class_of(self, i):
        """Name of the i-th image's class."""
        return self.classes[self.labels[i]]

    def take(self, chosen):
        """The split with the images that an index array or boolean mask chooses."""
        indices = np.arange(len(self))[chosen]
        return Split(self.images.take(indices), self.labels[indices], self.classes)


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a run trains and evaluates on; `origin` says in one line how the split came about.

    ignored  files that were left out: suffix -> count, and folder.STRAY -> count
    """

    train: Split
    val: Split | None
    origin: str
    ignored: dict[str, int] = field(default_factory=dict)

    @property
    def parts(self):
        """{"train": Split, "val": Split}, the latter only if there is one."""
        return {"train": self.train} | ({"val": self.val} if self.val is not None else {})


def open_dataset(
    data, *, val=None, val_split=0.1, seed=0, examples_per_class=None, examples_per_class_seed=0, readable=None
):
    """List, label and split a user's images. No image is opened here (`check.scan` does that).

    data                a folder with one sub-folder per class; or one with train/ and val|valid|validation|test/ of
                        such; or (paths, labels), labels being names or ints (an int is the name it prints as);
                        or a .csv that `write_splits` wrote, whose split is taken as it is
    val                 the validation part, a class-folder tree or (paths, labels); overrides one that data has
    val_split           without a validation part, the share of each class held out (draw.hold_out); 0: none
    examples_per_class  K: train on K images of each class, drawn with examples_per_class_seed after the split, so
                        that the validation part is the same for every K
    readable            called with a Split and its part, "train" or "val", before anything is held out or drawn;
                        returns which of its images to take, (n,) bool; default: all

    Raises:  DataError on anything wrong with folders, lists or classes; UsageError on a val_split outside [0, 1)
    """
    if not 0 <= val_split < 1:
        raise UsageError(f"val_split {val_split} is not a share: use 0 (no validation) or a number below 1 such as 0.1")
    dataset = _open(data, val, val_split, seed, readable or _all)
    if examples_per_class is None:
        return dataset
    train = dataset.train
    chosen = draw.few_shot(train.labels, train.classes, examples_per_class, examples_per_class_seed)
    origin = f"{dataset.origin}; {examples_per_class} images per class for training (seed {examples_per_class_seed})"
    return Dataset(train.take(chosen), dataset.val, origin, dataset.ignored)


def open_labelled(data, classes):
    """The Split of every image of a class-folder tree or (paths, labels), joined by name to the given classes.

    Of a folder with train/ and a validation folder, the validation part. Classes without images are fine.
    Raises:  DataError as open_dataset, and for a class that is not among `classes`
    """
    where = "the list"
    if _is_list(data):
        listing = _checked(data, where)
    else:
        train, val = folder.split_folders(data)
        where = val or train or os.fspath(data)
        listing = folder.list_classes(where, Counter(), allow_empty=True)
    return _join(*listing, tuple(classes), shown(where), "the model")


def write_splits(dataset, path):
    """Save which file is in which split, as UTF-8 CSV with columns path, label, split; replaces `path` atomically."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for name, split in (("train", dataset.train), ("val", dataset.val)):
            if split is not None:
                rows.writerows(
                    (split.images.name(i), split.classes[label], name) for i, label in enumerate(split.labels)
                )


def read_splits(path):
    """The Dataset that `write_splits` saved. Raises DataError, naming file and line, if it is not one."""
    parts = {"train": ([], []), "val": ([], [])}
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(file)
            if next(rows, None) != _COLUMNS:
                raise DataError(
                    f"{shown(path)}: the first line is not {','.join(_COLUMNS)}: give a splits.csv of a run"
                )
            for row in rows:
                if len(row) != 3 or row[2] not in parts:
                    wrong = f"{shown(path)} line {rows.line_num}: {','.join(row)!r}"
                    raise DataError(f"{wrong} is not path,label,train or path,label,val: correct the line")
                parts[row[2]][0].append(os.path.join(os.path.dirname(path), row[0]))
                parts[row[2]][1].append(row[1])
    except (OSError, csv.Error) as error:
        why = error.strerror.lower() if isinstance(error, OSError) else str(error)
        raise DataError(f"{shown(path)}: cannot read it ({why}): give the splits.csv of a run") from error
    train = _split(*parts["train"], shown(path))
    val = _join(*parts["val"], train.classes, f"the val part of {shown(path)}", "its train part")
    return Dataset(train, val if len(val) else None, f"as recorded in {shown(path)}")


def _all(split, part):
    return np.ones(len(split), dtype=bool)


def _open(data, val, val_split, seed, readable):
    ignored = Counter()
    own_val = None
    if _is_list(data):
        where = "the list"
        train = _split(*_checked(data, where), where)
    elif os.path.isfile(data) and os.fspath(data).lower().endswith(".csv"):
        recorded = read_splits(data)
        if val is None:
            train, val = (
                split and split.take(readable(split, part))
                for part, split in (("train", recorded.train), ("val", recorded.val))
            )
            return Dataset(train, val, recorded.origin)
        train, where = recorded.train, f"the train part of {os.fspath(data)}"
    else:
        where, own_val = folder.split_folders(data)
        where = where or os.fspath(data)
        train = _split(*folder.list_classes(where, ignored), where)
    train = train.take(readable(train, "train"))
    val = own_val if val is None else val
    if val is not None:
        return _with_validation(train, where, val, ignored, readable)
    if val_split:
        held = draw.hold_out(train.images, train.labels, len(train.classes), val_split, seed)
        if held.any():
            origin = f"{100 * val_split:g}% of each class of {shown(where)} held out for validation (seed {seed})"
            return Dataset(train.take(~held), train.take(held), origin, dict(ignored))
    return Dataset(train, None, f"all of {shown(where)} for training, nothing held out", dict(ignored))


def _with_validation(train, where, val, ignored, readable):
    if _is_list(val):
        val_where, listing = "the val list", _checked(val, "the val list")
    else:
        val_where = os.fspath(val)
        listing = folder.list_classes(val, ignored, allow_empty=True)
    joined = _join(*listing, train.classes, shown(val_where), shown(where))
    if not len(joined):
        raise DataError(f"{shown(val_where)} has no images: fill it, or leave it out")
    joined = joined.take(readable(joined, "val"))
    return Dataset(train, joined, f"{shown(where)} for training, {shown(val_where)} for validation", dict(ignored))


def _is_list(data):
    return not isinstance(data, (str, os.PathLike))


def _checked(listing, where):
    """(paths, names) of a user's (paths, labels)."""
    if not isinstance(listing, (tuple, list)) or len(listing) != 2:
        raise UsageError(f"{where} is a {type(listing).__name__}: give a folder, or a pair (paths, labels)")
    paths, labels = map(list, listing)
    if len(paths) != len(labels):
        raise DataError(f"{where} has {len(paths)} paths but {len(labels)} labels: give one label per path")
    wrong = next((label for label in labels if not isinstance(label, (str, int, np.integer))), None)
    if wrong is not None:
        raise DataError(f"{where} has the label {wrong!r} ({type(wrong).__name__}): labels are names (str) or ints")
    return paths, list(map(str, labels))


def _split(paths, names, where):
    """The Split that defines the classes."""
    classes = tuple(sorted(set(names)))
    if not paths:
        raise DataError(f"{shown(where)} has no images: give at least two classes of images")
    if len(classes) == 1:
        raise DataError(f"{shown(where)} has one class only, {shown(classes[0])}: add a second class to tell it from")
    return _join(paths, names, classes, where, where)


def _join(paths, names, classes, where, train_where):
    """A Split whose labels are positions in the given classes, by name."""
    position = {name: label for label, name in enumerate(classes)}
    unknown = sorted(set(names) - position.keys())
    if unknown:
        others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        close = nearest(unknown[0], classes)
        hint = f" (did you mean {close!r}?)" if close else ""
        raise DataError(
            f"{where} has class {unknown[0]!r}{others} that {train_where} does not{hint}: "
            "rename it, or train on images of it too"
        )
    labels = np.array([position[name] for name in names], dtype=np.int64)
    return Split(Files(paths), labels, classes)


def nearest(name, known):
    """The known class that differs only in case, plural or separators, else the most similar one, else None."""

    def key(text):
        return "".join(filter(str.isalnum, text.casefold())).removesuffix("s")

    same = [candidate for candidate in known if key(candidate) == key(name)]
    return next(iter(same or difflib.get_close_matches(name, known, n=1)), None)
