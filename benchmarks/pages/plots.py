"""Figures as SVG that are the same, byte for byte, whenever they are made from the same numbers."""

import io

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

STYLE = {
    "svg.hashsalt": "bitfast",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
}
OURS, OTHERS = "#0b6e4f", ["#9aa5b1", "#c3ccd5", "#7b8794", "#b8a9c9", "#d9b382", "#5c6773", "#e3d5ca", "#8fb8de"]


def bars(groups: dict[str, dict[str, tuple]], label: str, relative_to: str | None = None) -> Figure:
    """Horizontal bars, a panel per group; a value is (number, (low, high) or None), the spread drawn as a line."""
    with rc_context(STYLE):
        heights = [len(group) for group in groups.values()]
        figure = Figure(figsize=(7.5, 0.7 * len(groups) + 0.23 * sum(heights)), layout="constrained")
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights, sharex=relative_to is not None)
        for axis, (name, group) in zip(axes[:, 0], groups.items(), strict=True):
            unit = group[relative_to][0] if relative_to else 1
            values = [value / unit for value, _ in group.values()]
            ours = ["bitfast" in provider for provider in group]
            axis.barh(list(group), values, color=[OURS if own else OTHERS[0] for own in ours])
            for i, (_, ends) in enumerate(group.values()):
                if ends is not None:
                    axis.plot([end / unit for end in ends], [i, i], color="#1f2933", linewidth=1.2)
            axis.invert_yaxis()
            axis.grid(axis="y", visible=False)
            axis.set_title(name, loc="left", fontsize=9, fontweight="bold")
        axes[-1, 0].set_xlabel(label)
    return figure


def roofline(points: dict[str, list[tuple[float, float]]]) -> Figure:
    """GB/s over MiB moved, both logarithmic; the first series is the roof."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.4), layout="constrained")
        axis = figure.subplots()
        for (name, series), color, marker in zip(points.items(), ("#1f2933", OURS, OTHERS[0]), "_o^", strict=True):
            x, y = zip(*((size / 2**20, rate) for size, rate in series), strict=True)
            axis.scatter(x, y, label=name, color=color, marker=marker, s=70 if marker == "_" else 22)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("MiB that have to be moved")
        axis.set_ylabel("GB/s of these")
        axis.legend(frameon=False)
    return figure


def lines(series: dict[str, list[tuple[float, float]]], x: str, y: str, *, logarithmic: bool = False) -> Figure:
    """One line per name."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.4), layout="constrained")
        axis = figure.subplots()
        colors = iter(OTHERS)
        for name, points in series.items():
            own = "bitfast" in name
            axis.plot(
                *zip(*points, strict=True),
                label=name,
                marker="o",
                markersize=3,
                linewidth=1.8 if own else 1.2,
                color=OURS if own else next(colors),
            )
        if logarithmic:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.legend(frameon=False)
    return figure


def svg(figure: Figure) -> str:
    """The figure as text."""
    file = io.StringIO()
    with rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())
