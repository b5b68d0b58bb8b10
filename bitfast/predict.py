"""What `bitfast predict` leaves behind: rows of CSV or JSON, an array of embeddings, copies sorted by class."""

import csv
import io
import json
import os
import shutil
import sys
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np

from .data import decode
from .data.source import Files
from .errors import BitfastError, Interrupted
from .files import replacing, require_free
from .progress import live
from .runtime import say
from .signals import stop_signals


def predict_inputs(classifier, sources, rows, *, output=None, force=False, embed=None, sort_into=None, **options):
    """Write a row for each image of the Sources as it is done; returns (images, unreadable ones, images without label).

    rows       a CsvRows or JsonRows
    output     file for the rows; None: stdout. A file that is there is replaced with `force` only
    embed      FILE.npy to write, float32 (n, num_features), and FILE.csv beside it: the path of each of its rows
    sort_into  folder whose sub-folder of its label each image is copied to
    options    topk, threshold of Classifier.stream

    After SIGINT or SIGTERM what was begun is finished, so that all rows are whole. Raises UsageError if a file is there
    or cannot be made, Interrupted after a signal.
    """
    total = sum(map(len, sources))
    done = bad = unlabelled = 0
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        stack.enter_context(stop.deferred())
        keep = stack.enter_context(feature_file(embed, total, classifier.network.num_features, force))
        write = stack.enter_context(row_file(output, force))
        shows = output is not None or not sys.stdout.isatty()
        show = stack.enter_context(live(total, "classified", "images") if shows else nullcontext(lambda count: None))
        write(rows.header)
        for source, i, p in _predictions(classifier, sources, embed is not None, options):
            write(rows.row(p))
            if p.error:
                bad += 1
            else:
                keep(p)
                unlabelled += not p.top
                if sort_into is not None:
                    for name, _ in p.top if classifier.multilabel else p.top[:1]:
                        copy_into(Path(sort_into), name, source, i)
            done += 1
            show(done)
            if stop.is_set():
                break
    if done < total:
        raise Interrupted(f"stopped after {done:,} of {total:,} images, whose rows are whole: start again for the rest")
    return done, bad, unlabelled


def _predictions(classifier, sources, features, options):
    for source in sources:
        for i, prediction in enumerate(classifier.stream(source, features=features, **options)):
            yield source, i, prediction


class CsvRows:
    """Columns path, label, prob[, label_2, prob_2, ...], error; with `joined` all labels in one cell, a|b."""

    def __init__(self, topk, joined):
        self._columns = topk
        self._joined = joined
        more = [column for k in range(2, topk + 1) for column in (f"label_{k}", f"prob_{k}")]
        self.header = _csv_line(["path", "label", "prob", *more, "error"])

    def row(self, p):
        if self._joined:
            cells = ["|".join(name for name, _ in p.top), "|".join(f"{value:.6f}" for _, value in p.top)]
        else:
            cells = [cell for name, value in p.top for cell in (name, f"{value:.6f}")]
            cells += [""] * (2 * self._columns - len(cells))
        return _csv_line([p.path, *cells, p.error])


class JsonRows:
    """One object per line: path, label, prob (of the most probable class, null without one), top, error."""

    header = ""

    def row(self, p):
        label, prob = p.top[0] if p.top else (None, None)
        top = [{"label": name, "prob": value} for name, value in p.top]
        return json.dumps({"path": p.path, "label": label, "prob": prob, "top": top, "error": p.error}) + "\n"


@contextmanager
def row_file(path, force):
    """Yields a function that writes one whole row at once, to a file or to stdout (None)."""
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # file names that are not UTF-8 keep their bytes
        yield _writer(sys.stdout)
        return
    require_free(path, force)
    try:
        file = open(path, "w" if force else "x", newline="", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise _not_writable(path, error) from error
    with file:
        yield _writer(file)


@contextmanager
def feature_file(path, most, columns, force):
    """Yields a function that appends a Prediction's features; at the end `path` and its sibling .csv get their names.

    most  how many rows there can be; the array has those that came
    """
    if path is None:
        yield lambda prediction: None
        return
    path = Path(path)
    listing = path.with_suffix(".csv")
    for taken in (path, listing):
        require_free(taken, force)
    count = 0
    try:
        with (
            replacing(path) as data,
            replacing(listing) as names,
            open(data, "wb") as array,
            open(names, "w", newline="", encoding="utf-8", errors="surrogateescape") as paths,
        ):
            paths.write(_csv_line(["row", "path"]))
            _npy_header(array, most, columns)

            def keep(prediction):
                nonlocal count
                array.write(prediction.features.astype("<f4").tobytes())
                paths.write(_csv_line([count, prediction.path]))
                count += 1

            yield keep
            array.seek(0)
            _npy_header(array, count, columns)
    except OSError as error:
        if error.filename is None or Path(error.filename).parent != path.parent:
            raise
        raise _not_writable(path, error) from error


def copy_into(folder, label, source, i):
    """Copy an image into folder/label under its own name, unless the same bytes are there; nothing is overwritten.

    Another file of that name gets company: photo_2.jpg. Characters of a label that would leave the folder are written
    as %2F and the like.
    """
    target = folder / folder_name(label)
    own = source.path(i) if isinstance(source, Files) else source.name(i).rpartition(":")[2]
    stem, suffix = os.path.splitext(os.path.basename(own))
    try:
        content = decode.read(source, i)
    except decode.Unreadable as error:
        say(f"{decode.shown(source.name(i))} was not copied: {error}")
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        k = 1
        while (path := target / (f"{stem}{suffix}" if k == 1 else f"{stem}_{k}{suffix}")).exists():
            if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
                return
            k += 1
        with open(path, "xb") as file:
            try:
                file.write(content)
            except OSError:
                path.unlink()
                raise
        if isinstance(source, Files):
            shutil.copystat(source.path(i), path)
    except OSError as error:
        raise _not_writable(target, error) from error


def folder_name(label):
    """A class name as the name of one folder."""
    name = label.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C").replace("\0", "%00")
    return "%2E" + name[1:] if name.startswith(".") else name


def _not_writable(path, error):
    return BitfastError(f"{path} cannot be written ({error.strerror}): check the folder and the free space")


def _writer(file):
    def write(text):
        file.write(text)
        file.flush()

    return write


def _csv_line(cells):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _npy_header(file, rows, columns):
    """numpy pads it so that it is as long for any number of rows."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)})
