"""The result files of the suite, read back."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
NAME = re.compile(r"bench_(?P<machine>[a-z0-9]+)_(?P<part>[a-z_]+)\.json")


@dataclass(frozen=True)
class Record:
    """One file: rows, and what they were measured with, on, and when."""

    machine: str
    part: str
    facts: dict
    rows: list[dict]

    @property
    def file(self) -> str:
        """Its name."""
        return f"bench_{self.machine}_{self.part}.json"

    def cases(self) -> dict[str, dict[str, dict]]:
        """{case: {provider: row}} in the order of the file."""
        cases: dict[str, dict[str, dict]] = {}
        for row in self.rows:
            cases.setdefault(row["case"], {})[row["provider"]] = row
        return cases


def read(folder: Path = RESULTS) -> list[Record]:
    """Every file of the suite, by name."""
    records = []
    for path in sorted(folder.glob("bench_*.json")):
        match = NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path}: a file of the suite is named bench_MACHINE_PART.json")
        facts = json.loads(path.read_text(encoding="utf-8"))
        records.append(Record(match["machine"], match["part"], facts, facts.pop("rows")))
    return records
