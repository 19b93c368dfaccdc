"""What the network says of an image, as pictures: offsets, bandwidth and seeds in colours.

    offset     hue = direction: red right, green down and left, blue up and left; depth = length
    bandwidth  margin in px, log scale, dark = small
    seed       0 black, 1 bright

Arrays in; CPU tensors are taken as well. Every picture is (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from spatialembed.errors import require
from spatialembed.method import geometry
from spatialembed.pictures.drawing import display, nearest, overlay, panel, resized, zoom_for
from spatialembed.types import UNIT

VOID = (38, 40, 44)
"""Of pixels without a value."""
LARGEST_TILE_PX = 640
"""Larger images are shrunk to it."""
MARGIN_RANGE_PX = (1.0, 200.0)
"""Margins outside are shown as the nearest of the two."""


def colour_map(values: np.ndarray, name: str) -> np.ndarray:
    """Values (...) in [0, 1] as colours (..., 3) uint8 of matplotlib; NaN is 0, others are cut.

    Raises SpatialEmbedError ``missing_extra`` (exit 2) without matplotlib.
    """
    require("matplotlib", "train", "drawing maps")
    from matplotlib import colormaps

    colours: np.ndarray = colormaps[name](np.nan_to_num(values).clip(0, 1), bytes=True)
    return colours[..., :3]


def offset_colours(offset: Any, longest: float | None = None) -> np.ndarray:
    """Offsets as colours (..., 3) uint8: hue = direction, depth = square root of the length.

    offset: (2, ...) (x, y), y down, any unit. longest: length of the deepest colour, in the same
    unit; None takes the 99th percentile of the lengths.

    Raises SpatialEmbedError ``missing_extra`` (exit 2) without matplotlib.
    """
    x, y = np.nan_to_num(np.asarray(offset, np.float32))
    length = np.hypot(x, y)
    if longest is None:
        longest = float(np.percentile(length, 99)) if length.size else 0.0
    depth = np.sqrt((length / max(longest, 1e-12)).clip(0, 1))[..., None]
    hue = colour_map(np.arctan2(y, x) / (2 * np.pi) % 1, "hsv")
    colours: np.ndarray = (255 - depth * (255.0 - hue) * 0.9 - depth * 25 + 0.5).astype(np.uint8)
    return colours


def margin_colours(margin: np.ndarray, low: float, high: float) -> np.ndarray:
    """Margins (...) in px as colours (..., 3) uint8, ``low`` dark, ``high`` bright, log scale."""
    position = np.log(np.maximum(margin, 1e-6) / low) / math.log(max(high / low, 1.001))
    return colour_map(position, "viridis")


def maps_panel(
    image: Any,
    offset: Any,
    log_precision: Any,
    seed: Any,
    found_labels: Any,
    truth_labels: Any = None,
    *,
    columns: int = 3,
) -> np.ndarray:
    """One image with the network's maps and the detections, as a panel (h, w, 3) uint8.

    image: (H, W) or (H, W, 3), any dtype. offset: (2, H, W) (x, y) in units. log_precision:
    (S, H, W) raw. seed: (C, H, W) in [0, 1], the highest class is shown. found_labels,
    truth_labels: (H, W) integer. Offset and bandwidth are shown on predicted and actual objects.
    Large images are shrunk.

    Raises SpatialEmbedError ``missing_extra`` (exit 2) without matplotlib.
    """
    found = np.asarray(found_labels)
    scale = min(zoom_for(*found.shape), LARGEST_TILE_PX / max(found.shape))
    height, width = (max(1, round(side * scale)) for side in found.shape)

    def fit(array: Any) -> np.ndarray:
        return nearest(np.asarray(array), height, width)

    picture = resized(display(image), height, width)
    seeds = fit(seed).max(axis=0)
    covered = seeds > 0.5
    tiles: list[tuple[str, np.ndarray]] = [("image", picture)]
    for name, labels in (("truth", truth_labels), ("found", found)):
        if labels is not None:
            count = np.count_nonzero(np.unique(labels))
            covered |= fit(labels) > 0
            tiles.append((f"{name}: {count}", overlay(picture, fit(labels))))
    return panel(tiles + _maps(fit(offset), fit(log_precision), seeds, covered), columns)


def _maps(
    offset: np.ndarray, log_precision: np.ndarray, seeds: np.ndarray, covered: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Tiles of offsets, bandwidth and seeds; their captions say how far the colours reach.

    Offsets are shown less their median: a learnable centre moves along with a shift that all share,
    so nothing holds it at zero, and it would drown what tells the objects apart.
    """
    logs = geometry.margin_px(torch.from_numpy(log_precision[:, covered])).log().mean(dim=0)
    margin, offset = logs.exp().numpy(), offset[:, covered]  # the geometric mean of the axes
    shared, longest, (low, high) = np.zeros(2), 0.0, MARGIN_RANGE_PX
    if covered.any():
        shared = np.median(offset, axis=1)
        longest = float(np.percentile(np.hypot(*(offset - shared[:, None])), 99))
        low, high = np.clip(np.percentile(margin, (2, 98)), *MARGIN_RANGE_PX)
    directions, widths = (np.full((*covered.shape, 3), VOID, np.uint8) for _ in range(2))
    directions[covered] = offset_colours(offset - shared[:, None], longest)
    widths[covered] = margin_colours(margin, low, high)
    x, y = np.rint(shared * UNIT)
    less = f" less ({x:.0f}, {y:.0f})" if x or y else ""
    return [
        (f"offset{less}: up to {longest * UNIT:.0f} px", directions),
        (f"bandwidth: {low:.2g} to {high:.2g} px", widths),
        ("seed: 0 to 1", colour_map(seeds, "magma")),
    ]
