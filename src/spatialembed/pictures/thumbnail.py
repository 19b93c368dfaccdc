"""One image at a glance, made where its files are written: a thumbnail and its telling objects.

What is kept of an image is small, whatever its size: a folder of thousands has its looks in memory
one after the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from spatialembed.pictures.drawing import PAPER, display, nearest, outlines, overlay, resized
from spatialembed.types import Instances

THUMB = 240
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


class Look(NamedTuple):
    """One image and its N objects."""

    image: str  # as the shared files name it
    link: str  # of its overlay, relative to the folder of the results, "" where there is none
    thumbnail: np.ndarray  # (h, w, 3) uint8, THUMB px at most
    scores: np.ndarray  # (N,) float32
    expected: np.ndarray | None  # (N,) float32, None of a model that is not calibrated
    classes: np.ndarray  # (N,) int64
    areas: np.ndarray  # (N,) int64 px
    worst: tuple[Crop, ...]  # objects, the worst first
    best: tuple[Crop, ...]  # objects, the best first

    @property
    def quality(self) -> np.ndarray:
        """(N,) what its objects are ranked by: the expected IoU if there is one, or the score."""
        return self.scores if self.expected is None else self.expected

    @property
    def mean_quality(self) -> float:
        """Of its objects, NaN without any."""
        return float(self.quality.mean()) if len(self.scores) else float("nan")


def look_at(image: str, link: str, pixels: Any, found: Instances, boxes: np.ndarray,
            areas: np.ndarray) -> Look:  # fmt: skip
    """The look of an image as it was read, and of what was found in it.

    pixels: (H, W) or (H, W, 3), any dtype. found: numpy, labels (H, W). boxes: (N, 4) x1 y1 x2 y2
    px. areas: (N,) px.
    """
    labels = found.labels
    look = glance(image, link, pixels, labels, found, areas)
    order = np.argsort(look.quality, kind="stable")
    worst, best = order[:EXTREMES], order[::-1][:EXTREMES]

    def crops(which: np.ndarray) -> tuple[Crop, ...]:
        return tuple(
            Crop(
                image, link, int(i) + 1, int(found.classes[i]), float(look.quality[i]),
                int(areas[i]), _crop(np.asarray(pixels), labels, int(i) + 1, boxes[i]),
            )
            for i in which
        )  # fmt: skip

    return look._replace(worst=crops(worst), best=crops(best))


def glance(
    image: str,
    link: str,
    pixels: Any,
    labels: np.ndarray,
    found: Instances,
    areas: np.ndarray,
) -> Look:
    """The look of an image of which only a reduced picture and reduced labels are there.

    found: its own labels are not looked at.
    """
    return Look(
        image, link, thumbnail(pixels, labels),
        found.scores, found.expected_iou, found.classes, np.asarray(areas), (), (),
    )  # fmt: skip


def thumbnail(pixels: Any, labels: np.ndarray, side: int = THUMB) -> np.ndarray:
    """Overlay (h, w, 3) uint8 of an image at no more than ``side`` px, its outlines drawn there."""
    pixels = np.asarray(pixels)
    height, width = labels.shape
    every = max(1, min(height, width) // (4 * side))  # what is thrown away needs no smoothing
    scale = side / max(height, width)
    scale = scale if scale < 1 else min(8, int(scale))  # small images by a whole factor
    small_hw = max(1, round(height * scale)), max(1, round(width * scale))
    picture = overlay(pixels[::every, ::every], np.zeros(pixels[::every, ::every].shape[:2], int))
    return overlay(resized(picture, *small_hw), nearest(labels, *small_hw))


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
