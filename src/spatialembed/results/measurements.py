"""What is measured of each object: area, box, centroid, spread, perimeter, mean intensities.

Sums over runs of pixels and over border pixels, for all objects at once and band by band, since
``skimage.measure.regionprops`` looks at one object after the other (docs/results.md has how much
longer that takes) and needs the whole image. The definitions are its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

PERIMETER = ((5, 7, 15, 17, 25, 27), (21, 33), (13, 23))
"""A border pixel counts 1, sqrt 2 or their mean by its neighbours on the border: 1, plus 2 for each
beside it and 10 for each across a corner (Benkrid, Crookes and Benkrid, Design and FPGA
implementation of a perimeter estimator, 2000)."""
LENGTHS = np.array([1, np.sqrt(2), (1 + np.sqrt(2)) / 2])
_KIND = np.zeros(50, np.int64)
for _i, _sums in enumerate(PERIMETER, start=1):
    _KIND[list(_sums)] = _i


class Facts(NamedTuple):
    """Of N objects, in the order of their labels; all in px."""

    areas: np.ndarray  # (N,) int64
    boxes: np.ndarray  # (N, 4) int64 x1 y1 x2 y2, x2 and y2 exclusive
    centroids: np.ndarray  # (N, 2) float64 (x, y); the first pixel stands at 0
    covariances: np.ndarray  # (N, 3) float64 xx xy yy of the pixels' places
    perimeters: np.ndarray  # (N,) float64
    means: np.ndarray | None = None  # (N, C) float64 in the values of the image; C = 1 grey, 3 RGB


def measure(labels: np.ndarray, number: int, pixels: Any = None) -> Facts:
    """Facts of the objects 1..number of a label image (H, W), each of a pixel at least.

    pixels: (H, W) or (H, W, 3), of any type, for the mean intensities.
    """
    sums = _of_runs(labels, number)
    sums.add_borders(np.pad(labels, 2))
    if pixels is not None:
        sums.add_pixels(labels, np.asarray(pixels))
    return sums.facts()


def regions(labels: np.ndarray, number: int) -> Facts:
    """The same but for the perimeters, which are 0: areas, boxes, centroids and covariances."""
    return _of_runs(labels, number).facts()


def _of_runs(labels: np.ndarray, number: int) -> Sums:
    sums = Sums(number)
    sums.add_runs(*vertical_runs(labels))
    return sums


class Sums:
    """Sums over the pixels of objects 1..number, from which ``facts`` follow."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._areas = np.zeros(number + 1, np.int64)
        self._moments = np.zeros((5, number + 1))  # sums of x, y, xx, xy, yy; exact below 2^53
        self._low = np.full((2, number + 1), np.iinfo(np.int64).max)
        self._high = np.zeros((2, number + 1), np.int64)
        self._borders = np.zeros((len(PERIMETER) + 1, number + 1), np.int64)
        self._values: np.ndarray | None = None  # (C, number + 1)

    def add_runs(
        self, owner: np.ndarray, x: np.ndarray, begin: np.ndarray, end: np.ndarray
    ) -> None:
        """Runs of pixels down the columns: label, column, first row and the row after the last."""
        length = end - begin
        y = length * (begin + end - 1) // 2
        yy = _squares_below(end) - _squares_below(begin)
        self._areas += self._sum(owner, length).astype(np.int64)
        for i, values in enumerate((length * x, y, length * x * x, x * y, yy)):
            self._moments[i] += self._sum(owner, values)
        for axis, first, last in ((0, x, x + 1), (1, begin, end)):
            np.minimum.at(self._low[axis], owner, first)
            np.maximum.at(self._high[axis], owner, last)

    def add_borders(self, labels: np.ndarray) -> None:
        """Labels (h + 4, w + 4) with two pixels of the image around them, 0 outside of it."""
        inner = labels[1:-1, 1:-1]
        border = inner != labels[:-2, 1:-1]
        for shifted in (labels[2:, 1:-1], labels[1:-1, :-2], labels[1:-1, 2:]):
            border |= inner != shifted
        border &= inner > 0
        y, x = np.nonzero(border[1:-1, 1:-1])
        y, x = y + 1, x + 1  # places in ``inner``
        owner = inner[y, x].astype(np.int64)
        around = np.ones(len(owner), np.int64)
        for dy, dx in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b):
            also = border[y + dy, x + dx] & (inner[y + dy, x + dx] == owner)
            around += (10 if dy and dx else 2) * also
        place = _KIND[around] * (self.number + 1) + owner
        self._borders += np.bincount(place, minlength=self._borders.size).reshape(
            self._borders.shape
        )

    def add_pixels(self, labels: np.ndarray, pixels: np.ndarray) -> None:
        """Values of the image (h, w) or (h, w, 3) at labels (h, w)."""
        y, x = np.nonzero(labels)
        owner = labels[y, x]
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        values = pixels[y, x].reshape(len(owner), channels)
        sums = np.stack([self._sum(owner, values[:, c]) for c in range(channels)])
        self._values = sums if self._values is None else self._values + sums

    def _sum(self, owner: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, values, self.number + 1)

    def facts(self) -> Facts:
        """Of all that was added."""
        area = np.maximum(self._areas[1:], 1)
        x, y, xx, xy, yy = self._moments[:, 1:] / area
        spread = np.stack((xx - x * x, xy - x * y, yy - y * y), axis=1)
        return Facts(
            self._areas[1:],
            np.ascontiguousarray(np.concatenate((self._low, self._high))[:, 1:].T),
            np.stack((x, y), axis=1),
            spread,
            LENGTHS @ self._borders[1:, 1:],
            None if self._values is None else (self._values[:, 1:] / area).T,
        )


def eccentricities(covariances: np.ndarray, pixel_xy: tuple[float, float] = (1, 1)) -> np.ndarray:
    """(N,) float64 in [0, 1]: of the ellipse of these covariances (N, 3), 0 for a circle.

    pixel_xy: width and height of a pixel, in any unit.
    """
    width, height = pixel_xy
    xx, xy, yy = (covariances * (width**2, width * height, height**2)).T
    half, root = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    long, short = half + root, np.maximum(half - root, 0)
    return np.sqrt(1 - short / np.where(long > 0, long, 1)) * (long > 0)


def vertical_runs(
    band: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs of one label above 0 down the columns of a band (h, W): label, x, begin and end row."""
    height = len(band)
    flat = band.T.ravel()  # column by column
    edge = np.empty(len(flat), bool)
    edge[1:] = flat[1:] != flat[:-1]
    edge[:: max(1, height)] = True  # a run ends with its column
    start = np.flatnonzero(edge)
    end = np.append(start[1:], len(flat))
    owner = flat[start].astype(np.int64)
    start, end, owner = start[owner > 0], end[owner > 0], owner[owner > 0]
    x, begin = np.divmod(start, max(1, height))
    return owner, x, begin, end - x * height


def _squares_below(n: np.ndarray) -> np.ndarray:
    """0 + 1 + 4 + ... + (n - 1)^2."""
    return (n - 1) * n * (2 * n - 1) // 6
