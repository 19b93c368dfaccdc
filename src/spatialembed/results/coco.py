"""instances.json: all objects in COCO's format, masks as compressed RLE.

``pycocotools.coco.COCO(path)`` opens it; its ``annotations`` alone are a COCO results list
(``COCO.loadRes``). Boxes are x, y, width, height in px; category ids count from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spatialembed.files import atomic_write
from spatialembed.labels import encode_instances
from spatialembed.types import Instances


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

    def add(self, image: str, instances: Instances) -> None:
        """Append one image with its objects; ``image`` becomes its ``file_name``."""
        found = instances.numpy()
        height, width = found.labels.shape
        image_id = len(self._images) + 1
        self._images.append(
            _line(
                {
                    "id": image_id,
                    "file_name": image,
                    "width": width,
                    "height": height,
                    "truncated": bool(found.truncated),
                }
            )
        )
        objects = zip(
            encode_instances(found.labels, len(found)),
            found.boxes.tolist(),
            found.areas.tolist(),
            found.classes.tolist(),
            found.scores.tolist(),
            strict=True,
        )
        for label, (rle, (x1, y1, x2, y2), area, index, score) in enumerate(objects, start=1):
            self._annotations.append(
                _line(
                    {
                        "id": len(self._annotations) + 1,
                        "image_id": image_id,
                        "category_id": index + 1,
                        "label": label,
                        "score": round(score, 4),
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": area,
                        "iscrowd": 0,
                        "segmentation": rle,
                    }
                )
            )

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
