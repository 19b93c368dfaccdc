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
        inside = labels[box] == label
        line = legible(caption)
        forms = dict.fromkeys((line, "\n".join(line.rsplit(" ", 1))))
        rooms = {form: _room(inside, _drawn(form, sizes[0])) for form in forms}
        for form, size in ((form, size) for size in sizes for form in forms):
            drawn, (height, (y, x), area) = _drawn(form, size), rooms[form]
            if drawn.height <= height and drawn.height * drawn.width <= COVERED * area:
                left, top = x - drawn.width // 2, y - drawn.height // 2
                canvas.paste(drawn, (box[1].start + left, box[0].start + top), drawn)
                break
    return np.asarray(canvas)


def _room(inside: np.ndarray, drawn: Image.Image) -> tuple[float, tuple[int, int], float]:
    """Height and middle (y, x) of the largest picture of these proportions in a mask, and its area.

    In cells of these proportions the picture is a square, and its half side the distance to the
    nearest cell outside.
    """
    from scipy import ndimage

    step = max(1.0, max(inside.shape) / CELLS, 1 / (aspect := drawn.width / drawn.height))
    rows, columns = (
        np.arange(step * each / 2, side, step * each).astype(int)
        for side, each in zip(inside.shape, (1, aspect), strict=True)
    )
    cells = np.pad(inside[np.ix_(rows, columns)], 1)
    depth = ndimage.distance_transform_cdt(cells, "chessboard")
    deepest = np.argwhere(depth == depth.max())
    y, x = deepest[len(deepest) // 2] - 1  # of several in the middle of them
    share = np.count_nonzero(cells) / max(1, len(rows) * len(columns))
    if not share:
        return 0.0, (0, 0), 0.0
    return (2 * depth.max() - 2) * step, (int(rows[y]), int(columns[x])), share * inside.size
