"""objects.csv: one line for each object of all images; a cell is empty where nothing is known.

image                 as the input was listed, always quoted; see below
id                    its value in the label image, from 1 in each image
class, score          name, and the value of its seed in [0, 1]
expected_iou          with the true object, by the model's calibration
x1, y1, x2, y2        box in px, x2 and y2 exclusive
area                  px
centroid_x, _y        mean position of its pixels in px; the first pixel stands at 0
perimeter             px, of a line through the middle of its border pixels
eccentricity          of the ellipse of its second moments, 0 a circle, towards 1 ever longer
mean_grey             mean of its pixels in the values of the image as read, of a grey image
mean_red, _green, _blue            the same of a colour image
area_um2, perimeter_um             by the pixel size in the file; perimeter of square pixels only
pixel_width_um, pixel_height_um    that size

A spreadsheet runs text as a formula that begins with = + - @, a tab or a line end. Names that begin
so, or with ', have a ' put before them: a reader of the file takes off one leading ' of a name.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from spatialembed.files import atomic_write
from spatialembed.results.measurements import Facts, eccentricities
from spatialembed.types import Instances

COLUMNS = (
    "image", "id", "class", "score", "expected_iou", "x1", "y1", "x2", "y2", "area",
    "centroid_x", "centroid_y", "perimeter", "eccentricity",
    "mean_grey", "mean_red", "mean_green", "mean_blue",
    "area_um2", "perimeter_um", "pixel_width_um", "pixel_height_um",
)  # fmt: skip
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
SQUARE = 1e-3
"""Pixels whose sides differ by a smaller share are square."""


def rows(
    image: str, found: Instances, facts: Facts, pixel_um: tuple[float, float] | None = None
) -> str:
    """The lines of objects from their measurements.

    found: numpy; its labels are not looked at.
    """
    nothing: list[None] = [None] * len(found)
    expected = nothing if found.expected_iou is None else _rounded(found.expected_iou, 4)
    columns = (
        [_plain(image)] * len(found),
        range(1, len(found) + 1),
        [_plain(found.class_names[c]) if found.class_names else str(c) for c in found.classes],
        _rounded(found.scores, 4),
        expected,
        *facts.boxes.T.tolist(),
        facts.areas.tolist(),
        *(_rounded(axis, 2) for axis in facts.centroids.T),
        _rounded(facts.perimeters, 2),
        _rounded(eccentricities(facts.covariances, pixel_um or (1, 1)), 4),
        *_intensities(facts.means, nothing),
        *_physical(facts, pixel_um, nothing),
    )
    lines = io.StringIO(newline="")
    # Quoted text keeps names with commas, line ends or digits only as they are.
    writer = csv.writer(lines, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerows(zip(*columns, strict=True))
    return lines.getvalue()


def _plain(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(FORMULAS) else name


def _intensities(means: np.ndarray | None, nothing: list[None]) -> list[list[Any]]:
    """Columns of grey, red, green and blue."""
    if means is None:
        return [nothing] * 4
    channels = [_significant(channel) for channel in means.T]
    return [channels[0], *[nothing] * 3] if len(channels) == 1 else [nothing, *channels]


def _physical(
    facts: Facts, pixel_um: tuple[float, float] | None, nothing: list[None]
) -> list[list[Any]]:
    """Columns of area, perimeter and the size of a pixel, in um."""
    if pixel_um is None:
        return [nothing] * 4
    width, height = pixel_um
    square = abs(width - height) <= SQUARE * width
    return [
        _significant(facts.areas * (width * height)),
        _significant(facts.perimeters * width) if square else nothing,
        _significant(np.full(len(nothing), width)),
        _significant(np.full(len(nothing), height)),
    ]


def _rounded(values: np.ndarray, digits: int) -> list[Any]:
    return list(np.round(np.asarray(values, np.float64), digits).tolist())


def _significant(values: np.ndarray) -> list[Any]:
    """Six digits that count, since units and intensities are of any size."""
    return [float(f"{value:.6g}") for value in values.tolist()]


class ObjectTable:
    """Collects the objects of many images and writes them as one CSV file.

    ``write`` may be called at any time, and again when more was added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = [",".join(COLUMNS) + "\n"]

    def append(self, lines: str) -> None:
        """Append lines of ``rows``."""
        self._lines.append(lines)

    def write(self) -> Path:
        """Write all that was added so far. Raises SpatialEmbedError ``disk_full``."""
        with (
            atomic_write(self.path) as temporary,
            # Names that are no UTF-8 keep their bytes.
            open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            file.writelines(self._lines)
        return self.path
