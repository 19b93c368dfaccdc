"""objects.csv: one line for each object of all images.

image                 as the input was listed, always quoted
id                    its value in the label image, from 1 in each image
class, score          name, and the value of its seed in [0, 1]
expected_iou          with the true object, by the model's calibration; empty without one
x1, y1, x2, y2        box in px, x2 and y2 exclusive
area                  px
centroid_x, _y        mean position of its pixels in px; the first pixel stands at 0
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from spatialembed.files import atomic_write
from spatialembed.types import Instances

COLUMNS = (
    "image", "id", "class", "score", "expected_iou", "x1", "y1", "x2", "y2", "area",
    "centroid_x", "centroid_y",
)  # fmt: skip


def _centroids(labels: np.ndarray, count: int) -> np.ndarray:
    """Mean (x, y) of the pixels of labels 1..count, (count, 2) float64 in px."""
    ys, xs = np.nonzero(labels)
    owner = labels[ys, xs]
    area = np.bincount(owner, minlength=count + 1)
    sums = [np.bincount(owner, weights=at, minlength=count + 1)[1:] for at in (xs, ys)]
    return np.stack(sums, axis=1) / area[1:, None]


def _expected(found: Instances) -> list[float] | list[None]:
    """Expected IoU of each object; None, which is written as nothing, without calibration."""
    if found.expected_iou is None:
        return [None] * len(found)
    return list(np.round(found.expected_iou.astype(np.float64), 4).tolist())


def describe(image: str, instances: Instances) -> str:
    """The lines of one image's objects, ids as in its label image; ``image`` is its name."""
    found = instances.numpy()
    return rows(image, found, found.boxes, found.areas, _centroids(found.labels, len(found)))


def rows(
    image: str, found: Instances, boxes: np.ndarray, areas: np.ndarray, centroids: np.ndarray
) -> str:
    """The lines of objects by their boxes (N, 4), areas (N,) and centroids (N, 2) (x, y) in px.

    found: numpy; its labels are not looked at.
    """
    columns = (
        [image] * len(found),
        range(1, len(found) + 1),
        [found.class_names[c] if found.class_names else str(c) for c in found.classes],
        np.round(found.scores.astype(np.float64), 4).tolist(),
        _expected(found),
        *boxes.T.tolist(),
        areas.tolist(),
        *np.round(centroids, 2).T.tolist(),
    )
    lines = io.StringIO(newline="")
    # Quoted text keeps names with commas, line ends or digits only as they are.
    writer = csv.writer(lines, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerows(zip(*columns, strict=True))
    return lines.getvalue()


class ObjectTable:
    """Collects the objects of many images and writes them as one CSV file.

    ``write`` may be called at any time, and again when more was added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = [",".join(COLUMNS) + "\n"]

    def add(self, image: str, instances: Instances) -> None:
        """Append the objects of one image, ids as in its label image; ``image`` is its name."""
        self.append(describe(image, instances))

    def append(self, lines: str) -> None:
        """Append lines of ``describe``."""
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
