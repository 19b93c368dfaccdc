"""GeoJSON out: outlines as polygons with class, score and label, as QuPath opens them.

Coordinates are px of the image at full resolution; (0, 0) is the outer corner of its first pixel.
An object in several parts is one MultiPolygon. See ``results.polygons`` for rings and their sense.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spatialembed.files import atomic_write
from spatialembed.pictures.colour import PALETTE
from spatialembed.results.polygons import Polygon, polygons
from spatialembed.types import Instances

STEP = 3  # from the colour of one class to that of the next: neighbours in the palette are alike


def write_geojson(path: Path, instances: Instances, *, simplify: float = 0.0) -> Path:
    """Write the outlines as a GeoJSON FeatureCollection, one feature per object in label order.

    Args:
        path: File to write.
        instances: Of one image.
        simplify: Px by which outlines may depart from the pixel edges, see ``polygons``.

    Returns:
        The path.

    Raises:
        SpatialEmbedError: ``bad_setting``, ``missing_extra`` (exit 2), ``disk_full`` (exit 5).
    """
    with atomic_write(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for i, feature in enumerate(features(instances, simplify=simplify)):
            file.write(",\n" if i else "\n")
            file.write(json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")
    return path


def features(instances: Instances, *, simplify: float = 0.0) -> Iterator[dict[str, Any]]:
    """The GeoJSON features of the objects, in the order of their labels."""
    found = instances.numpy()
    colours = [list(bytes.fromhex(colour)) for colour in PALETTE.split()]
    expected = [None] * len(found) if found.expected_iou is None else found.expected_iou.tolist()
    outlines = polygons(found.labels, len(found), simplify)
    columns = zip(outlines, found.classes.tolist(), found.scores.tolist(), expected, strict=True)
    for label, (parts, index, score, iou) in enumerate(columns, start=1):
        name = found.class_names[index] if found.class_names else str(index)
        measured = {"label": label, "score": round(score, 4)}
        measured |= {} if iou is None else {"expected_iou": round(iou, 4)}
        yield {
            "type": "Feature",
            "id": label,
            "geometry": _geometry(parts),
            "properties": {
                "objectType": "detection",
                "name": str(label),
                "classification": {"name": name, "color": colours[STEP * index % len(colours)]},
                "measurements": measured,
            },
        }


def _geometry(parts: list[Polygon]) -> dict[str, Any]:
    closed = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in parts]
    single = len(closed) == 1
    return {
        "type": "Polygon" if single else "MultiPolygon",
        "coordinates": closed[0] if single else closed,
    }
