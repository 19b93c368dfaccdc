"""Whether objects are as good as was said: figures, and a reliability plot as SVG.

The score and, of a calibrated model, the expected IoU of each object are held against its true one,
the largest IoU with a true object of its class, 0 if with none.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from spatialembed.method.calibration import (
    BINS,
    auc,
    calibration_error,
    equal_count_bins,
    rank_correlation,
)

SIDE, EDGE = 300, 44
"""Of the plot's square, and the room for its numbers, in px of the SVG."""
SAID = (("score", "score", "var(--mark)"), ("expected_iou", "expected IoU", "var(--bar)"))
"""What is said: its key, its name, its colour on a page."""


class Reliability(NamedTuple):
    """N found objects of all images."""

    score: np.ndarray  # (N,) in [0, 1]
    expected_iou: np.ndarray | None  # (N,) in [0, 1]; None of a model that is not calibrated
    iou: np.ndarray  # (N,) in [0, 1]

    def said(self) -> dict[str, np.ndarray]:
        """What is said of the objects, by key."""
        kinds = ((key, getattr(self, key)) for key, _, _ in SAID)
        return {key: values for key, values in kinds if values is not None}

    def to_dict(self) -> dict[str, Any]:
        """Calibration error, rank correlation, AUC at IoU 0.5, bins of each; NaN undefined."""
        figures: dict[str, Any] = {"objects": len(self.iou)}
        for key, values in self.said().items():
            figures[key] = {
                "calibration_error": calibration_error(values, self.iou),
                "rank_correlation": rank_correlation(values, self.iou),
                "auc_at_50": auc(values, self.iou >= 0.5),
                "bins": [
                    {"objects": len(b), "said": said, "iou": true}
                    for b, (said, true) in zip(
                        equal_count_bins(values, BINS), self.points(values), strict=True
                    )
                ],
            }
        return figures

    def points(self, said: np.ndarray) -> list[tuple[float, float]]:
        """Mean said and mean true IoU of equal-count bins."""
        bins = equal_count_bins(said, BINS)
        return [(float(np.mean(said[b])), float(np.mean(self.iou[b]))) for b in bins]


def merged(parts: Sequence[Reliability]) -> Reliability:
    """The objects of all images."""
    scores, expected, ious = zip(*parts, strict=True)
    known = [values for values in expected if values is not None]
    return Reliability(
        np.concatenate(scores),
        np.concatenate(known) if len(known) == len(parts) else None,
        np.concatenate(ious),
    )


def reliability_section(reliability: Reliability) -> str:
    """Section of a page: the plot with its figures; empty without objects."""
    if not len(reliability.iou):
        return ""
    lines = []
    for key, name, colour in SAID:
        if key in reliability.said():
            values = reliability.said()[key]
            error = calibration_error(values, reliability.iou)
            rank = rank_correlation(values, reliability.iou)
            lines.append(
                f'<span style="color:{colour}">&#9679; {html.escape(name)}</span>: calibration '
                f"error {error:.3f}, rank correlation with the true IoU {rank:.2f}"
            )
    return (
        "<section><h2>Are objects as good as was said?</h2>\n"
        f"{_plot(reliability)}\n<p>{'<br>'.join(lines)}<br>Each point is a tenth of the objects; "
        "on the line they are as good as was said.</p></section>"
    )


def _plot(reliability: Reliability) -> str:
    """Mean true IoU over what was said, a line each."""
    size = SIDE + 2 * EDGE
    grid = [
        f'<path d="M{_x(v):.1f} {_y(0):.1f}V{_y(1):.1f}M{_x(0):.1f} {_y(v):.1f}H{_x(1):.1f}" '
        f'stroke="var(--line)" fill="none"/>'
        f'<text x="{_x(v):.1f}" y="{_y(0) + 16:.1f}" text-anchor="middle">{v:g}</text>'
        f'<text x="{_x(0) - 8:.1f}" y="{_y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    diagonal = (
        f'<path d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}" stroke="var(--quiet)" stroke-dasharray="5"/>'
    )
    curves = [
        _curve(reliability.points(reliability.said()[key]), colour)
        for key, _, colour in SAID
        if key in reliability.said()
    ]
    names = (
        f'<text x="{_x(0.5):.1f}" y="{size - 6}" text-anchor="middle">said</text>'
        f'<text x="{_x(0):.1f}" y="{_y(1) - 12:.1f}" text-anchor="middle">true IoU</text>'
    )
    return (
        f'<svg viewBox="0 0 {size} {size}" style="max-width: {size}px" role="img" '
        f'aria-label="Mean true IoU over what was said, in ten bins">'
        f"{''.join(grid)}{diagonal}{''.join(curves)}{names}</svg>"
    )


def _curve(points: list[tuple[float, float]], colour: str) -> str:
    places = [(_x(said), _y(true)) for said, true in points]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places)
    return f'<g fill="{colour}"><path d="M{line}" stroke="{colour}" fill="none"/>{dots}</g>'


def _x(value: float) -> float:
    return EDGE + value * SIDE


def _y(value: float) -> float:
    return EDGE + (1 - value) * SIDE
