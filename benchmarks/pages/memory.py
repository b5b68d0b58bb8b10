"""Peak memory of a training step: a table and bars."""

from benchmarks.pages import plots
from benchmarks.pages.markdown import number, table
from benchmarks.pages.networks import short
from benchmarks.pages.results import Record

WHAT = (
    "MiB that a training step takes over the built network, each in a process of its own with glibc as it comes, in"
    " brackets the share of timm's."
)


def markdown(record: Record) -> str:
    """One table, a case per line."""
    cases = record.cases()
    names = list(next(iter(cases.values())))
    rows = [
        [short(case), *(f"{number(of[name]['step_mib'])} ({of[name]['of_timm']:.2f})" for name in names)]
        for case, of in cases.items()
    ]
    return f"{WHAT}\n\n{table(['', *names], rows)}"


def figures(record: Record) -> dict[str, plots.Figure]:
    """Bars of MiB."""
    groups = {
        short(case): {name: (row["step_mib"], None) for name, row in of.items()} for case, of in record.cases().items()
    }
    return {record.part: plots.bars(groups, "MiB of a training step over the built network")}
