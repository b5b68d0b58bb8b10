"""A user's images with labels: classes joined by name, a validation part given or held out."""

import difflib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from bitfast.data import draw
from bitfast.data.decode import shown
from bitfast.data.listing import Fields, Listing
from bitfast.data.openers import list_data, list_part
from bitfast.data.source import Source
from bitfast.errors import DataError, UsageError


@dataclass(frozen=True, eq=False)
class Split:
    """Images with one label each, or with any number of labels each (multi-label).

    images   a Source
    labels   (n,) int64, positions in classes; multi-label: (n, len(classes)) bool
    classes  names sorted by Unicode code point, the same tuple in train and val
    """

    images: Source
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self):
        return len(self.images)

    @property
    def multilabel(self):
        return self.labels.ndim == 2

    def take(self, chosen):
        """The split with the images that an index array or boolean mask chooses."""
        indices = np.arange(len(self))[chosen]
        return Split(self.images.take(indices), self.labels[indices], self.classes)

    def names(self, i):
        """The class names of image i, as a tuple: one, or with multi-label any number."""
        marked = np.flatnonzero(self.labels[i]) if self.multilabel else [self.labels[i]]
        return tuple(self.classes[label] for label in marked)


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
    data,
    *,
    val=None,
    val_split=0.1,
    seed=0,
    examples_per_class=None,
    examples_per_class_seed=0,
    fields=None,
    allow_missing=False,
    readable=None,
):
    """List, label and split a user's images. No image is decoded here (`check.scan` does that).

    data                a folder with one sub-folder per class; or one with train/ and val|valid|validation|test/ of
                        such; a .csv or .tsv (table.list_table), among them the splits.csv of a run; WebDataset or
                        TFRecord files, also as a pattern (shards.expand); or Python objects (objects.list_objects)
    val                 the validation part, any of these; overrides one that data has
    val_split           without a validation part, the share of each class held out (draw.hold_out); 0: none
    examples_per_class  K: train on K images of each class, drawn with examples_per_class_seed after the split, so
                        that the validation part is the same for every K
    fields              listing.Fields: names of columns, features and keys, the separator of several labels
    allow_missing       files of a table that are not there are left to the scan, unless none is there
    readable            called with a Split and its part, "train" or "val", before anything is held out or drawn;
                        returns which of its images to take, (n,) bool; default: all

    Classes are the names that training images have, and for labels given as 0/1 columns all columns.

    Raises:  DataError on anything wrong with files, lists or classes; UsageError on a val_split outside [0, 1)
    """
    if not 0 <= val_split < 1:
        raise UsageError(f"val_split {val_split} is not a share: use 0 (no validation) or a number below 1 such as 0.1")
    fields = fields or Fields()
    parts = list_data(data, fields, where="the list", allow_missing=allow_missing)
    ignored = parts.ignored
    if val is not None:
        other = list_data(val, fields, where="the val list", allow_empty=True, allow_missing=allow_missing)
        parts.val = other.labelled
        parts.settled = False
        ignored = Counter(ignored) + Counter(other.ignored)
    take = readable or _every
    train = _defining(parts.train)
    train = train.take(take(train, "train"))
    note = f" ({parts.note})" if parts.note else ""
    where = shown(parts.train.where)
    if parts.val is not None:
        held = _validation(parts.val, train, where)
        held = held.take(take(held, "val"))
        whole = f"as recorded in {shown(data)}" if parts.settled else None
        dataset = Dataset(
            train, held, (whole or f"{where} for training, {shown(parts.val.where)} for validation") + note, ignored
        )
    else:
        dataset = _held_out(train, where, note, ignored, 0 if parts.settled else val_split, seed)
    if examples_per_class is None:
        return dataset
    train = dataset.train
    chosen = draw.few_shot(train.labels, train.classes, examples_per_class, examples_per_class_seed)
    origin = f"{dataset.origin}; {examples_per_class} images per class for training (seed {examples_per_class_seed})"
    return Dataset(train.take(chosen), dataset.val, origin, dataset.ignored)


