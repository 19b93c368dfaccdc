"""Plots as inline SVG: no script, colours from the page, and words for who cannot see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spatialembed.pictures.html import render

WIDTH, HEIGHT = 360, 210
"""Of a plot in its own units: those of a phone, where its text has the size of the page's."""
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 16, 26
"""Margins around the bars, without the names of marks."""
MARK_PX = 14
"""Height of the name of a mark."""
BINS = 36
LONGEST_LABEL = 22
"""Characters of the name of a bar."""
EDGE = 36
"""Room around a square plot for its numbers."""


class Mark(NamedTuple):
    """A vertical line with its name."""

    at: float
    label: str


class Chart(NamedTuple):
    """A plot with its title, and a sentence below it."""

    title: str
    svg: str
    note: str = ""


def spread(values: np.ndarray, unit: str) -> str:
    """A sentence for below a histogram."""
    low, middle, high = np.percentile(values, (5, 50, 95))
    return f"Median {middle:,.4g} {unit}; 90 % from {low:,.4g} to {high:,.4g}."


class _Text(NamedTuple):
    x: float
    y: float
    text: str
    anchor: str = "middle"
    kind: str = ""


def _svg(words: str, height: float = HEIGHT, **shapes: Sequence[tuple]) -> str:
    """shapes: boxes (x, y, width, height), lines (path, class), dots (x, y, class) and texts."""
    drawn = dict.fromkeys(("boxes", "lines", "dots", "texts"), ()) | shapes
    return render("chart.svg", {"words": words, "width": WIDTH, "height": height, **drawn})


def histogram(
    values: np.ndarray,
    *,
    title: str,
    unit: str,
    log: bool = False,
    marks: Sequence[Mark] = (),
    note: str = "",
) -> Chart:
    """How often each value comes: bars over an axis, logarithmic if ``log``.

    values: (N,), above 0 if ``log``. marks: at most three are read well.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        nothing = _Text(WIDTH / 2, HEIGHT / 2, "nothing")
        return Chart(title, _svg(f"{title}: nothing to show", texts=[nothing]), note)
    edges = _edges(values, [mark.at for mark in marks], log)
    counts, _ = np.histogram(values, edges)
    scale = math.log if log else float
    first, last = scale(edges[0]), scale(edges[-1])

    def place(value: float) -> float:
        return LEFT + (scale(value) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    bottom = HEIGHT - BOTTOM
    room = bottom - TOP - MARK_PX * len(marks)
    boxes = []
    for i in np.flatnonzero(counts):
        left, right = place(edges[i]), place(edges[i + 1])
        tall = max(1.0, room * counts[i] / counts.max())
        boxes.append((left + 0.5, bottom - tall, max(1.0, right - left - 1), tall))
    lines = [(f"M{LEFT} {bottom}H{WIDTH - RIGHT}", "axis")]
    texts = [_Text(WIDTH - RIGHT, HEIGHT - 9, unit, "end", "unit")]
    for tick in _ticks(edges[0], edges[-1], log):
        x, number = place(tick), f"{tick:,.10g}"
        lines.append((f"M{x:.1f} {bottom}v4", "axis"))
        if LEFT + 8 < x < WIDTH - RIGHT - 7 * len(unit) - 4 * len(number):
            texts.append(_Text(x, HEIGHT - 9, number))
    for row, mark in enumerate(marks):  # their names stand above each other: none covers another
        x, y = place(mark.at), 11 + MARK_PX * row
        lines.append((f"M{x:.1f} {y + 4}V{bottom}", "mark"))
        side, anchor = (-3, "end") if x > WIDTH / 2 else (3, "start")
        texts.append(_Text(x + side, y, mark.label, anchor, "mark-name"))
    middle = ", ".join(f"{np.percentile(values, p):.4g}" for p in (0, 50, 100))
    words = f"{title}: {len(values)} values in {unit}; smallest, median, largest {middle}"
    if marks:
        words += "; marked: " + "; ".join(f"{mark.label} at {mark.at:.4g}" for mark in marks)
    return Chart(title, _svg(words, lines=lines, boxes=boxes, texts=texts), note)


def _edges(values: np.ndarray, marks: Sequence[float], log: bool) -> np.ndarray:
    """Borders of the bins: whole numbers where there are few of them, marks inside."""
    low, high = min([values.min(), *marks]), max([values.max(), *marks])
    if log:
        return np.geomspace(low / 1.05, max(high, low * 1.01) * 1.05, BINS + 1)
    if (values == np.rint(values)).all() and high - low < BINS:
        return np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    room = (high - low or 1) * 0.02
    return np.linspace(low - room * (low > 0), high + room, BINS + 1)


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers in [low, high], a handful."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high / low < 300 else (1,)
        return [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * s for s in (1, 2, 5, 10) if power * s >= raw)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def bars(rows: Sequence[tuple[str, int]], *, title: str, note: str = "") -> Chart:
    """A bar for each name, in their order, as tall as it needs."""
    highest = max((count for _, count in rows), default=0) or 1
    boxes, texts, start, room = [], [], 140, WIDTH - 140 - 60
    for i, (name, count) in enumerate(rows):
        y, wide = 8 + 22 * i, max(1.0, room * count / highest)
        short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
        boxes.append((start, y, wide, 14))
        texts.append(_Text(start - 6, y + 11, short, "end"))
        texts.append(_Text(start + wide + 5, y + 11, f"{count:,}", "start"))
    words = f"{title}: " + ", ".join(f"{name} {count}" for name, count in rows)
    return Chart(title, _svg(words, 12 + 22 * len(rows), boxes=boxes, texts=texts), note)


def unit_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x_name: str, y_name: str
) -> Chart:
    """Lines through points in the unit square, and its diagonal.

    curves: the points (x, y) by the class of their colour in the stylesheet.
    """
    side = WIDTH - 2 * EDGE

    def place(x: float, y: float) -> tuple[float, float]:
        return EDGE + x * side, EDGE + (1 - y) * side

    (left, bottom), (right, top) = place(0, 0), place(1, 1)
    lines = [(f"M{left} {bottom}L{right} {top}", "diagonal")]
    texts = [_Text(WIDTH / 2, WIDTH - 4, x_name), _Text(left, top - 12, y_name)]
    for value in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(value, value)
        lines.append((f"M{x} {bottom}V{top}M{left} {y}H{right}", "grid-line"))
        texts += [_Text(x, bottom + 16, f"{value:g}"), _Text(left - 6, y + 4, f"{value:g}", "end")]
    dots = []
    for kind, points in curves.items():
        places = [place(x, y) for x, y in points]
        lines.append(("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), f"curve {kind}"))
        dots += [(x, y, kind) for x, y in places]
    words = f"{title}: {y_name} over {x_name}"
    return Chart(title, _svg(words, WIDTH, lines=lines, dots=dots, texts=texts))
