"""How cost grows with the work: tables and curves."""

from benchmarks.pages import plots
from benchmarks.pages.markdown import number, spread, table
from benchmarks.pages.results import Record

OURS = "bitfast"
# axis -> (column of the rows that varies, what it is called)
AXES = {
    "batch": ("batch", "images per step"),
    "resolution": ("px", "px"),
    "width": ("model", "network"),
}
WHAT = (
    "Training, fp32. ms per image, and in the last two columns per 1e9 multiply-adds of its forward; ours and a peer."
)


def markdown(record: Record) -> str:
    """A table per axis."""
    text = [WHAT]
    for axis, cases in _axes(record).items():
        column, name = AXES[axis]
        providers = list(next(iter(cases.values())))
        rows = []
        for of in cases.values():
            per_image = {provider: row["median_ms"] / row["batch"] for provider, row in of.items()}
            ours = of[OURS]
            peer = next(row for provider, row in of.items() if provider.startswith("timm"))
            rows.append(
                [str(ours[column])]
                + [number(per_image[provider]) for provider in providers]
                + [f"{peer['ours_faster']:.2f} x {spread(*peer['ours_faster_range'])}"]
                + [number(per_image[row["provider"]] / row["gmacs"]) for row in (ours, peer)]
            )
        fixed = _fixed(next(iter(cases.values()))[OURS], column)
        header = [f"{name} ({fixed})", *providers, "timm / bitfast", "bitfast per GMAC", "timm per GMAC"]
        text.append(table(header, rows))
    return "\n\n".join(text)


def figures(record: Record) -> dict[str, plots.Figure]:
    """Images/s over the batch."""
    series: dict[str, list[tuple[float, float]]] = {}
    for of in _axes(record)["batch"].values():
        for provider, row in of.items():
            series.setdefault(provider, []).append((row["batch"], row["images_per_s"]))
    return {record.part: plots.lines(series, "images per step", "images/s of training", logarithmic=True)}


def _axes(record: Record) -> dict[str, dict[str, dict[str, dict]]]:
    axes: dict[str, dict[str, dict[str, dict]]] = {}
    for row in record.rows:
        axes.setdefault(row["axis"], {}).setdefault(row["case"], {})[row["provider"]] = row
    return axes


def _fixed(row: dict, column: str) -> str:
    what = {"model": row["model"], "px": f"{row['px']} px", "batch": f"batch {row['batch']}"}
    return ", ".join(text for name, text in what.items() if name != column)
