"""The input pipeline: a table and bars."""

from collections.abc import Iterator

from benchmarks.pages import plots
from benchmarks.pages.markdown import number, spread, table
from benchmarks.pages.results import Record

WHAT = (
    "Images/s from JPEG files to normalized tensors, in brackets the slowest and the fastest of {rounds} rounds:"
    " {images} images of {kib:.0f} KiB on {cores} cores. A transform is RESIZE:CROP. `DataLoader` is torch's over"
    " Pillow, `bare DALI` the shortest pipeline one can write. The last column: median of the ratios within a round,"
    " lowest and highest."
)
OURS, PEER = "bitfast dali", "best DataLoader"


def markdown(record: Record) -> str:
    """One table, a transform per line."""
    cases = _cases(record)
    names = list(next(iter(cases.values())))
    rows = []
    for case, of in cases.items():
        cells = [
            f"{number(of[n]['images_per_second'])} {spread(min(of[n]['rounds']), max(of[n]['rounds']))}" for n in names
        ]
        ours = of[OURS]
        rows.append([case, *cells, f"{ours['against'][PEER]:.2f} x {spread(*ours['against_range'][PEER])}"])
    facts = record.facts
    what = WHAT.format(
        rounds=len(record.rows[0]["rounds"]),
        images=facts["images"],
        kib=facts["mean_file_bytes"] / 1024,
        cores=facts["cores"],
    )
    return f"{what}\n\n{table(['', *names, f'bitfast / {PEER}'], rows)}"


def figures(record: Record) -> dict[str, plots.Figure]:
    """Bars of images/s."""
    groups = {
        case: {name: (row["images_per_second"], (min(row["rounds"]), max(row["rounds"]))) for name, row in of.items()}
        for case, of in _cases(record).items()
    }
    return {record.part: plots.bars(groups, "images/s, relative to bitfast", relative_to=OURS)}


def headlines(record: Record, link: str) -> Iterator[list[str]]:
    """Lines of the README's table."""
    for case, of in _cases(record).items():
        loaders = (row for name, row in of.items() if name.startswith("DataLoader"))
        peer, ours = max(loaders, key=lambda row: row["images_per_second"]), of[OURS]
        yield [
            f"reading JPEG files, {case}",
            f"{number(peer['images_per_second'])} images/s, {peer['provider']}",
            f"{number(ours['images_per_second'])} images/s",
            f"{ours['against'][PEER]:.2f} x {spread(*ours['against_range'][PEER])}",
            link,
        ]


def _cases(record: Record) -> dict[str, dict[str, dict]]:
    cases: dict[str, dict[str, dict]] = {}
    for row in record.rows:
        cases.setdefault(row["transform"], {})[row["provider"]] = row
    return cases
