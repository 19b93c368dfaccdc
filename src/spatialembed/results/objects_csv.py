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

from spatialembed.files import Growing, atomic_write
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
    table: dict[str, Any] = dict.fromkeys(COLUMNS, [None] * len(found))
    table |= columns(found, facts, pixel_um)
    table |= {
        "image": [_plain(image)] * len(found),
        "class": list(map(_plain, table["class"])),
    }
    lines = io.StringIO(newline="")
    # Quoted text keeps names with commas, line ends or digits only as they are.
    writer = csv.writer(lines, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerows(zip(*table.values(), strict=True))
    return lines.getvalue()


def columns(
    found: Instances, facts: Facts, pixel_um: tuple[float, float] | None = None
) -> dict[str, list[Any]]:
    """The columns with known values of the N objects of one image, each of N, without ``image``.

    found: numpy; its labels are not looked at. pixel_um: width and height of a pixel, in µm.
    """
    columns: dict[str, Any] = {
        "id": list(range(1, len(found) + 1)),
        "class": [found.class_names[c] if found.class_names else str(c) for c in found.classes],
        "score": _rounded(found.scores, 4),
        **dict(zip(("x1", "y1", "x2", "y2"), facts.boxes.T.tolist(), strict=True)),
        "area": facts.areas.tolist(),
        "centroid_x": _rounded(facts.centroids[:, 0], 2),
        "centroid_y": _rounded(facts.centroids[:, 1], 2),
        "perimeter": _rounded(facts.perimeters, 2),
        "eccentricity": _rounded(eccentricities(facts.covariances, pixel_um or (1, 1)), 4),
    }
    if found.expected_iou is not None:
        columns["expected_iou"] = _rounded(found.expected_iou, 4)
    if facts.means is not None:
        names = ("grey",) if facts.means.shape[1] == 1 else ("red", "green", "blue")
        for name, values in zip(names, facts.means.T, strict=True):
            columns[f"mean_{name}"] = _significant(values)
    if pixel_um is not None:
        width, height = pixel_um
        columns["area_um2"] = _significant(facts.areas * (width * height))
        if abs(width - height) <= SQUARE * width:
            columns["perimeter_um"] = _significant(facts.perimeters * width)
        columns["pixel_width_um"] = _significant(np.full(len(found), width))
        columns["pixel_height_um"] = _significant(np.full(len(found), height))
    return {name: columns[name] for name in COLUMNS if name in columns}


def _plain(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(FORMULAS) else name


def _rounded(values: np.ndarray, digits: int) -> list[Any]:
    return list(np.round(np.asarray(values, np.float64), digits).tolist())


def _significant(values: np.ndarray) -> list[Any]:
    """Six digits that count, since units and intensities are of any size."""
    return [float(f"{value:.6g}") for value in values.tolist()]


class ObjectTable:
    """Collects the objects of many images and writes them as one CSV file, not in memory.

    ``write`` may be called at any time, and again when more was added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = Growing(path)
        self._lines.append(",".join(COLUMNS) + "\n")

    def append(self, lines: str) -> None:
        """Append lines of ``rows``. Raises SpatialEmbedError ``disk_full``."""
        self._lines.append(lines)

    def write(self) -> Path:
        """Write all that was added so far. Raises SpatialEmbedError ``disk_full``."""
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            self._lines.copy(file)
        return self.path
