"""Numbers and tables as Markdown."""


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def spread(low: float, high: float) -> str:
    """[low, high]"""
    return f"[{number(low)}, {number(high)}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A pipe table; columns after the first are right-aligned."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))
