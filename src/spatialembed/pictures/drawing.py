"""Pictures that a person can read at a glance: overlays, maps as colours, labelled panels.

``pictures.colour`` explains the colours. No matplotlib. Arrays in; CPU tensors are taken as well.
Every picture is (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spatialembed.method.labels import relabel
from spatialembed.pictures.captions import legible, write_captions
from spatialembed.pictures.colour import (
    MAGMA,
    VIRIDIS,
    colour_map,
    instance_colours,
    margin_colours,
    margin_px,
    offset_colours,
)
from spatialembed.types import UNIT

PAPER, INK, VOID = (24, 25, 28), (232, 233, 236), (38, 40, 44)
"""Colours of a panel's ground and text, and of pixels without a value."""
TILE_PX, LARGEST_TILE_PX = 384, 640
"""Small pictures are enlarged to about the first; ``maps_panel`` shrinks to the second."""
FILL = 0.4
"""Opacity of the fill of an object: its texture is seen through it."""
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)
LIGHT, DARKER, PALER = 120, 0.5, 0.15
"""Ground above this luminance is light; outlines are so much darker on it, and paler on dark."""
BAND = 256
"""Rows that are filled at a time."""
MARGIN_RANGE_PX = (1.0, 200.0)
"""Margins outside are shown as the nearest of the two."""


# --- images ---------------------------------------------------------------------------------


