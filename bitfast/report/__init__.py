"""What a run leaves behind for people: report.html, report.md, pictures, and CSV files of results and predictions."""

import importlib.util

from ..files import write_text
from ..runtime import say
from . import plots, sheet
from .markdown import markdown
from .page import page
from .record import Interpreted, Record, Run
from .tables import write_predictions, write_tables

__all__ = ["Interpreted", "Record", "Run", "render", "write_predictions", "write_report", "write_train_batch"]


def write_train_batch(folder, split, transform, sampler, engine, left_out):
    """Write samples/train_batch.png: the first images of step 0 as the network gets them, with their labels."""
    tiles = sheet.train_batch(split, transform, sampler, engine, left_out)
    if tiles:
        sheet.write_sheet(folder.train_batch, tiles)


def write_report(folder, dataset, predictions):
    """Write the tables of a finished run, plots/top_losses.png, and what `render` makes of them.

    predictions  of the validation split after the last step, or None without one
    """
    if predictions is not None:
        evals = [record for record in folder.records() if record["kind"] == "eval"]
        last = {"step": Record(folder.path).plan["steps"], **predictions.metrics()}
        worst = write_tables(folder.path, dataset, [*evals, last], predictions)[: sheet.SHOWN]
        captions = [", ".join(dataset.val.names(i)) or "no label" for i in worst]
        sheet.write_sheet(folder.top_losses, sheet.photos(dataset.val.images, worst, captions))
    render(folder.path)


def render(folder):
    """Write report.md, report.html and the plots of a run, finished or not, from its files; the path of report.html.

    Raises:  DataError if there is no run, or its files are not what it wrote
    """
    record = Record(folder)
    drawn = importlib.util.find_spec("matplotlib") is not None
    if not drawn:
        say("matplotlib is not installed: no pictures in plots/, report.html has its own (bitfast[plots] adds them)")
    names = plots.draw(record) if drawn else ()
    write_text(record.folder.report_md, markdown(record, names))
    write_text(record.folder.report_html, page(record))
    return record.folder.report_html
