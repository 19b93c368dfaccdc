"""tuning.png: mean AP over start and foreground, and along each threshold through the best."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from spatialembed.errors import missing_extra
from spatialembed.files import atomic_write

Profile = Sequence[tuple[float, float, bool]]
"""Value of a threshold, mean AP there, whether that is as good as the best."""
BEST, BEFORE, CURVE = "#d1495b", "#5a5f6b", "#2b6a99"
SHOWN = 0.1
"""Cells of the heat map that are worse than the best by more than this share one colour."""


def need_matplotlib() -> None:
    """Raise SpatialEmbedError ``missing_extra`` (exit 2) where it is not installed."""
    if find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "train", "drawing a tuning")


def draw(
    path: Path,
    mean: np.ndarray,
    grid: Any,
    *,
    best: tuple[int, ...],
    before: tuple[int, ...],
    profiles: Sequence[Profile],
) -> None:
    """Write the picture.

    mean: AP (F, S, M, P) by foreground, start, membership, min_pixels, NaN undefined. grid: a
    NamedTuple of the values tried, in that order. best, before: two cells. profiles: of each axis.

    Raises SpatialEmbedError ``missing_extra`` (exit 2) without matplotlib, ``disk_full`` (exit 5).
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    _heat_map(halves[0], mean[:, :, best[2], best[3]], grid, best, before)
    axes = halves[1].subplots(1, len(profiles), sharey=True)
    for i, (one, profile) in enumerate(zip(axes, profiles, strict=True)):
        _profile(one, profile, grid[i][best[i]], grid[i][before[i]])
        one.set_xlabel(grid._fields[i])
    axes[0].set_ylabel("mean AP, the others at their best")
    axes[0].legend(loc="lower left", fontsize=8, framealpha=0.9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _heat_map(
    figure: Any, layer: np.ndarray, grid: Any, best: tuple[int, ...], before: tuple[int, ...]
) -> None:
    """AP (F, S) over foreground and start at the best membership and min_pixels."""
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    top = float(np.nanmax(layer))
    picture = axes.imshow(layer, origin="lower", aspect="auto", vmin=top - SHOWN, vmax=top)
    for f, s in np.argwhere(np.isfinite(layer)):
        ink = "white" if layer[f, s] < top - SHOWN / 2 else "black"
        text = f"{layer[f, s]:.3f}".removeprefix("0")
        axes.text(s, f, text, ha="center", va="center", color=ink, fontsize=8)
    # The smaller frame is drawn last, so that both show where they are one.
    for cell, colour, label, half in ((before, BEFORE, "before", 0.45), (best, BEST, "best", 0.39)):
        corner = (cell[1] - half, cell[0] - half)
        frame = Rectangle(corner, 2 * half, 2 * half, ec=colour, fill=False, lw=2.5, label=label)
        axes.add_patch(frame)
    axes.set_xticks(range(len(grid.start)), [f"{value:g}" for value in grid.start])
    axes.set_yticks(range(len(grid.foreground)), [f"{value:g}" for value in grid.foreground])
    where = f"membership {grid.membership[best[2]]:g}, min_pixels {grid.min_pixels[best[3]]}"
    axes.set(xlabel="start", ylabel="foreground", title=f"mean AP at {where}")
    axes.legend(loc="upper left", framealpha=0.9)
    figure.colorbar(picture, ax=axes, extend="min", pad=0.01)


def _profile(axes: Any, profile: Profile, best: float, before: float) -> None:
    """AP along one threshold; where it is as good as the best the points are filled."""
    values, ap, good = (np.array(column) for column in zip(*profile, strict=True))
    axes.axvline(before, color=BEFORE, linestyle=":", label="before")
    axes.axvline(best, color=BEST, alpha=0.6, label="best")
    axes.plot(values, ap, "o-", color=CURVE, markerfacecolor="white")
    axes.plot(values[good], ap[good], "o", color=CURVE, label="as good as the best")
    axes.set_ylim(max(0.0, float(ap.max()) - SHOWN), float(ap.max()) + SHOWN / 8)
    axes.grid(alpha=0.3)
