"""A small table, for a terminal, a pipe and a notebook."""

from dataclasses import dataclass
from html import escape

_STYLE = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"


@dataclass(frozen=True)
class Table:
    """Rows of texts under a title, with notes below; `columns` are headings, if there are any."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self):
        rows = [self.columns, *self.rows] if self.columns else self.rows
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([self.title, *lines, *(f"  note: {note}" for note in self.notes)])

    def __rich__(self):
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(title=self.title, title_justify="left", box=SIMPLE_HEAD, show_header=bool(self.columns))
        for heading in self.columns or [""] * len(self.rows[0]):
            grid.add_column(heading)
        for name, *cells in self.rows:
            grid.add_row(Text(name, "bold"), *map(Text, cells))
        return Group(grid, *(Text(f"note: {note}") for note in self.notes))

    def _repr_html_(self):
        """Self-contained HTML, all texts escaped."""
        head = "".join(f'<th style="{_STYLE}">{escape(text)}</th>' for text in self.columns)
        body = "".join(
            "<tr>" + "".join(f'<td style="{_STYLE}">{escape(cell)}</td>' for cell in row) + "</tr>" for row in self.rows
        )
        notes = "".join(f"<p>note: {escape(note)}</p>" for note in self.notes)
        return f"<table><caption>{escape(self.title)}</caption><tr>{head}</tr>{body}</table>{notes}"


def show(thing):
    """Print what has `table()`: as rich draws it on a terminal, else as plain text."""
    import sys

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(thing.table())
    else:
        print(thing)
