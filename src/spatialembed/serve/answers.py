"""What a model found, in the format that was asked for: the files of ``predict``, as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spatialembed.method.cluster import ClusterOptions
from spatialembed.results import coco, objects_csv
from spatialembed.results.coco import CocoFile
from spatialembed.results.labels import write_labels
from spatialembed.results.measurements import measure
from spatialembed.results.objects_csv import ObjectTable
from spatialembed.results.outline_files import write_geojson, write_imagej
from spatialembed.results.overlay import write_overlay
from spatialembed.results.polygons import polygons
from spatialembed.serve.decoder import Picture
from spatialembed.types import Instances

MEDIA = {
    ".png": "image/png",
    ".tif": "image/tiff",
    ".geojson": "application/geo+json",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".zip": "application/zip",
}


def as_file(
    form: str, found: Instances, picture: Picture, name: str, folder: Path
) -> tuple[str, bytes]:
    """Media type and content of a file as ``predict --format`` writes it for an image ``name``.

    Raises SpatialEmbedError ``too_large`` (exit 5) for ImageJ ROIs of an image too long for them.
    """
    stem = folder / "answer"
    if form == "overlay":
        path = write_overlay(stem, picture.pixels, found)
    elif form == "geojson":
        path = write_geojson(folder / "answer.geojson", found)
    elif form == "imagej":
        path = write_imagej(folder / "answer.zip", found)
    elif form == "csv":
        table = ObjectTable(folder / "objects.csv")
        facts = measure(found.labels, len(found), picture.pixels)
        table.append(objects_csv.rows(name, found, facts, picture.pixel_um))
        path = table.write()
    elif form == "coco":
        file = CocoFile(folder / "instances.json", found.class_names)
        file.append(coco.describe(name, found))
        file.write()
        path = file.path
    else:
        path = write_labels(stem, found.labels, form == "tiff")
    content = path.read_bytes()
    path.unlink()
    return MEDIA[path.suffix], content


def as_json(
    model: str,
    found: Instances,
    name: str,
    outlined: bool,
    options: ClusterOptions,
    more: Mapping[str, Any],
) -> tuple[str, bytes]:
    """Media type and content of the answer of the API; outlined: with polygons."""
    entry = coco.describe(name, found)
    objects = []
    for thing in entry.objects:
        label, category = thing["label"], thing["category_id"]
        kept = {key: value for key, value in thing.items() if key != "iscrowd"}
        objects.append({"label": label, "class": found.class_names[category - 1], **kept})
    if outlined:
        for thing, parts in zip(objects, polygons(found.labels, len(found)), strict=True):
            thing["polygons"] = [[ring.tolist() for ring in part] for part in parts]
    image = {key: entry.image[key] for key in ("file_name", "width", "height")}
    answer = {
        "model": model,
        "image": image,
        "thresholds": asdict(options),
        "truncated": bool(found.truncated),
        "categories": [{"id": i, "name": n} for i, n in enumerate(found.class_names, 1)],
        "instances": objects,
        **more,
    }
    return MEDIA[".json"], json.dumps(answer, separators=(",", ":")).encode()
