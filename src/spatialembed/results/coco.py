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


def describe(
    image: str,
    instances: Instances,
    facts: Facts | None = None,
    masks: Iterable[Rle] | None = None,
    size_hw: tuple[int, int] | None = None,
) -> Entry:
    """One image with its objects; ``image`` becomes its ``file_name``.

    facts: measurements of the objects, where there are any already. masks, size_hw: of an image
    that is too large for memory, whose labels are then not looked at; masks are taken one by one.
    """
    found = instances.numpy()
    height, width = size_hw or found.labels.shape
    about = {"file_name": image, "width": width, "height": height, "truncated": found.truncated}
    boxes, areas = (found.boxes, found.areas) if facts is None else (facts.boxes, facts.areas)
    if masks is not None:
        return Entry(about, _objects(found, masks, boxes, areas))
    return Entry(
        about, [*_objects(found, encode_instances(found.labels, len(found)), boxes, areas)]
    )


def _objects(
    found: Instances, masks: Iterable[Rle], boxes: np.ndarray, areas: np.ndarray
) -> Iterator[dict[str, Any]]:
    classes, scores = found.classes.tolist(), found.scores.tolist()
    columns = zip(masks, boxes.tolist(), areas.tolist(), classes, scores, strict=True)
    for i, (rle, (x1, y1, x2, y2), area, index, score) in enumerate(columns):
        entry: dict[str, Any] = {
            "category_id": index + 1,
            "label": i + 1,
            "score": round(score, 4),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": 0,
            "segmentation": rle,
        }
        if found.expected_iou is not None:
            entry["expected_iou"] = round(float(found.expected_iou[i]), 4)
        yield entry


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
        yield "{"
        yield from _listed("images", self._images)
        yield ","
        yield from _listed("categories", self._categories)
        yield ","
        yield from _listed("annotations", self._annotations)
        yield "\n}\n"


def _listed(name: str, entries: Sequence[str]) -> Iterator[str]:
    yield f'\n"{name}": ['
    for i, entry in enumerate(entries):
        yield f"{',' if i else ''}\n{entry}"
    yield "\n]"


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"))
