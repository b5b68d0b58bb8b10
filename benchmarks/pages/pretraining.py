"""What a pretraining is worth: a table of accuracies."""

from statistics import median

from benchmarks.pages import plots
from benchmarks.pages.markdown import number, spread, table
from benchmarks.pages.results import Record

WHAT = (
    "{case}, {seeds} seeds: top-1 after a pretraining on 25 classes (dyed garments, `bit-s` cut to 300 steps of 128),"
    " of its transfer to five other classes with ten images each (HyperRule cut to 60 steps), and of the same from"
    " scratch. Median over seeds, with the lowest and the highest."
)


def markdown(record: Record) -> str:
    """One table, a provider per line."""
    of: dict[str, list[dict]] = {}
    for row in record.rows:
        of.setdefault(row["provider"], []).append(row)
    lines = []
    for provider, rows in of.items():
        values = [100 * row["top1"] for row in rows]
        cell = f"{number(median(values))} {spread(min(values), max(values))} %"
        lines.append([provider, cell, f"{rows[0]['images']:,}", f"{rows[0]['train_images']:,}"])
    what = WHAT.format(case=record.rows[0]["case"], seeds=len(of["upstream"]))
    return f"{what}\n\n{table(['', 'top-1', 'of images', 'trained on'], lines)}"


def figures(record: Record) -> dict[str, plots.Figure]:
    """None: the table says it."""
    return {}