def display(image: Any) -> np.ndarray:
    """Any image, (H, W) or (H, W, 3) of any dtype, as (H, W, 3) uint8 for the eye.

    Stretched from its 0.2 to its 99.8 percentile, all channels alike so that hues stay. A constant
    image keeps its grey if uint8, and is black otherwise. Non-finite values are shown black.
    """
    image = np.asarray(image)
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.dtype.kind == "f":
        image = np.where(np.isfinite(image), image, 0)
    every = max(1, math.isqrt(image.size // 500_000))  # percentiles of a sample are as good
    low, high = np.percentile(image[::every, ::every], (0.2, 99.8)) if image.size else (0.0, 0.0)
    if high > low:
        if image.dtype in (np.uint8, np.uint16):  # a table of all levels is several times quicker
            levels = np.arange(np.iinfo(image.dtype).max + 1)
            image = _stretched(levels, low, high)[image]
        else:
            image = _stretched(image, low, high)
    elif image.dtype != np.uint8:
        image = np.zeros(image.shape, np.uint8)
    return image.copy() if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return (scaled.clip(0, 255) + 0.5).astype(np.uint8)


def zoom_for(height: int, width: int) -> int:
    """Whole factor in 1..8 that brings the longer side of a small image to about ``TILE_PX``."""
    return max(1, min(8, int(TILE_PX / max(height, width, 1) + 0.5)))


def nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Array (..., H, W) at another size, each value taken from the nearest pixel."""
    rows = (np.arange(height) * 2 + 1) * array.shape[-2] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * array.shape[-1] // (2 * width)
    return array[..., rows[:, None], columns]


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Picture (H, W, 3) uint8 at another size, smoothly."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


# --- instances ------------------------------------------------------------------------------


def outlines(labels: np.ndarray, thickness: int = 1) -> np.ndarray:
    """Pixels (H, W) bool inside an object within ``thickness`` px of another or of background."""
    edge = np.zeros(labels.shape, bool)
    for hop in range(1, thickness + 1):
        across, down = labels[:, hop:] != labels[:, :-hop], labels[hop:] != labels[:-hop]
        edge[:, hop:] |= across
        edge[:, :-hop] |= across
        edge[hop:] |= down
        edge[:-hop] |= down
    return edge & (labels > 0)


def overlay(
    image: Any,
    labels: Any,
    *,
    alpha: float = FILL,
    scores: Any = None,
    class_names: Sequence[str] | None = None,
    zoom: int = 1,
) -> np.ndarray:
    """Draw instances in colour over their image, with crisp outlines.

    An outline is bright on dark ground and dark on light, object by object, and thinner where
    objects are small.

    Args:
        image: (H, W) or (H, W, 3), any dtype; stretched by ``display``.
        labels: (H, W) integer, 0 background.
        alpha: Opacity of the fill in [0, 1].
        scores: (N,) in [0, 1], written on the objects that have room; None: none.
        class_names: (N,) one name for each instance, likewise.
        zoom: Whole factor of enlargement; ``zoom_for`` gives one that makes a small image readable.

    Returns:
        (zoom H, zoom W, 3) uint8 RGB.

    Raises:
        SpatialEmbedError: ``bad_labels``.
    """
    labels = np.asarray(labels)
    height, width = (zoom * side for side in labels.shape)
    picture = resized(display(image), height, width)
    dense, ids = relabel(labels)
    captions = _captions(len(ids), scores, class_names)
    colours = instance_colours(dense, len(ids))
    if zoom > 1:
        dense = np.repeat(np.repeat(dense, zoom, axis=0), zoom, axis=1)
    if len(ids) < 1 << 16:
        dense = dense.astype(np.uint16)  # the passes below are as quick as the memory
    thickness = _thickness(dense, len(ids))
    lines = _outline_colours(picture, dense, colours)
    picture = _filled(picture, dense, colours, alpha)
    at = np.flatnonzero(outlines(dense, thickness))
    picture.reshape(-1, 3)[at] = lines[dense.ravel()[at]]
    if captions:
        write_captions(picture, dense, captions)
    return picture


def _thickness(labels: np.ndarray, count: int) -> int:
    """Of outlines in px: by the size of the picture, but thin where objects are small."""
    most = 1 + max(labels.shape) // 1200
    if most == 1 or count == 0:
        return most
    covered = np.count_nonzero(labels[::4, ::4]) * 16
    return max(1, min(most, int(math.sqrt(covered / count) / 12)))


def _filled(
    picture: np.ndarray, labels: np.ndarray, colours: np.ndarray, alpha: float
) -> np.ndarray:
    """The picture mixed with the colour of each object, by tables in 16 bits."""
    kept = (np.arange(256) * (256 * (1 - alpha)) + 0.5).astype(np.uint16)
    added = (colours * (alpha * 256.0) + 128.5).astype(np.uint16)
    filled = np.empty_like(picture)
    for top in range(0, len(picture), BAND):
        rows = slice(top, top + BAND)
        mixed = kept[picture[rows]]
        mixed += added[labels[rows]]
        mixed >>= 8
        filled[rows] = np.where((labels[rows] > 0)[..., None], mixed, picture[rows])
    return filled


def _outline_colours(picture: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(N + 1, 3) uint8: of each object the shade that stands out from the ground around it."""
    total, pixels = np.zeros(len(colours)), np.zeros(len(colours))
    for axis in (0, 1):
        before, after = (slice(None, -1), slice(1, None))
        one, other = (labels[s] if axis == 0 else labels[:, s] for s in (before, after))
        ys, xs = np.nonzero(one != other)
        step = np.array([1, 0]) if axis == 0 else np.array([0, 1])
        ends = ((ys, xs), (ys + step[0], xs + step[1]))
        for inside, outside in (ends, ends[::-1]):
            owner, ground = labels[inside], picture[outside] @ LUMINANCE
            total += np.bincount(owner, ground, len(colours))
            pixels += np.bincount(owner, minlength=len(colours))
    light = (total > LIGHT * pixels)[:, None]
    return np.where(light, colours * DARKER, colours + (255.0 - colours) * PALER).astype(np.uint8)


def _captions(count: int, scores: Any, class_names: Sequence[str] | None) -> list[str]:
    """One line of text for each instance, or none at all."""
    parts = [] if class_names is None else [[str(name) for name in class_names]]
    if scores is not None:
        parts.append([f"{score:.2f}" for score in np.asarray(scores)])
    if any(len(part) != count for part in parts):
        raise ValueError(f"scores or class names for {[len(p) for p in parts]} of {count} labels")
    return [" ".join(words) for words in zip(*parts, strict=True)]


# --- panels ---------------------------------------------------------------------------------


def panel(
    tiles: Sequence[tuple[str, np.ndarray]],
    columns: int,
    *,
    legends: Sequence[np.ndarray | None] | None = None,
    enlarge: bool = True,
) -> np.ndarray:
    """Captioned tiles side by side on a dark ground, (H, W, 3) uint8.

    tiles: (caption, picture (h, w, 3) uint8), row by row. enlarge: small ones by a whole factor.
    legends: for each tile a picture or None, set at the right of its caption.
    """
    if not tiles or columns < 1:
        raise ValueError(f"{len(tiles)} tiles in {columns} columns")
    pictures = []
    for _, tile in tiles:
        zoom = zoom_for(*tile.shape[:2]) if enlarge else 1
        pictures.append(tile.repeat(zoom, axis=0).repeat(zoom, axis=1))
    cell_h = max(picture.shape[0] for picture in pictures)
    # Captions need some room.
    cell_w = max(256 if enlarge else 1, *(picture.shape[1] for picture in pictures))
    text, gap = max(13, cell_w // 24), max(6, cell_w // 48)
    strip = 2 * text
    rows = -(-len(tiles) // columns)
    columns = min(columns, len(tiles))
    size = (gap + columns * (cell_w + gap), gap + rows * (cell_h + strip + gap))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, ((caption, _), picture) in enumerate(zip(tiles, pictures, strict=True)):
        left = gap + i % columns * (cell_w + gap)
        top = gap + i // columns * (cell_h + strip + gap)
        room = cell_w
        if legends is not None and (legend := legends[i]) is not None:
            room -= legend.shape[1] + gap
            at = (left + cell_w - legend.shape[1], top + (strip - legend.shape[0]) // 2)
            canvas.paste(Image.fromarray(legend), at)
        _write(draw, (left, top + strip // 2), caption, text, room)
        canvas.paste(Image.fromarray(picture), (left, top + strip))
    return np.asarray(canvas)


def _write(
    draw: ImageDraw.ImageDraw, left_middle: tuple[int, int], text: str, size: int, room: int
) -> None:
    """One line of text, made smaller where it would be wider than ``room`` px."""
    text, font = legible(text), ImageFont.load_default(size=size)
    width = draw.textlength(text, font=font)
    if width > room:
        font = ImageFont.load_default(size=max(7, int(size * max(room, 1) / width)))
    draw.text(left_middle, text, INK, font, anchor="lm")


def _bar(low: str, high: str, control_points: str, text: int) -> np.ndarray:
    """Legend of a colour map: its lowest value, the colours, its highest value."""
    bar = colour_map(np.tile(np.linspace(0, 1, 5 * text), (text, 1)), control_points)
    return _between(low, bar, high, text)


def _wheel(label: str, text: int) -> np.ndarray:
    """Legend of offsets: each direction in its colour, and the length of the deepest one."""
    side = 2 * text - 2
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) / (side / 2)
    wheel = offset_colours(np.stack((x, y)), 1.0)
    wheel[np.hypot(x, y) > 1] = PAPER
    return _between("", wheel, label, text)


def _between(before: str, picture: np.ndarray, after: str, text: int) -> np.ndarray:
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
    """
    found = np.asarray(found_labels)
    scale = min(zoom_for(*found.shape), LARGEST_TILE_PX / max(found.shape))
    height, width = (max(1, round(side * scale)) for side in found.shape)

    def fit(array: Any) -> np.ndarray:
        return nearest(np.asarray(array), height, width)

    picture = resized(display(image), height, width)
    seeds = fit(seed).max(axis=0)
    covered = (seeds > 0.5) | (fit(found) > 0)
    tiles = [("image", picture), (f"found: {_count(found)}", overlay(picture, fit(found)))]
    if truth_labels is not None:
        truth = np.asarray(truth_labels)
        covered |= fit(truth) > 0
        tiles.insert(1, (f"truth: {_count(truth)}", overlay(picture, fit(truth))))
    maps, map_legends = _maps(fit(offset), fit(log_precision), seeds, covered)
    return panel(tiles + maps, columns, legends=[None] * len(tiles) + map_legends)


def _count(labels: np.ndarray) -> int:
    return int(np.count_nonzero(np.unique(labels)))


def _maps(
    offset: np.ndarray, log_precision: np.ndarray, seeds: np.ndarray, covered: np.ndarray
) -> tuple[list[tuple[str, np.ndarray]], list[np.ndarray | None]]:
    """Tiles of offsets, bandwidth and seeds, and their legends.

    Offsets are shown less their median: a learnable centre moves along with a shift that all share,
    so nothing holds it at zero, and it would drown what tells the objects apart.
    """
    text = max(13, covered.shape[1] // 24)
    margin = margin_px(log_precision)
    any_covered = bool(covered.any())
    shared = np.median(offset[:, covered], axis=1) if any_covered else np.zeros(2)
    offset = offset - shared[:, None, None]
    x, y = np.rint(shared * UNIT)
    longest = float(np.percentile(np.hypot(*offset)[covered], 99)) if any_covered else 0.0
    low, high = np.percentile(margin[covered], (2, 98)) if any_covered else MARGIN_RANGE_PX
    low, high = np.clip((low, high), *MARGIN_RANGE_PX)
    directions, widths = offset_colours(offset, longest), margin_colours(margin, low, high)
    for tile in (directions, widths):
        tile[~covered] = VOID
    tiles = [
        (f"offset less ({x:.0f}, {y:.0f}) px" if x or y else "offset", directions),
        ("bandwidth", widths),
        ("seed", colour_map(seeds, MAGMA)),
    ]
    return tiles, [
        _wheel(f"{longest * UNIT:.0f} px", text),
        _bar(f"{low:.2g}", f"{high:.2g} px", VIRIDIS, text),
        _bar("0", "1", MAGMA, text),
    ]
