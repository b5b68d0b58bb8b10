"""The charts of report.html: small SVGs, drawn for a width of 360 px so that their text stays legible on a phone."""

import math

import numpy as np

from .markup import element

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 10, 34
POINTS = 240  # a longer curve is drawn as the mean of this many pieces, within the band from least to most


def line_chart(title, x, y, *, x_label, dots=False, percent=False, top=None):
    """A curve of y over x from y = 0 on, as a figure with its title; nothing for fewer than one point.

    dots     mark every point
    percent  y are shares
    top      upper end of the y axis; default the largest value
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if not len(x):
        return None
    x_ticks, y_ticks = ticks(x.min(), x.max(), whole=True), ticks(0, max(y.max(), 0) if top is None else top)
    x_axis = _scale(x.min(), x.max(), LEFT, WIDTH - RIGHT)
    y_axis = _scale(0, max(y_ticks[-1], y.max()), HEIGHT - BOTTOM, TOP)
    middle, low, high, at = _pieces(x, y)
    parts = [_axes(x_axis, y_axis, x_ticks, y_ticks, x_label, percent)]
    if len(at) < len(x):
        outline = [*zip(at, high, strict=True), *zip(at[::-1], low[::-1], strict=True)]
        parts.append(element("polygon", points=_points(outline, x_axis, y_axis), class_="band"))
    curve = list(zip(at, middle, strict=True))
    parts.append(element("polyline", points=_points(curve, x_axis, y_axis), class_="curve"))
    if dots or len(curve) == 1:
        parts += [element("circle", cx=_px(x_axis(a)), cy=_px(y_axis(b)), r=3, class_="dot") for a, b in curve]
    said = f"{title}: {_text(y[0], percent)} at {x_label} {x[0]:g}, {_text(y[-1], percent)} at {x[-1]:g}"
    return _figure(title, said, parts)


def reliability(bins):
    """Accuracy over confidence: one bar for each (low, high, images, confidence, accuracy), the ideal as a diagonal."""
    axis_x, axis_y = _scale(0, 1, LEFT, WIDTH - RIGHT), _scale(0, 1, HEIGHT - BOTTOM, TOP)
    unit = [0, 0.25, 0.5, 0.75, 1]
    parts = [_axes(axis_x, axis_y, unit, unit, "confidence", True, x_percent=True)]
    for low, high, images, _, accuracy in bins:
        bar = dict(x=_px(axis_x(low) + 1), width=_px(axis_x(high) - axis_x(low) - 2))
        bar |= dict(y=_px(axis_y(accuracy)), height=_px(axis_y(0) - axis_y(accuracy)))
        parts.append(element("rect", **bar, class_="bar", fill_opacity=_px(min(1, 0.35 + images / 40))))
    parts.append(
        element("line", x1=_px(axis_x(0)), y1=_px(axis_y(0)), x2=_px(axis_x(1)), y2=_px(axis_y(1)), class_="ideal")
    )
    parts += [
        element("circle", cx=_px(axis_x(confidence)), cy=_px(axis_y(accuracy)), r=3, class_="dot")
        for _, _, _, confidence, accuracy in bins
    ]
    said = "; ".join(f"confidence {c:.0%}, right {a:.0%} of {n}" for _, _, n, c, a in bins)
    return _figure("accuracy by confidence", f"reliability diagram: {said}", parts)


def ticks(low, high, count=4, whole=False):
    """About `count` round numbers from `low` or below to `high` or above; inside instead where they are whole steps."""
    span = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next((factor for factor in (1, 2, 5) if span / (step * factor) <= count), 10)
    if whole:
        step = max(1, round(step))
        return [value * step for value in range(math.ceil(low / step), math.floor(high / step) + 1)] or [low]
    return [value * step for value in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _pieces(x, y):
    """(mean, least, most of y, mean of x) of at most POINTS consecutive pieces."""
    parts = np.array_split(np.arange(len(x)), min(len(x), POINTS))
    return tuple(
        np.array([how(v[part]) for part in parts]) for how, v in ((np.mean, y), (np.min, y), (np.max, y), (np.mean, x))
    )


def _axes(x_axis, y_axis, x_ticks, y_ticks, x_label, percent, x_percent=False):
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in y_ticks:
        y = _px(y_axis(value))
        parts.append(element("line", x1=left, y1=y, x2=right, y2=y, class_="grid" if value else "axis"))
        parts.append(element("text", _text(value, percent), x=left - 6, y=y, dy="0.32em", class_="tick end"))
    for value in x_ticks:
        parts.append(
            element("text", _text(value, x_percent), x=_px(x_axis(value)), y=bottom + 15, class_="tick middle")
        )
    parts.append(element("text", x_label, x=(left + right) / 2, y=HEIGHT - 4, class_="tick middle"))
    return element("g", *parts, aria_hidden="true")


def _figure(title, said, parts):
    svg = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=said)
    return element("figure", element("figcaption", title), svg, class_="chart")


def _scale(low, high, start, end):
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _points(pairs, x_axis, y_axis):
    return " ".join(f"{_px(x_axis(a))},{_px(y_axis(b))}" for a, b in pairs)


def _px(value):
    return f"{value:.1f}"


def _text(value, percent=False):
    return f"{100 * value:.4g}%" if percent else f"{value:.4g}"
