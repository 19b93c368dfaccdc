"""instances.json: all objects in COCO's format, masks as compressed RLE.

``pycocotools.coco.COCO(path)`` opens it; its ``annotations`` alone are a COCO results list
(``COCO.loadRes``). Boxes are x, y, width, height in px; category ids count from 1. A calibrated
model adds ``expected_iou`` to each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spatialembed.files import atomic_write
from spatialembed.method.labels import Rle, encode_instances
from spatialembed.results.measurements import Facts
from spatialembed.types import Instances


class Entry(NamedTuple):
    """An image and its objects as the file has them, but for the ids, which count over all."""

    image: dict[str, Any]
    objects: Iterable[dict[str, Any]]


def describe(image: str, instances: Instances, facts: Facts | None = None) -> Entry:
    """One image with its objects; ``image`` becomes its ``file_name``.

    facts: measurements of them, where there are any already.
    """
    found = instances.numpy()
    masks = encode_instances(found.labels, len(found))
    size_hw = (found.labels.shape[0], found.labels.shape[1])
    boxes, areas = (found.boxes, found.areas) if facts is None else (facts.boxes, facts.areas)
    objects = entries(masks, boxes, areas, found)
    return Entry(about(image, size_hw, found.truncated), list(objects))


def about(image: str, size_hw: tuple[int, int], truncated: bool) -> dict[str, Any]:
    """The file's entry of an image."""
    height, width = size_hw
    return {"file_name": image, "width": width, "height": height, "truncated": bool(truncated)}


def entries(
    masks: Iterable[Rle], boxes: np.ndarray, areas: np.ndarray, found: Instances
) -> Iterator[dict[str, Any]]:
    """The file's entries of objects 1..N, one by one, by their masks, boxes (N, 4), areas (N,).

    found: numpy; its labels are not looked at.
    """
    expected = [None] * len(found) if found.expected_iou is None else found.expected_iou.tolist()
    columns = zip(
        masks,
        boxes.tolist(),
        areas.tolist(),
        found.classes.tolist(),
        found.scores.tolist(),
        expected,
        strict=True,
    )
    for label, (rle, (x1, y1, x2, y2), area, index, score, iou) in enumerate(columns, start=1):
        entry: dict[str, Any] = {
            "category_id": index + 1,
            "label": label,
            "score": round(score, 4),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": 0,
            "segmentation": rle,
        }
        yield entry if iou is None else entry | {"expected_iou": round(iou, 4)}


class CocoFile:
    """Collects the objects of many images and writes them as one COCO JSON file.

    ``write`` may be called at any time, and again when more was added.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self.path = path
        self._categories = [
            _line({"id": i, "name": name}) for i, name in enumerate(class_names, start=1)
        ]
        self._images: list[str] = []
        self._annotations: list[str] = []

    def append(self, entry: Entry) -> None:
        """Append the entry that ``describe`` makes of an image."""
        image_id = len(self._images) + 1
        self._images.append(_line({"id": image_id} | entry.image))
        for found in entry.objects:
            ids = {"id": len(self._annotations) + 1, "image_id": image_id}
            self._annotations.append(_line(ids | found))

    def write(self) -> Path:
        """Write all that was added so far. Raises SpatialEmbedError ``disk_full``."""
        with atomic_write(self.path) as temporary, open(temporary, "w", encoding="ascii") as file:
            file.writelines(self._pieces())
        return self.path

    def _pieces(self) -> Iterator[str]:
        """The file, one entry a line."""
        lists = (
            ("images", self._images),
            ("categories", self._categories),
            ("annotations", self._annotations),
        )
        for i, (name, entries) in enumerate(lists):
            yield f'{"," if i else "{"}\n"{name}": ['
            for j, entry in enumerate(entries):
                yield f"{',' if j else ''}\n{entry}"
            yield "\n]"
        yield "\n}\n"


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"))
