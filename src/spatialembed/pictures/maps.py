"""What the network says of an image, as pictures: offsets, bandwidth and seeds in colours.

    offset     hue = direction, depth = length
    bandwidth  margin in px, log scale, dark = small
    seed       0 black, 1 bright

Arrays in; CPU tensors are taken as well. Every picture is (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from spatialembed.errors import missing_extra
from spatialembed.method import geometry
from spatialembed.pictures.colour import LAB, LMS
from spatialembed.pictures.drawing import (
    INK,
    PAPER,
    display,
    nearest,
    overlay,
    panel,
    resized,
    zoom_for,
)
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
    if find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "train", "drawing maps")
    from matplotlib import colormaps

    colours: np.ndarray = colormaps[name](np.nan_to_num(values).clip(0, 1), bytes=True)
    return colours[..., :3]


def offset_colours(offset: Any, longest: float | None = None) -> np.ndarray:
    """Offsets as colours (..., 3) uint8: hue = direction, depth = square root of the length.

    offset: (2, ...) (x, y), y down, any unit. longest: length of the deepest colour, in the same
    unit; None takes the 99th percentile of the lengths.
    """
    x, y = np.nan_to_num(np.asarray(offset, np.float32))
    length = np.hypot(x, y)
    if longest is None:
        longest = float(np.percentile(length, 99)) if length.size else 0.0
    strength = np.sqrt((length / max(longest, 1e-12)).clip(0, 1))
    chroma = 0.19 * strength / np.maximum(length, 1e-12)
    oklab = np.stack((0.97 - 0.30 * strength, chroma * x, chroma * y), axis=-1)
    to_cones, to_linear = (np.linalg.inv(matrix).astype(np.float32) for matrix in (LAB, LMS))
    cones = oklab @ to_cones
    linear = (cones**2 * cones) @ to_linear  # numpy's cube of what is below 0 is slow
    colours: np.ndarray = (255 * linear.clip(0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)
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
    maps, legends = _maps(fit(offset), fit(log_precision), seeds, covered)
    return panel(tiles + maps, columns, legends=[None] * len(tiles) + legends)


def _maps(
    offset: np.ndarray, log_precision: np.ndarray, seeds: np.ndarray, covered: np.ndarray
) -> tuple[list[tuple[str, np.ndarray]], list[np.ndarray | None]]:
    """Tiles of offsets, bandwidth and seeds, and their legends.

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
    tiles = [
        (f"offset less ({x:.0f}, {y:.0f}) px" if x or y else "offset", directions),
        ("bandwidth", widths),
        ("seed", colour_map(seeds, "magma")),
    ]
    text = max(13, covered.shape[1] // 24)
    ramp = np.tile(np.linspace(0, 1, 5 * text), (text, 1))
    return tiles, [
        _legend("", _wheel(2 * text - 2), f"{longest * UNIT:.0f} px", text),
        _legend(f"{low:.2g}", colour_map(ramp, "viridis"), f"{high:.2g} px", text),
        _legend("0", colour_map(ramp, "magma"), "1", text),
    ]


def _wheel(side: int) -> np.ndarray:
    """Each direction in its colour, the deepest one at the rim."""
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) / (side / 2)
    wheel = offset_colours(np.stack((x, y)), 1.0)
    wheel[np.hypot(x, y) > 1] = PAPER
    return wheel


def _legend(before: str, picture: np.ndarray, after: str, text: int) -> np.ndarray:
    """Picture with a word on each side, in the colours of a panel."""
    font = ImageFont.load_default(size=max(10, text - 3))
    left, right = (math.ceil(font.getlength(word)) + 6 if word else 0 for word in (before, after))
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (left + width + right, max(height, text + 4)), PAPER)
    canvas.paste(Image.fromarray(picture), (left, (canvas.height - height) // 2))
    draw = ImageDraw.Draw(canvas)
    draw.text((0, canvas.height // 2), before, INK, font, anchor="lm")
    draw.text((canvas.width, canvas.height // 2), after, INK, font, anchor="rm")
    return np.asarray(canvas)
