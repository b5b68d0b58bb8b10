"""Training steps and inferences of whole networks: tables and bars."""

from benchmarks.models.peers import FLOOR, NOT_BIT, OURS
from benchmarks.pages import plots
from benchmarks.pages.markdown import number, spread, table
from benchmarks.pages.results import Record

WHAT = (
    "Median ms of a {task}, all networks in turn in one process; behind ours the quartiles. `{floor}` are the network's"
    " own convolutions in torch, channels_last, and nothing else. The last two columns are medians of the ratios within"
    " a round, with the lowest and the highest round."
)


def best_peer(case: dict[str, dict]) -> dict:
    """The row of the fastest that computes BiT and is not ours."""
    return min(
        (row for name, row in case.items() if name not in NOT_BIT and not name.startswith(OURS)),
        key=lambda row: row["median_ms"],
    )


def markdown(record: Record) -> str:
    """One table, a case per line."""
    cases = record.cases()
    names = list(next(iter(cases.values())))
    rows = []
    for case, of in cases.items():
        peer, ours = best_peer(of), of[OURS]
        cells = [number(of[name]["median_ms"]) for name in names]
        cells[names.index(OURS)] += " " + spread(*ours["quartile_ms"])
        against = f"{peer['ours_faster']:.2f} x {spread(*peer['ours_faster_range'])}"
        floor = f"{ours['of_convolutions']:.2f} {spread(*ours['of_convolutions_range'])}"
        rows.append([short(case), *cells, against, floor])
    what = WHAT.format(task="training step" if record.part == "train" else "batch of inference", floor=FLOOR)
    return f"{what}\n\n{table(['', *names, 'best peer / bitfast', 'bitfast / convolutions'], rows)}"


def figures(record: Record) -> dict[str, plots.Figure]:
    """Bars of images/s with quartiles, one group per case."""
    cases = record.cases()
    groups = {
        short(case): {name: (row["images_per_s"], _rates(row)) for name, row in of.items()}
        for case, of in cases.items()
    }
    return {record.part: plots.bars(groups, "images/s, relative to bitfast", relative_to=OURS)}


def short(case: str) -> str:
    """`resnet50x1 128 px b32` of `training resnet50x1 128 px b32 float32`."""
    return case.split(" ", 1)[1].removesuffix(" float32")


def _rates(row: dict) -> tuple[float, float]:
    fast, slow = row["quartile_ms"]
    batch = row["images_per_s"] * row["median_ms"]
    return batch / slow, batch / fast
