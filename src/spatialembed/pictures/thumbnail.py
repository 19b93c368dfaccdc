"""Small pictures of an image, made where its files are written: the whole, and its telling objects.

What is kept of an image is small, whatever its size: a folder of thousands has its thumbnails in
memory one after the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from spatialembed.pictures.drawing import PAPER, display, nearest, outlines, overlay, resized
from spatialembed.types import Instances

SIDE = 240
"""Longer side of a thumbnail, px."""
CROP = 144
"""Side of the picture of an object, px."""
AROUND = 1.7
"""The window around an object, in its longer sides; no narrower than ``NARROWEST`` px."""
NARROWEST = 40
MARKED = (255, 196, 61), (178, 24, 110)
"""Outline of the object on dark and on light ground."""
EXTREMES = 8
"""Objects of an image that are kept at each end: one image may have all that a page shows."""


class Crop(NamedTuple):
    """One object, in its surroundings."""

    image: str
    link: str
    number: int  # its id in the image
    of_class: int
    quality: float
    area: int  # px
    picture: np.ndarray  # (CROP, CROP, 3) uint8


class Thumbnail(NamedTuple):
    """One image and its N objects."""

    image: str  # as the shared files name it
    link: str  # of its overlay, relative to the folder of the results, "" where there is none
    picture: np.ndarray  # (h, w, 3) uint8, SIDE px at most
    scores: np.ndarray  # (N,) float32
    expected_iou: np.ndarray | None  # (N,) float32, None of a model that is not calibrated
    classes: np.ndarray  # (N,) int64
    areas: np.ndarray  # (N,) int64 px
    worst: tuple[Crop, ...] = ()  # objects, the worst first
    best: tuple[Crop, ...] = ()  # objects, the best first

    @property
    def quality(self) -> np.ndarray:
        """(N,) by which its objects are ranked: the expected IoU if there is one, or the score."""
        return self.scores if self.expected_iou is None else self.expected_iou

    @property
    def mean_quality(self) -> float:
        """Of its objects, NaN without any."""
        return float(self.quality.mean()) if len(self.scores) else float("nan")


def thumbnail(
    image: str,
    link: str,
    pixels: Any,
    labels: np.ndarray,
    found: Instances,
    areas: np.ndarray,
    boxes: np.ndarray | None = None,
) -> Thumbnail:
    """Thumbnail of an image as it was read or of a reduced one, with the objects found in it.

    image, link: as ``Thumbnail`` has them. pixels: (h, w) or (h, w, 3), any dtype. labels: (h, w).
    found: numpy; its own labels are not looked at. areas: (N,) px. boxes: (N, 4) x1 y1 x2 y2 px of
    the objects in ``labels``; None of a reduced image, from which no objects are cut out.
    """
    facts = found.scores, found.expected_iou, found.classes, np.asarray(areas)
    small = Thumbnail(image, link, small_overlay(pixels, labels), *facts)
    if boxes is None:
        return small
    order = np.argsort(small.quality, kind="stable")

    def crop(i: int) -> Crop:
        picture = _crop(np.asarray(pixels), labels, i + 1, boxes[i])
        quality = float(small.quality[i])
        return Crop(image, link, i + 1, int(found.classes[i]), quality, int(areas[i]), picture)

    worst, best = (tuple(map(crop, some[:EXTREMES].tolist())) for some in (order, order[::-1]))
    return small._replace(worst=worst, best=best)


def small_overlay(pixels: Any, labels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Overlay (h, w, 3) uint8 of an image at no more than ``side`` px, its outlines drawn there."""
    pixels = np.asarray(pixels)
    height, width = labels.shape
    every = max(1, min(height, width) // (4 * side))  # what is thrown away needs no smoothing
    scale = side / max(height, width)
    scale = scale if scale < 1 else min(8, int(scale))  # small images by a whole factor
    small_hw = max(1, round(height * scale)), max(1, round(width * scale))
    picture = resized(display(pixels[::every, ::every]), *small_hw)
    return overlay(picture, nearest(labels, *small_hw))


def _crop(pixels: np.ndarray, labels: np.ndarray, label: int, box: np.ndarray) -> np.ndarray:
    """A square window around one object, (CROP, CROP, 3) uint8, with its outline."""
    x1, y1, x2, y2 = (int(v) for v in box)
    side = max(NARROWEST, int(AROUND * max(x2 - x1, y2 - y1)))
    rows, columns = (
        np.clip(np.arange(CROP) * side // CROP + (low + high - side) // 2, -1, size)
        for low, high, size in ((y1, y2, labels.shape[0]), (x1, x2, labels.shape[1]))
    )
    window = np.ix_(rows.clip(0, labels.shape[0] - 1), columns.clip(0, labels.shape[1] - 1))
    beyond = (rows < 0) | (rows == labels.shape[0])
    aside = (columns < 0) | (columns == labels.shape[1])
    shown = np.where(beyond[:, None] | aside, 0, labels[window] == label)
    picture = display(pixels[window])
    ground = picture[shown == 0].mean() if (shown == 0).any() else 0.0
    picture[outlines(shown, 2)] = MARKED[int(ground > 128)]
    picture[beyond] = picture[:, aside] = PAPER
    return picture
