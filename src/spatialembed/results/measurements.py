"""What is measured of each object: area, box, centroid, spread, perimeter, mean intensities.

Sums over runs of pixels and over border pixels, for all objects at once and band by band, since
``skimage.measure.regionprops`` looks at one object after the other (docs/results.md has how much
longer that takes) and needs the whole image. The definitions are its own. Of an image too large
for memory the runs of the masks are kept in a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from spatialembed.files import mapped_array
from spatialembed.method.labels import Rle, encode_runs

PERIMETER = ((5, 7, 15, 17, 25, 27), (21, 33), (13, 23))
"""A border pixel counts 1, sqrt 2 or their mean by its neighbours on the border: 1, plus 2 for each
beside it and 10 for each across a corner (Benkrid, Crookes and Benkrid, Design and FPGA
implementation of a perimeter estimator, 2000)."""
LENGTHS = np.array([0, 1, np.sqrt(2), (1 + np.sqrt(2)) / 2])
_KIND = np.zeros(50, np.int64)
for _i, _sums in enumerate(PERIMETER, start=1):
    _KIND[list(_sums)] = _i
STRIP = 4096
"""Columns of a band that are measured at a time."""
BLOCK_RUNS = 1 << 18
"""Masks are encoded for so many runs at a time."""


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
    read = None if pixels is None else lambda top, bottom: np.asarray(pixels)[top:bottom]
    passing = Measure(number, (labels.shape[0], labels.shape[1]), read=read)
    for _ in passing.passed([labels]):
        pass
    return passing.facts()


def regions(labels: np.ndarray, number: int) -> Facts:
    """The same but for the perimeters, which are 0: areas, boxes, centroids and covariances."""
    passing = Measure(number, (labels.shape[0], labels.shape[1]))
    passing.add_runs(labels, 0)
    return passing.facts()


class Measure:
    """Facts and masks of the objects 1..number of a label image (H, W) that passes by in bands.

    runs: an empty or missing file, where the masks are wanted too. read: the pixels, (h, W) or
    (h, W, 3), from a row to another, for the mean intensities.
    """

    def __init__(
        self,
        number: int,
        shape_hw: tuple[int, int],
        runs: Path | None = None,
        read: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self._shape_hw = shape_hw
        self._path = runs
        self._read = read
        self._areas = np.zeros(number + 1, np.int64)
        self._moments = np.zeros((5, number + 1))  # sums of x, y, xx, xy, yy; exact below 2^53
        self._low = np.full((2, number + 1), np.iinfo(np.int64).max)
        self._high = np.zeros((2, number + 1), np.int64)
        self._borders = np.zeros((len(LENGTHS), number + 1), np.int64)
        self._values: Any = 0  # (C, number + 1) once there are any
        self._runs_of = np.zeros(number + 1, np.int64)
        nothing = np.zeros((0, shape_hw[1]), np.uint32)
        self._last = nothing, nothing  # the end of the band before the last one, and that

    def passed(self, bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same bands of whole rows (h, W), each measured before it is handed on."""
        top = 0
        with open(self._path or os.devnull, "wb") as file:
            for band in bands:
                self.add_runs(band, top, file if self._path else None)
                if self._read is not None:
                    self._add_pixels(band, self._read(top, top + len(band)))
                self._add_borders(band)
                top += len(band)
                yield band

    def add_runs(self, band: np.ndarray, top: int, file: IO[bytes] | None = None) -> None:
        """Areas, boxes and moments of a band from row ``top`` on; its runs go into the file."""
        for left in range(0, band.shape[1], STRIP):
            owner, x, begin, end = _vertical_runs(band[:, left : left + STRIP])  # (R,) each
            x, begin, end = x + left, begin + top, end + top
            length = end - begin
            y = length * (begin + end - 1) // 2
            yy = _squares_below(end) - _squares_below(begin)
            self._areas += self._sum(owner, length).astype(np.int64)
            for i, values in enumerate((length * x, y, length * x * x, x * y, yy)):
                self._moments[i] += self._sum(owner, values)
            for axis, first, last in ((0, x, x + 1), (1, begin, end)):
                np.minimum.at(self._low[axis], owner, first)
                np.maximum.at(self._high[axis], owner, last)
            if file is not None:
                self._runs_of += np.bincount(owner, minlength=len(self._runs_of))
                place = x * self._shape_hw[0]  # column-major
                np.stack((owner, place + begin, place + end), axis=1).tofile(file)

    def _add_pixels(self, labels: np.ndarray, pixels: np.ndarray) -> None:
        y, x = np.nonzero(labels)
        owner = labels[y, x]
        values = pixels[y, x].reshape(len(owner), -1 if len(owner) else pixels[:1, :1].size)
        self._values = self._values + np.stack([self._sum(owner, channel) for channel in values.T])

    def _add_borders(self, below: np.ndarray) -> None:
        """Of the last band, whose border pixels the ends of its neighbours decide as well."""
        above, band = self._last
        height = len(band)
        labels = np.zeros((height + 4, self._shape_hw[1] + 4), below.dtype)
        labels[2 - len(above) : 2, 2:-2] = above
        labels[2 : 2 + height, 2:-2] = band
        labels[2 + height : 2 + height + len(below[:2]), 2:-2] = below[:2]
        self._last = band[-2:], below
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
        place = _KIND[around] * len(self._areas) + owner
        counts = np.bincount(place, minlength=self._borders.size)
        self._borders += counts.reshape(self._borders.shape)

    def _sum(self, owner: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, values, len(self._areas))

    def facts(self) -> Facts:
        """Of the whole image, once, when all bands have passed."""
        self._add_borders(self._last[1][:0])  # the consumer of the bands may stop before their end
        area = np.maximum(self._areas[1:], 1)
        x, y, xx, xy, yy = self._moments[:, 1:] / area
        return Facts(
            self._areas[1:],
            np.ascontiguousarray(np.concatenate((self._low, self._high))[:, 1:].T),
            np.stack((x, y), axis=1),
            np.stack((xx - x * x, xy - x * y, yy - y * y), axis=1),
            LENGTHS @ self._borders[:, 1:],
            None if self._read is None else (self._values[:, 1:] / area).T,
        )

    def masks(self) -> Iterator[Rle]:
        """The masks of the objects in the order of their labels, a block of them in memory."""
        total = int(self._runs_of.sum())
        if self._path is None or not total:
            return
        runs = np.memmap(self._path, np.int64, "r", shape=(total, 3))
        by_owner = _sorted_by_owner(runs, self._runs_of, self._path.with_suffix(".sorted"))
        ends = self._runs_of.cumsum()
        first = 1
        while first < len(ends):
            room = int(ends[first - 1]) + BLOCK_RUNS
            last = max(first + 1, int(np.searchsorted(ends, room, side="right")))
            part = np.array(by_owner[ends[first - 1] : ends[last - 1]])
            part = part[np.lexsort((part[:, 1], part[:, 0]))]
            yield from encode_runs(
                part[:, 0] - (first - 1), part[:, 1], part[:, 2], last - first, self._shape_hw
            )
            first = last


