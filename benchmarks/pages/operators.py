"""Single operators: tables, and how near each comes to the copy's bandwidth at its byte floor."""

from benchmarks.pages import plots
from benchmarks.pages.markdown import number, spread, table
from benchmarks.pages.results import Record

OURS = {"group_norm": "ours", "weight_std": "native", "stem_pool": "native", "conv": ("implicit GEMM", "Winograd")}
WHAT = {
    "group_norm": "GroupNorm + ReLU, for backward with all its gradients, on (channels x height x width).",
    "weight_std": "All standardized weights of R50x1 in one call; `step` is gradient, momentum, update and the new"
    " standardized weights.",
    "stem_pool": "Zero-pad and 3x3/2 max-pool after the stem.",
    "conv": "Convolutions of R50x1: `norm` is GroupNorm + ReLU + convolution, `input` and `weight` the two gradients.",
}
COLUMNS = (
    " Median ms, behind ours the quartiles; `copy` moves the bytes that any implementation has to (read inputs once,"
    " write outputs once). Of ours and of the others the fastest in either layout. The spread of the last column comes"
    " from the quartiles of both."
)


def markdown(record: Record) -> str:
    """One table, a case per line."""
    rows = []
    for case, of in record.cases().items():
        copy, ours, other = _three(record.part, of)
        low, high = (other["quartile_ms"][i] / ours["quartile_ms"][1 - i] for i in (0, 1))
        of_copy = f"{copy['median_ms'] / ours['median_ms']:.0%}"
        rows.append(
            [
                case.removesuffix(" float32"),
                number(copy["median_ms"]),
                f"{number(ours['median_ms'])} {spread(*ours['quartile_ms'])}",
                of_copy,
                number(other["median_ms"]),
                other["provider"],
                f"{other['median_ms'] / ours['median_ms']:.2f} x {spread(low, high)}",
            ]
        )
    header = ["", "copy", "bitfast", "of copy", "best other", "which", "best other / bitfast"]
    return f"{WHAT[record.part]}{COLUMNS}\n\n{table(header, rows)}"


def figures(record: Record) -> dict[str, plots.Figure]:
    """A roofline: GB/s over the bytes a case has to move, ours and the best other, under the copy's line."""
    if record.part == "conv":
        return {}
    points: dict[str, list[tuple[float, float]]] = {"copy": [], "bitfast": [], "best other": []}
    for of in record.cases().values():
        for name, row in zip(points, _three(record.part, of), strict=True):
            points[name].append((row["moved_bytes"], row["gb_per_s"]))
    return {record.part: plots.roofline(points)}


def _three(part: str, of: dict[str, dict]) -> tuple[dict, dict, dict]:
    """The rows of copy, of the fastest of ours and of the fastest other."""
    ours = [row for name, row in of.items() if name.startswith(OURS[part])]
    others = [row for name, row in of.items() if name not in ("copy", "reference") and not name.startswith(OURS[part])]
    fastest = (min(rows, key=lambda row: row["median_ms"]) for rows in (ours, others))
    return of["copy"], *fastest
