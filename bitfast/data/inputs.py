"""Images without labels, as `predict` is given them: files, folders, patterns, tables, archives, a list on stdin."""

import glob
import io
import os
import sys

from bitfast.data import shards, tar, tfrecord
from bitfast.data.decode import shown
from bitfast.data.folder import images_below
from bitfast.data.openers import is_table
from bitfast.data.source import Named
from bitfast.data.table import read_paths
from bitfast.errors import DataError

STDIN = "-"


def image_inputs(names, fields):
    """The Sources of what the names stand for, in their order; images are called as they were written.

    A name is an image file; a folder, searched recursively; a pattern with * ? [] ** or {a,b}; a .csv, .tsv or .txt
    with a column of paths (table.read_paths); a .tar, all of whose images count, or .tfrecord; or "-": paths on stdin,
    one per line. Paths in tables and on stdin are not looked at here, so that one that is gone is an error of its own.

    Raises:  DataError for a name that is none of these or holds no image
    """
    sources, paths = [], []

    def gather():
        if paths:
            sources.append(Named(paths))
            paths.clear()

    for name in names:
        for path in _expanded(name):
            if path != STDIN and os.path.isfile(path) and shards.is_shard(path):
                gather()
                sources.append(_in_shard(path, fields))
            else:
                paths += _paths(path, fields)
    gather()
    return sources


def _expanded(name):
    if name == STDIN or os.path.lexists(name):
        return [name]
    if not shards.is_pattern(name):
        raise DataError(f"{shown(name)}: no such file or folder: check the path")
    found = shards.expand(name) if "{" in name else sorted(glob.glob(name, recursive=True))
    if not found:
        raise DataError(f"{shown(name)}: no file matches: check the pattern")
    return found


def _paths(name, fields):
    if name == STDIN:
        return _from_stdin()
    if os.path.isdir(name):
        found = images_below(name)
        if not found:
            raise DataError(f"{shown(name)}: no images in this folder: name image files or a folder that holds some")
        return found
    return read_paths(name, fields) if is_table(name) else [name]


def _in_shard(path, fields):
    if tfrecord.is_tfrecord(path):
        return shards.list_shards([os.path.abspath(path)], fields, shown(path)).images
    return tar.images_in(path)


def _from_stdin():
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # file names that are not UTF-8 keep their bytes
    found = [line.rstrip("\r\n") for line in sys.stdin]
    found = [line for line in found if line]
    if not found:
        raise DataError("no paths came on stdin: send one per line, such as find photos -name '*.jpg' |")
    return found