def _sorted_by_owner(runs: np.ndarray, runs_of: np.ndarray, path: Path) -> np.ndarray:
    """The runs (R, 3) by owner, in a new file that is mapped; a block at a time is sorted."""
    result = mapped_array(path, np.int64, runs.shape)
    place = np.concatenate(([0], runs_of.cumsum()))[:-1]  # the next free one of each owner
    for i in range(0, len(runs), BLOCK_RUNS):
        block = runs[i : i + BLOCK_RUNS]
        block = block[np.argsort(block[:, 0], kind="stable")]
        owners, first, counts = np.unique(block[:, 0], return_index=True, return_counts=True)
        rank = np.arange(len(block)) - np.repeat(first, counts)
        result[place[block[:, 0]] + rank] = block
        place[owners] += counts
    return result


def eccentricities(covariances: np.ndarray, pixel_xy: tuple[float, float] = (1, 1)) -> np.ndarray:
    """(N,) float64 in [0, 1]: of the ellipse of these covariances (N, 3), 0 for a circle.

    pixel_xy: width and height of a pixel, in any unit.
    """
    width, height = pixel_xy
    xx, xy, yy = (covariances * (width**2, width * height, height**2)).T
    half, root = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    long, short = half + root, np.maximum(half - root, 0)
    return np.sqrt(1 - short / np.where(long > 0, long, 1)) * (long > 0)


def _vertical_runs(band: np.ndarray) -> tuple[np.ndarray, ...]:
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
