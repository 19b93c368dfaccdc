"""Short texts on objects: each as large as its object has room for, or left out.

A caption lies wholly inside its object, so that no two overlap, and covers a small part of it. Its
letters come with Pillow.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, RIM = 255, 17
"""Grey of the letters, and of the line around them."""
SMALLEST = 10
"""Px; smaller letters are not legible."""
LARGEST_SHARE = 1 / 72
"""Size of the largest letters in sides of the picture, so that they are legible in a window."""
COVERED = 0.33
"""Share of an object that its caption may cover."""
CELLS = 64
"""An object is thinned out to about so many pixels a side to look for room."""


class _Text(NamedTuple):
    """A caption as it is pasted."""

    light: np.ndarray  # (h, w, 1) float32, its colour times its opacity; it is grey
    keep: np.ndarray  # (h, w, 1) float32, what is left of the picture


def legible(text: str) -> str:
    """The text in the letters that come with Pillow: no accents, ? for other scripts."""
    parts = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in parts if not unicodedata.combining(letter))
    return bare.encode("ascii", "replace").decode()


def write_captions(picture: np.ndarray, labels: np.ndarray, captions: Sequence[str]) -> None:
    """Write a caption on each object that has room for it, into ``picture``.

    picture: (H, W, 3) uint8. labels: (H, W) integer, 0 background, 1..N. captions: (N,) one or more
    words, which may stand below each other.
    """
    from scipy import ndimage  # late: it takes long to import, and most uses need no captions

    sizes = _sizes(max(labels.shape))
    boxes = ndimage.find_objects(labels, max_label=len(captions))
    for label, (caption, box) in enumerate(zip(captions, boxes, strict=True), start=1):
        if box is None or box[0].stop - box[0].start < SMALLEST:
            continue
        for text in _forms(legible(caption), sizes):
            height, width = text.keep.shape[:2]
            corner = _room(labels, label, box, height, width)
            if corner is not None:
                where = picture[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
                where[:] = (where * text.keep + text.light + 0.5).astype(np.uint8)
                break


def _sizes(side: int) -> list[int]:
    """Sizes of letters to try, large ones first."""
    sizes = [max(SMALLEST + 2, round(side * LARGEST_SHARE))]
    while sizes[-1] * 0.75 >= SMALLEST:
        sizes.append(round(sizes[-1] * 0.75))
    return sizes


def _forms(caption: str, sizes: Sequence[int]) -> Iterator[_Text]:
    """The caption at each size, in one line and with its last word below the others."""
    first, _, last = caption.rpartition(" ")
    for size in sizes:
        yield _drawn(caption, size)
        if first:
            yield _drawn(f"{first}\n{last}", size)


@lru_cache(maxsize=4096)
def _drawn(text: str, size: int) -> _Text:
    """A text in white with a dark rim."""
    font = ImageFont.load_default(size=size)
    rim = max(1, size // 12)
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    x1, y1, x2, y2 = probe.multiline_textbbox(
        (0, 0), text, font, spacing=size // 6, align="center", stroke_width=rim
    )
    layers = []
    for stroke in (0, rim):
        layer = Image.new("L", (int(x2 - x1) + 2, int(y2 - y1) + 2))
        ImageDraw.Draw(layer).multiline_text(
            (1 - x1, 1 - y1), text, 255, font,
            spacing=size // 6, align="center", stroke_width=stroke,
        )  # fmt: skip
        layers.append(np.asarray(layer, np.float32)[..., None] / 255)
    ink, whole = layers
    opacity = np.maximum(whole, ink)
    return _Text((ink * INK + (1 - ink) * RIM) * opacity, 1 - opacity)


def _room(
    labels: np.ndarray, label: int, box: tuple[slice, slice], height: int, width: int
) -> tuple[int, int] | None:
    """Corner (y, x) of a place of this size inside an object, the nearest to its middle."""
    top, left = box[0].start, box[1].start
    box_h, box_w = box[0].stop - top, box[1].stop - left
    if height > box_h or width > box_w or height * width > COVERED * box_h * box_w:
        return None
    step = max(1, min(max(box_h, box_w) // CELLS, height // 4))
    inside = labels[box][::step, ::step] == label
    area = np.count_nonzero(inside)
    if height * width > COVERED * area * step**2:
        return None
    rows, columns = -(-height // step) + (step > 1), -(-width // step) + (step > 1)  # cells
    sums = np.zeros((inside.shape[0] + 1, inside.shape[1] + 1), np.int32)
    inside.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, out=sums[1:, 1:])
    if rows >= sums.shape[0] or columns >= sums.shape[1]:
        return None
    held = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns]
    ys, xs = np.nonzero(held + sums[:-rows, :-columns] == rows * columns)
    if not len(ys):
        return None
    middle_y = inside.sum(axis=1) @ np.arange(inside.shape[0]) / area - rows / 2
    middle_x = inside.sum(axis=0) @ np.arange(inside.shape[1]) / area - columns / 2
    best = int(((ys - middle_y) ** 2 + (xs - middle_x) ** 2).argmin())
    return top + int(ys[best]) * step, left + int(xs[best]) * step
