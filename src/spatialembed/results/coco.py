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

from spatialembed.files import Growing, atomic_write
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
    """Collects the objects of many images and writes them as one COCO JSON file, not in memory.

    ``write`` may be called at any time, and again when more was added.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self.path = path
        categories = [_line({"id": i, "name": name}) for i, name in enumerate(class_names, start=1)]
        self._categories = ",".join(f"\n{category}" for category in categories)
        self._images, self._annotations = Growing(path), Growing(path)
        self._numbers = {"images": 0, "annotations": 0}

    def append(self, entry: Entry) -> None:
        """Append the entry that ``describe`` makes of an image.

        Raises SpatialEmbedError ``disk_full``.
        """
        image_id = self._add("images", self._images, entry.image)
        for found in entry.objects:
            self._add("annotations", self._annotations, {"image_id": image_id} | found)

    def _add(self, kind: str, to: Growing, entry: dict[str, Any]) -> int:
        """Append an entry under the next id, which is returned."""
        comma = "," if self._numbers[kind] else ""
        self._numbers[kind] += 1
        to.append(f"{comma}\n{_line({'id': self._numbers[kind]} | entry)}")
        return self._numbers[kind]

    def write(self) -> Path:
        """Write all that was added so far. Raises SpatialEmbedError ``disk_full``."""
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            file.write(b'{\n"images": [')
            self._images.copy(file)
            file.write(f'\n],\n"categories": [{self._categories}\n],'.encode("ascii"))
            file.write(b'\n"annotations": [')
            self._annotations.copy(file)
            file.write(b"\n]\n}\n")
        return self.path


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"))
