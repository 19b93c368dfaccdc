"""Pictures that a person can read quickly: overlays of instances, panels of labelled tiles.

Arrays in; CPU tensors are taken as well. Every picture is (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spatialembed.method.labels import relabel
from spatialembed.pictures.captions import legible, write_captions
from spatialembed.pictures.colour import instance_colours

PAPER, INK = (24, 25, 28), (232, 233, 236)
"""Colours of a panel's ground and text."""
TILE_PX = 384
"""Small pictures are enlarged to about this."""
FILL = 0.4
"""Opacity of the fill of an object: its texture is seen through it."""
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)
LIGHT, DARKER, PALER = 120, 0.5, 0.15
"""Ground above this luminance is light; outlines are so much darker on it, and paler on dark."""
BAND = 256
"""Rows that are filled at a time."""


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
    return write_captions(picture, dense, captions) if captions else picture


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
    for one, other in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        met = np.nonzero(labels[one] != labels[other])
        for inside, outside in ((one, other), (other, one)):
            owner, ground = labels[inside][met], picture[outside][met] @ LUMINANCE
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
    cell: int | None = None,
) -> np.ndarray:
    """Captioned tiles side by side on a dark ground, (H, W, 3) uint8.

    tiles: (caption, picture (h, w, 3) uint8), row by row; small ones are enlarged by a whole
    factor. cell: side of squares in px, in the middle of which the tiles stand as they are.
    """
    if not tiles or columns < 1:
        raise ValueError(f"{len(tiles)} tiles in {columns} columns")
    zooms = [1 if cell else zoom_for(*tile.shape[:2]) for _, tile in tiles]
    pictures = [
        t.repeat(z, axis=0).repeat(z, axis=1) for (_, t), z in zip(tiles, zooms, strict=True)
    ]
    cell_h = cell or max(picture.shape[0] for picture in pictures)
    cell_w = cell or max(256, *(picture.shape[1] for picture in pictures))  # captions need room
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
        _write(draw, (left, top + strip // 2), caption, text, cell_w)
        free = (cell_w - picture.shape[1], cell_h - picture.shape[0]) if cell else (0, 0)
        canvas.paste(Image.fromarray(picture), (left + free[0] // 2, top + strip + free[1] // 2))
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
