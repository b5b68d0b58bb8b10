"""check(): look at every image of a dataset and say what is in it, what is wrong, and what would stop a training."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field

from ..config import bad_images_policy
from ..data import check as scanner
from ..data import decode, folder
from ..data.dataset import nearest
from ..data.decode import shown
from ..data.listing import Fields
from ..data.openers import is_name, list_data
from ..data.source import Source

TINY_PX = 32
EXTREME_ASPECT = 4
IMBALANCED = 10
_EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class _Part:
    images: Source
    labels: list[tuple[str, ...]]
    scan: scanner.Scan


@dataclass(frozen=True)
class Report:
    """What `check` found. Prints itself as a table; `to_dict` is the same for programs.

    data        what was looked at
    ok          whether a training can start; `problems` says in one line each why not
    problems    what stops it
    warnings    what does not, but is worth a look
    splits      {"train" | "val": {"images", "readable", "classes": {name: readable images}, "median_size": [h, w]}}
    formats     {"JPEG": 3, ...}, of readable images
    traits      {"EXIF-rotated" | "16-bit" | "alpha" | "CMYK" | "grayscale" | "animated" | "tiny" | "extreme aspect":
                names}
    unreadable  [{"path", "class", "split", "reason"}]
    duplicates  [{"same_class", "between_splits", "images": [{"path", "class", "split"}]}], equal in every byte
    ignored     files that are not looked at: suffix or kind -> count
    recalled    how many images were known from an earlier scan and unchanged since
    """

    data: str
    ok: bool
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    splits: dict[str, dict] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    traits: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[dict] = field(default_factory=list)
    duplicates: list[dict] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    recalled: int = 0

    def to_dict(self):
        """JSON-ready."""
        return dict(vars(self))

    def to_json(self):
        """One line."""
        return json.dumps(self.to_dict())

    def __str__(self):
        return "\n".join(_lines(self))


def check(data, *, val=None, bad_images="error", max_pixels=None, cache=True, fields=None, workers=None):
    """Decode every image of `data` in full and return the Report. Changes nothing.

    data, val   as in finetune
    bad_images  the policy a training would have: with "skip" unreadable images are no problem unless a class has
                no others
    max_pixels  images with more are refused; default Pillow's limit
    cache       use what earlier scans found in files of unchanged size and mtime; kept in
                files.cache_folder()/scan
    fields      listing.Fields, as in open_dataset
    workers     decoding threads

    Raises:  UsageError on another policy; DataError if there is nothing to look at: no folder, no images, a list that
             cannot be read
    """
    bad_images_policy(bad_images)
    with decode.pixel_limit(max_pixels):
        listed, ignored, empty = _listed(data, val, fields or Fields())
        parts = {
            name: _Part(images, labels, scanner.scan(images, workers, cache=cache))
            for name, (images, labels) in listed.items()
        }
    where = shown(os.fspath(data)) if is_name(data) else "the list"
    unreadable = [
        _image(part, name, i) | {"reason": look.why}
        for name, part in parts.items()
        for i, look in enumerate(part.scan.looks)
        if look.why
    ]
    duplicates = _duplicates(parts)
    splits = {name: _summary(part) for name, part in parts.items()}
    if fields is not None and fields.empty:
        empty = {}
    problems = _problems(where, splits, empty, unreadable, bad_images)
    traits = _traits(parts)
    return Report(
        data=where,
        ok=not problems,
        problems=problems,
        warnings=_warnings(splits, traits, duplicates),
        splits=splits,
        formats=_counted(look.format for part in parts.values() for look in part.scan.looks if not look.why),
        traits=traits,
        unreadable=unreadable,
        duplicates=duplicates,
        ignored=dict(ignored),
        recalled=sum(part.scan.recalled for part in parts.values()),
    )


def _listed(data, val, fields):
    """({part: (Source, class names of each image)}, ignored counts, {part: empty class folders}).

    Listed leniently, so that all faults are reported and not only the first.
    """
    parts = list_data(data, fields, where="the list", allow_empty=True, allow_missing=True)
    listings = {"train": parts.train, "val": parts.val}
    ignored = Counter(parts.ignored)
    if val is not None:
        other = list_data(val, fields, where="the val list", allow_empty=True, allow_missing=True)
        listings["val"] = other.labelled
        ignored.update(other.ignored)
    listings = {part: listing for part, listing in listings.items() if listing is not None}
    empty = {}
    for part, listing in listings.items():
        if os.path.isdir(listing.where):
            used = {name for names in listing.label_tuples() for name in names}
            empty[part] = sorted(set(folder.entries(listing.where)[0]) - used)
    hidden = folder.hidden_below(data) if is_name(data) and os.path.isdir(data) else 0
    ignored.update({folder.HIDDEN: hidden} if hidden else {})
    return {part: (listing.images, listing.label_tuples()) for part, listing in listings.items()}, ignored, empty


def _summary(part):
    readable = part.scan.readable
    counts = dict.fromkeys(sorted({name for names in part.labels for name in names}), 0)
    counts.update(Counter(name for names, good in zip(part.labels, readable, strict=True) if good for name in names))
    return {
        "images": len(readable),
        "readable": int(readable.sum()),
        "classes": counts,
        "median_size": list(scanner.median_size(part.scan.sizes)) if readable.any() else None,
    }


def _problems(where, splits, empty, unreadable, bad_images):
    problems = []
    if unreadable and bad_images == "error":
        first = unreadable[0]
        problems.append(
            f"{len(unreadable):,} of {sum(part['images'] for part in splits.values()):,} images cannot be read, the"
            f" first is {shown(first['path'])} ({first['reason']}): replace or delete them, or train with"
            " --bad-images skip"
        )
    train = splits["train"]["classes"]
    for name in empty.get("train", ()):
        problems.append(f"class folder {shown(name)} of {where} has no images: add images or delete the folder")
    if len(train) < 2:
        only = f"one class only, {shown(next(iter(train)))}" if train else "no labels"
        problems.append(f"{where} has {only}: add a second class to tell it from")
    for name, count in train.items():
        if not count:
            problems.append(f"class {shown(name)} has no image that can be read: replace them, or delete the class")
    for name in sorted(set(splits.get("val", {"classes": ()})["classes"]) - set(train)):
        close = nearest(name, tuple(train))
        hint = f" (did you mean {close!r}?)" if close else ""
        problems.append(f"val has class {name!r} that train does not{hint}: rename it, or train on images of it too")
    if not splits.get("val", {"readable": 1})["readable"]:
        problems.append("no image of val can be read: replace them, or leave val out")
    return problems


def _warnings(splits, traits, duplicates):
    warnings = []
    train = {name: count for name, count in splits["train"]["classes"].items() if count}
    most, least = (pick(train, key=train.get, default=None) for pick in (max, min))
    if train and train[most] >= IMBALANCED * train[least]:
        warnings.append(
            f"imbalanced: {shown(most)} has {train[most]:,} images, {shown(least)} {train[least]:,}"
            f" ({train[most] / train[least]:.0f} to 1): look at balanced_accuracy and macro_f1"
        )
    missing = sorted(set(train) - set(splits.get("val", {"classes": train})["classes"]))
    if missing:
        warnings.append(f"classes of train that val lacks: {len(missing):,}, {_some(missing)}")
    between = [group for group in duplicates if group["between_splits"]]
    if between:
        warnings.append(f"in both train and val: {len(between):,} groups of duplicates; the accuracy will be too good")
    split_labels = [group for group in duplicates if not group["same_class"]]
    if split_labels:
        warnings.append(
            f"in several classes: {len(split_labels):,} groups of duplicates; at most one class can be right"
        )
    if traits.get("animated"):
        warnings.append(
            f"with several frames: {len(traits['animated']):,} files, of which only the first frame is used"
        )
    return warnings


def _traits(parts):
    """{trait: names of the readable images that have it}, in a fixed order, without empty ones."""
    found = {name: [] for name in (*scanner.TRAITS, "tiny", "extreme aspect")}
    for part in parts.values():
        for name, look in zip(part.scan.names, part.scan.looks, strict=True):
            if look.why:
                continue
            short, long = sorted((look.height, look.width))
            extra = ("tiny",) * (short < TINY_PX) + ("extreme aspect",) * (long > EXTREME_ASPECT * short)
            for trait in look.traits + extra:
                found[trait].append(name)
    return {trait: names for trait, names in found.items() if names}


def _duplicates(parts):
    groups = []
    for group in scanner.duplicates({name: part.scan for name, part in parts.items()}):
        images = [_image(parts[name], name, i) for name, i in group]
        groups.append(
            {
                "same_class": len({image["class"] for image in images}) == 1,
                "between_splits": len({image["split"] for image in images}) > 1,
                "images": images,
            }
        )
    return groups


def _image(part, name, i):
    return {"path": part.scan.names[i], "class": "|".join(part.labels[i]), "split": name}


def _counted(items):
    return dict(Counter(items).most_common())


def _lines(report):
    """The table: splits and classes, kinds of images, every unreadable image, duplicates, what it means."""
    for name, split in report.splits.items():
        size = split["median_size"]
        yield (
            f"{name:<6}{split['images']:,} images, {split['readable']:,} readable, {len(split['classes']):,} classes"
            + (f", median {size[0]} x {size[1]} px" if size else "")
        )
    yield from _class_table(report.splits)
    yield f"formats         {', '.join(f'{count:,} {name}' for name, count in report.formats.items()) or 'none'}"
    for trait, names in report.traits.items():
        yield f"{trait:<16}{len(names):,}: {_some(names)}"
    if report.ignored:
        listed = (f"{count:,} {shown(name)}" for name, count in report.ignored.items())
        yield f"ignored         {', '.join(listed)}"
    if report.recalled:
        yield f"known           {report.recalled:,} images from an earlier scan, unchanged (--no-cache looks again)"
    if report.unreadable:
        yield f"unreadable      {len(report.unreadable):,}"
        yield from (f"  {image['split']:<6}{shown(image['path'])}: {image['reason']}" for image in report.unreadable)
    if report.duplicates:
        yield f"duplicates      {len(report.duplicates):,} groups of images with equal bytes"
        for group in report.duplicates:
            kind = "" if group["same_class"] else ", different classes"
            where = "train and val" if group["between_splits"] else group["images"][0]["split"]
            yield f"  {where}{kind}: {' = '.join(shown(image['path']) for image in group['images'])}"
    yield from (f"warning: {line}" for line in report.warnings)
    yield from (f"problem: {line}" for line in report.problems)
    yield f"{report.data}: " + ("fine to train on" if report.ok else "not fit to train on, see the problems")


def _class_table(splits):
    names = sorted(set().union(*(split["classes"] for split in splits.values())))
    width = max((len(shown(name)) for name in names), default=0)
    yield f"  {'class':<{width}}  " + "  ".join(f"{part:>8}" for part in splits)
    for name in names:
        yield f"  {shown(name):<{width}}  " + "  ".join(f"{s['classes'].get(name, 0):>8,}" for s in splits.values())


def _some(names):
    more = f" and {len(names) - _EXAMPLES:,} more" if len(names) > _EXAMPLES else ""
    return ", ".join(shown(name) for name in names[:_EXAMPLES]) + more
