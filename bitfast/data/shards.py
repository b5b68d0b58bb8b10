"""DATA that is many images in few files: patterns such as shards-{000..012}.tar, and images named SHARD:MEMBER."""

import glob
import os
import re

from bitfast.data.decode import shown
from bitfast.data.source import Files
from bitfast.data.tar import list_tars
from bitfast.data.tfrecord import is_tfrecord, list_records
from bitfast.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(name):
    """Whether a name that is no existing path stands for several files."""
    return not os.path.exists(name) and bool(_BRACES.search(os.fspath(name)) or glob.has_magic(os.fspath(name)))


def expand(pattern):
    """The absolute paths that a pattern stands for.

    {000..012} counts, both ends included and padded as the first is; {a,b} lists; then * ? [] are matched with the
    files there are, in Unicode order.
    Raises:  DataError naming a file that is not there, or the pattern if nothing matches
    """
    paths = []
    for name in _without_braces(os.fspath(pattern)):
        found = sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
        if not found:
            raise DataError(f"{shown(name)}: no file matches: check the pattern")
        gone = next((path for path in found if not os.path.isfile(path)), None)
        if gone is not None:
            what = "is a folder" if os.path.isdir(gone) else "no such file"
            raise DataError(f"{shown(gone)}: {what} (of {shown(pattern)}): check the pattern")
        paths += map(os.path.abspath, found)
    return list(dict.fromkeys(paths))


def list_shards(paths, fields, where):
    """The Listing of WebDataset or TFRecord files, told apart by what the first one holds."""
    return (list_records if is_tfrecord(paths[0]) else list_tars)(paths, fields, where)


def is_shard(path):
    """Whether a file is an archive or a record file, by suffix, or without a known one by what it holds."""
    name = os.path.basename(path).lower()
    return name.endswith((".tar", ".tar.gz", ".tgz", ".tfrecord", ".tfrecords")) or is_tfrecord(path)


def located(names, fields):
    """The Source of absolute names: files, or members of shards written SHARD:MEMBER.

    Raises:  DataError if a shard has no such member
    """
    known = {}
    shards = [_shard(name, known) for name in names]
    if not any(shards):
        return Files(names)
    images = list_shards(list(dict.fromkeys(filter(None, shards))), fields, "the shards").images
    position = {images.name(i): i for i in range(len(images))}
    gone = next((name for name in names if name not in position), None)
    if gone is not None:
        raise DataError(f"{shown(gone)}: no such image in the shards: restore the file it was in")
    return images.take([position[name] for name in names])


def _shard(name, known):
    """The shard in SHARD:MEMBER, or None; `known` remembers which beginnings of names are files."""
    for colon in re.finditer(":", name):
        path = name[: colon.start()]
        if path not in known:
            known[path] = os.path.isfile(path)
        if known[path]:
            return path
    return None


def _without_braces(pattern):
    braces = _BRACES.search(pattern)
    if not braces:
        return [pattern]
    numbers = _RANGE.fullmatch(braces[1])
    if numbers:
        first, last = map(int, numbers.groups())
        if last < first:
            raise DataError(f"{shown(pattern)}: {{{braces[1]}}} counts down: write the smaller number first")
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    else:
        choices = braces[1].split(",")
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [name for choice in choices for name in _without_braces(head + choice + tail)]
