"""Time to an accuracy: a table and curves."""

from statistics import median

from benchmarks.pages import plots
from benchmarks.pages.markdown import number, spread, table
from benchmarks.pages.results import Record

OURS = "bitfast"
WHAT = (
    "Fine-tuning on {case} from JPEG files, the same hyperparameters and first weights for everyone, {seeds} seeds;"
    " seconds of training: reading, decoding, forward, backward, update. Median over seeds, with the lowest and the"
    " highest. `to {target:.0%}`: until an evaluation first saw that accuracy."
)


def markdown(record: Record) -> str:
    """One table, a provider per line."""
    first = record.rows[0]
    of = _by_provider(record)
    lines = []
    for provider, rows in of.items():
        reached = [row["seconds_to"] for row in rows]
        lines.append(
            [
                provider,
                _cell([row["seconds"] for row in rows]),
                _cell(reached) if all(reached) else f"{sum(map(bool, reached))} of {len(reached)} seeds",
                _cell([100 * row["top1"] for row in rows]) + " %",
                _cell([row["seconds"] / own["seconds"] for row, own in zip(rows, of[OURS], strict=True)]) + " x",
            ]
        )
    what = WHAT.format(case=first["case"], seeds=len(of[OURS]), target=first["target"])
    header = ["", "all steps, s", f"to {first['target']:.0%}, s", "top-1 at the end", "time / bitfast"]
    return f"{what}\n\n{table(header, lines)}"


def figures(record: Record) -> dict[str, plots.Figure]:
    """Accuracy over seconds of training, medians over seeds."""
    series = {
        provider: [
            (median(point[0] for point in points), 100 * median(point[1] for point in points))
            for points in zip(*(row["curve"] for row in rows), strict=True)
        ]
        for provider, rows in _by_provider(record).items()
    }
    return {record.part: plots.lines(series, "seconds of training", "top-1, %")}


def headline(record: Record, link: str) -> list[str]:
    """The line of the README's table."""
    of = _by_provider(record)
    peer = min((name for name in of if name != OURS), key=lambda name: median(row["seconds"] for row in of[name]))
    ratios = [row["seconds"] / own["seconds"] for row, own in zip(of[peer], of[OURS], strict=True)]
    return [
        f"fine-tuning {record.rows[0]['case']}, from JPEG files",
        f"{number(median(row['seconds'] for row in of[peer]))} s, {peer}",
        f"{number(median(row['seconds'] for row in of[OURS]))} s",
        f"{median(ratios):.2f} x {spread(min(ratios), max(ratios))}",
        link,
    ]


def _by_provider(record: Record) -> dict[str, list[dict]]:
    of: dict[str, list[dict]] = {}
    for row in record.rows:
        of.setdefault(row["provider"], []).append(row)
    return of


def _cell(values: list[float]) -> str:
    return f"{number(median(values))} {spread(min(values), max(values))}"
