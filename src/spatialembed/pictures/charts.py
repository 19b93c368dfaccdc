"""Plots as inline SVG: no script, colours from the page, and words for who cannot see them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 360, 210
"""Of a plot in its own units: those of a phone, where its text has the size of the page's."""
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 16, 26
"""Margins around the bars, without the names of marks."""
MARK_PX = 14
"""Height of the name of a mark."""
BINS = 36
LONGEST_LABEL = 22
"""Characters of the name of a bar."""


class Mark(NamedTuple):
    """A vertical line with its name."""

    at: float
    label: str


def histogram(
    values: np.ndarray,
    *,
    title: str,
    unit: str,
    log: bool = False,
    marks: Sequence[Mark] = (),
) -> str:
    """How often each value comes: an SVG of bars over an axis, logarithmic if ``log``.

    values: (N,), above 0 if ``log``. marks: at most three are read well.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return _svg(
            f"{title}: nothing to show", [_text(WIDTH / 2, HEIGHT / 2, "nothing", "middle")]
        )
    edges = _edges(values, [mark.at for mark in marks], log)
    counts, _ = np.histogram(values, edges)
    scale = math.log if log else float
    first, last = scale(edges[0]), scale(edges[-1])

    def place(value: float) -> float:
        return LEFT + (scale(value) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    top = TOP + MARK_PX * len(marks)
    body = _bars(counts, [place(edge) for edge in edges], top)
    body += _axis(_ticks(edges[0], edges[-1], log), place, unit)
    body += _marks(marks, place)
    middle = ", ".join(f"{np.percentile(values, p):.4g}" for p in (0, 50, 100))
    words = f"{title}: {len(values)} values in {unit}; smallest, median, largest {middle}"
    marked = "; ".join(f"{mark.label} at {mark.at:.4g}" for mark in marks)
    return _svg(f"{words}{'; marked: ' * bool(marked)}{marked}", body)


def _edges(values: np.ndarray, marks: Sequence[float], log: bool) -> np.ndarray:
    """Borders of the bins: whole numbers where there are few of them, marks inside."""
    low, high = (float(extreme) for extreme in (values.min(), values.max()))
    low, high = min([low, *marks]), max([high, *marks])
    if log:
        low, high = math.log(low) - 0.05, math.log(max(high, low * 1.01)) + 0.05
        return np.exp(np.linspace(low, high, BINS + 1))
    if (values == np.rint(values)).all() and high - low < BINS:
        return np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    room = (high - low or 1) * 0.02
    return np.linspace(low - room * (low > 0), high + room, BINS + 1)


def _bars(counts: np.ndarray, edges: Sequence[float], top: float) -> list[str]:
    highest = max(1, int(counts.max()))
    bottom, room = HEIGHT - BOTTOM, HEIGHT - BOTTOM - top
    bars = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            tall = max(1.0, room * count / highest)
            bars.append(
                f'<rect class="bar" x="{left + 0.5:.1f}" y="{bottom - tall:.1f}" '
                f'width="{max(1.0, right - left - 1):.1f}" height="{tall:.1f}"/>'
            )
    return [*bars, f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>']


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers in [low, high], a handful."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps: tuple[int, ...] = (1, 2, 5) if high / low < 300 else (1,)
        return [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * s for s in (1, 2, 5, 10) if power * s >= raw)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axis(ticks: Sequence[float], place: Callable[[float], float], unit: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in ticks:
        x = place(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        if LEFT + 8 < x < WIDTH - RIGHT - 7 * len(unit) - 4 * len(f"{tick:,.10g}"):
            parts.append(_text(x, HEIGHT - 9, f"{tick:,.10g}", "middle"))
    return [*parts, _text(WIDTH - RIGHT, HEIGHT - 9, unit, "end", "unit")]


def _marks(marks: Sequence[Mark], place: Callable[[float], float]) -> list[str]:
    """Dashed lines; the names stand above each other, so that none covers another."""
    parts = []
    for row, mark in enumerate(marks):
        x = place(mark.at)
        y = 11 + MARK_PX * row
        half = x > WIDTH / 2
        parts.append(f'<path class="mark" d="M{x:.1f} {y + 4}V{HEIGHT - BOTTOM}"/>')
        parts.append(
            _text(x - 3 if half else x + 3, y, mark.label, "end" if half else "start", "mark-name")
        )
    return parts


def bars(rows: Sequence[tuple[str, int]], *, title: str) -> str:
    """A bar for each name, in their order: an SVG as tall as it needs."""
    highest = max((count for _, count in rows), default=0) or 1
    body, y = [], 8.0
    start, room = 140, WIDTH - 140 - 60
    for name, count in rows:
        short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
        wide = max(1.0, room * count / highest)
        body.append(_text(start - 6, y + 11, short, "end"))
        body.append(f'<rect class="bar" x="{start}" y="{y}" width="{wide:.1f}" height="14"/>')
        body.append(_text(start + wide + 5, y + 11, f"{count:,}", "start"))
        y += 22
    words = ", ".join(f"{name} {count}" for name, count in rows)
    return _svg(f"{title}: {words}", body, height=y + 4)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{html.escape(text)}</text>'


def _svg(words: str, body: Sequence[str], height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(words)}">'
        f"{''.join(body)}</svg>"
    )


STYLE = """
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
svg .unit { font-weight: 600; } svg .mark-name { fill: var(--mark); paint-order: stroke;
  stroke: var(--card); stroke-width: 4px; }
svg .bar { fill: var(--bar); } svg .axis { stroke: var(--quiet); fill: none; }
svg .mark { stroke: var(--mark); stroke-dasharray: 4 3; stroke-width: 1.5; fill: none; }
"""
