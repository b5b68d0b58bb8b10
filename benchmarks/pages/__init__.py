"""docs/results.md, its plots and the README's table, made from benchmarks/results/bench_*.json and nothing else."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.pages import finetunes, inputs, memory, networks, operators, plots, pretraining, scaling
from benchmarks.pages.markdown import number, spread, table
from benchmarks.pages.results import RESULTS, Record, read

ROOT = Path(__file__).parents[2]
PAGE, README = Path("docs/results.md"), Path("README.md")
START, END = "<!-- results: made by python -m benchmarks.pages -->", "<!-- end of results -->"

# part of the suite -> (title, who draws it), in the order of the page
PARTS = {
    "train": ("Training", networks),
    "infer": ("Inference", networks),
    "memory": ("Memory", memory),
    "finetune": ("Time to an accuracy", finetunes),
    "pretrain": ("What a pretraining is worth", pretraining),
    "input": ("Input pipeline", inputs),
    "scaling": ("How cost grows", scaling),
    "group_norm": ("GroupNorm + ReLU", operators),
    "weight_std": ("Weight standardization and the optimizer's step", operators),
    "stem_pool": ("Stem pool", operators),
    "conv": ("Convolutions", operators),
}
HEAD = """# Results

Made by `python -m benchmarks.pages` from `benchmarks/results/bench_*.json`; `make bench` measures all of it anew on
your machine and makes this page again. Further measurements, and the ideas that lost, are in
[RESULTS.md](../benchmarks/RESULTS.md). Not yet measured on a GPU.
"""


def pages(folder: Path = RESULTS) -> dict[Path, str]:
    """{file, relative to the project: what it has to be}."""
    records = read(folder)
    files, text = {}, [HEAD]
    for machine in dict.fromkeys(record.machine for record in records):
        mine = {record.part: record for record in records if record.machine == machine}
        facts = next(iter(mine.values())).facts
        text.append(f"## {machine}: {facts['machine']}, {facts['cpu_capability']}, {facts['threads']} threads\n")
        for part, (title, drawn_by) in PARTS.items():
            if part not in mine:
                continue
            record = mine[part]
            text.append(f"### {title}\n\n{drawn_by.markdown(record)}\n")
            for name, figure in drawn_by.figures(record).items():
                path = PAGE.parent / "plots" / f"{machine}_{name}.svg"
                files[path] = plots.svg(figure)
                text.append(f"![{title}](plots/{path.name})\n")
            text.append(source(record))
    files[PAGE] = "\n".join(text)
    files[README] = _with_table((ROOT / README).read_text(encoding="utf-8"), readme_table(records))
    return files


def source(record: Record) -> str:
    """Where the numbers come from."""
    facts = record.facts
    absent = f"; absent: {', '.join(facts['absent'])}" if facts.get("absent") else ""
    changed = ", with changes" if facts["changed"] else ""
    return (
        f"`{facts['command']}` -> [{record.file}](../benchmarks/results/{record.file}), {facts['time'][:10]},"
        f" torch {facts['torch']}, commit {facts['commit'][:10]}{changed}{absent}\n"
    )


def readme_table(records: list[Record]) -> str:
    """What a reader wants to know first, of every machine."""
    order = list(PARTS)
    records = sorted(records, key=lambda record: (record.machine, order.index(record.part)))
    rows = [row for record in records for row in _headlines(record)]
    return table(["", "best peer", "bitfast", "best peer / bitfast", "from"], rows)


def _headlines(record: Record) -> Iterator[list[str]]:
    link = f"[{record.file}](benchmarks/results/{record.file})"
    if record.part in ("train", "infer"):
        task = "training" if record.part == "train" else "inference"
        for case, of in record.cases().items():
            peer, ours = networks.best_peer(of), of[networks.OURS]
            yield [
                f"{task} {networks.short(case)}",
                f"{number(peer['median_ms'])} ms, {peer['provider']}",
                f"{number(ours['median_ms'])} ms",
                f"{peer['ours_faster']:.2f} x {spread(*peer['ours_faster_range'])}",
                link,
            ]
    if record.part == "finetune":
        yield finetunes.headline(record, link)
    if record.part == "input":
        yield from inputs.headlines(record, link)
    if record.part == "memory":
        for case, of in record.cases().items():
            peer, ours = of["timm"], of["bitfast memory=save"]
            yield [
                f"memory of training {networks.short(case)}",
                f"{number(peer['step_mib'])} MiB, timm",
                f"{number(ours['step_mib'])} MiB, `--memory save`",
                f"{peer['step_mib'] / ours['step_mib']:.2f} x",
                link,
            ]


def _with_table(readme: str, table: str) -> str:
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table}\n{END}{after}"