def open_labelled(data, classes, *, multilabel=False, fields=None, part=None):
    """The Split of every image of any DATA that open_dataset takes, joined by name to the given classes.

    part  "train", "val" or "test" of data that has parts; default: its validation part, or all there is

    Classes without images are fine.
    Raises:  DataError as open_dataset, for a class that is not among `classes`, and for a part that is not there
    """
    fields = fields or Fields()
    if part is None:
        listing = list_data(data, fields, where="the list", allow_empty=True).labelled
    else:
        listing = list_part(data, part, fields, where="the list")
    return joined(listing, tuple(classes), multilabel, "the model")


def joined(listing, classes, multilabel, train_where):
    """A Split whose labels are positions in the given classes, by name.

    Raises:  DataError for a name that is not among them, or several names where one is expected
    """
    position = {name: label for label, name in enumerate(classes)}
    names = listing.label_tuples()
    used = {part for name in names for part in name}
    if listing.multilabel and not multilabel:
        several = next((i for i, name in enumerate(names) if len(name) != 1), None)
        if several is not None:
            raise DataError(
                f"{shown(listing.where)}: {shown(listing.images.name(several))} has {len(names[several])} labels, "
                f"but {train_where} has one per image: give one label per image"
            )
    unknown = sorted(used - position.keys())
    if unknown:
        others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        close = nearest(unknown[0], classes)
        hint = f" (did you mean {close!r}?)" if close else ""
        raise DataError(
            f"{shown(listing.where)} has class {unknown[0]!r}{others} that {train_where} does not{hint}: "
            "rename it, or train on images of it too"
        )
    if multilabel:
        labels = np.zeros((len(names), len(classes)), dtype=bool)
        for row, name in enumerate(names):
            labels[row, [position[part] for part in name]] = True
    else:
        labels = np.array([position[name] for (name,) in names], dtype=np.int64)
    return Split(listing.images, labels, classes)


def _every(split, part):
    return np.ones(len(split), dtype=bool)


def _defining(listing: Listing):
    """The Split that defines the classes."""
    if not len(listing.images):
        raise DataError(f"{shown(listing.where)} has no images: give at least two classes of images")
    names = {part for name in listing.label_tuples() for part in name} | set(listing.classes)
    classes = tuple(sorted(names))
    if len(classes) < 2:
        only = f"one class only, {shown(classes[0])}" if classes else "no label at all"
        raise DataError(f"{shown(listing.where)} has {only}: add a second class to tell it from")
    unwritable = next((name for name in classes if name.encode("utf-8", "replace").decode() != name), None)
    if unwritable is not None:
        raise DataError(
            f"{shown(listing.where)} has class {unwritable!r}, which is not UTF-8 and cannot be stored with the model: "
            "rename it, or save the table as UTF-8"
        )
    return joined(listing, classes, listing.multilabel, shown(listing.where))


def _validation(listing, train, train_where):
    if not len(listing.images):
        raise DataError(f"{shown(listing.where)} has no images: fill it, or leave it out")
    return joined(listing, train.classes, train.multilabel, train_where)


def _held_out(train, where, note, ignored, share, seed):
    if share:
        held = draw.hold_out(train.images, train.labels, len(train.classes), share, seed)
        if held.any():
            origin = f"{100 * share:g}% of each class of {where} held out for validation (seed {seed}){note}"
            return Dataset(train.take(~held), train.take(held), origin, ignored)
    return Dataset(train, None, f"all of {where} for training, nothing held out{note}", ignored)


def nearest(name, known):
    """The known class that differs only in case, plural or separators, else the most similar one, else None."""

    def key(text):
        return "".join(filter(str.isalnum, text.casefold())).removesuffix("s")

    same = [candidate for candidate in known if key(candidate) == key(name)]
    return next(iter(same or difflib.get_close_matches(name, known, n=1)), None)
