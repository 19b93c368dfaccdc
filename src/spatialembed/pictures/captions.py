"""Short texts on objects: each as large as its object has room for, or left out.

A caption lies wholly inside its object, so that no two overlap, and covers a small part of it. Its
letters come with Pillow.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST = 10
"""Px; smaller letters are not legible."""
LARGEST_SHARE = 1 / 72
"""Size of the largest letters in sides of the picture, so that they are legible in a window."""
COVERED = 0.33
"""Share of an object that its caption may cover."""
CELLS = 64
"""An object is thinned out to about so many pixels a side to look for room."""


def legible(text: str) -> str:
    """The text in the letters that come with Pillow: no accents, ? for other scripts."""
    parts = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in parts if not unicodedata.combining(letter))
    return bare.encode("ascii", "replace").decode()


def write_captions(picture: np.ndarray, labels: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """The picture (H, W, 3) uint8 with a caption on each object that has room for it.

    labels: (H, W) integer, 0 background, 1..N. captions: (N,) one or more words, of which the last
    may stand below the others.
    """
    from scipy import ndimage  # late: it takes long to import, and most uses need no captions

    sizes = [max(SMALLEST + 2, round(max(labels.shape) * LARGEST_SHARE))]
    while sizes[-1] * 0.75 >= SMALLEST:
        sizes.append(round(sizes[-1] * 0.75))
    canvas = Image.fromarray(picture)
    boxes = ndimage.find_objects(labels, max_label=len(captions))
    for label, (caption, box) in enumerate(zip(captions, boxes, strict=True), start=1):
        if box is None or box[0].stop - box[0].start < SMALLEST:
            continue
        line = legible(caption)
        forms = dict.fromkeys((line, "\n".join(line.rsplit(" ", 1))))
        for text, size in ((form, size) for size in sizes for form in forms):
            drawn = _drawn(text, size)
            corner = _room(labels, label, box, drawn.height, drawn.width)
            if corner is not None:
                canvas.paste(drawn, corner, drawn)
                break
    return np.asarray(canvas)


@lru_cache(maxsize=4096)
def _drawn(text: str, size: int) -> Image.Image:
    """A text in white with a dark rim on transparent ground."""
    font, rim, spacing = ImageFont.load_default(size=size), max(1, size // 12), size // 6
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    x1, y1, x2, y2 = probe.multiline_textbbox(
        (0, 0), text, font, spacing=spacing, align="center", stroke_width=rim
    )
    layer = Image.new("RGBA", (int(x2 - x1) + 2, int(y2 - y1) + 2), (17, 17, 17, 0))
    ImageDraw.Draw(layer).multiline_text(
        (1 - x1, 1 - y1), text, "#fff", font,
        spacing=spacing, align="center", stroke_width=rim, stroke_fill="#111",
    )  # fmt: skip
    return layer


def _room(
    labels: np.ndarray, label: int, box: tuple[slice, slice], height: int, width: int
) -> tuple[int, int] | None:
    """Corner (x, y) of a place of this size inside an object, the nearest to its middle."""
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
    held = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns]
    ys, xs = np.nonzero(held + sums[:-rows, :-columns] == rows * columns)
    if not len(ys):
        return None
    middle_y = inside.sum(axis=1) @ np.arange(inside.shape[0]) / area - rows / 2
    middle_x = inside.sum(axis=0) @ np.arange(inside.shape[1]) / area - columns / 2
    best = int(((ys - middle_y) ** 2 + (xs - middle_x) ** 2).argmin())
    return left + int(xs[best]) * step, top + int(ys[best]) * step
