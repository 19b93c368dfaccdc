"""Outlines out: GeoJSON as QuPath opens it, ImageJ ROIs in a ZIP for the ROI Manager of Fiji.

GeoJSON has polygons with class, score and label, a MultiPolygon of an object in several parts, in
px of the image at full resolution; (0, 0) is the outer corner of its first pixel. See
``results.polygons`` for rings and their sense.

An ImageJ ROI of one outline is a traced polygon, as the wand makes it, others are composites. Its
name is the label, its properties are class and score; of several classes the first has group 1.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from roifile import ROI_TYPE, ImagejRoi

from spatialembed.errors import RESOURCE, SpatialEmbedError
from spatialembed.files import atomic_write
from spatialembed.pictures.colour import palette
from spatialembed.results.polygons import Polygon, polygons
from spatialembed.types import Instances

STEP = 3  # from the colour of one class to that of the next: neighbours in the palette are alike
LONGEST = 60_535
"""px: boxes of ROIs have 16 bits, of which ImageJ takes the highest 5,000 values for negative."""
MOVE, LINE, CLOSE = 0, 1, 4  # steps of the path of a composite


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
    found, colours = instances.numpy(), palette().tolist()
    for i, parts in enumerate(polygons(found.labels, len(found), simplify)):
        measured = {"label": i + 1, "score": round(float(found.scores[i]), 4)}
        if found.expected_iou is not None:
            measured["expected_iou"] = round(float(found.expected_iou[i]), 4)
        closed = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in parts]
        index, name = _class_of(found, i)
        yield {
            "type": "Feature",
            "id": i + 1,
            "geometry": {"type": "Polygon", "coordinates": closed[0]}
            if len(closed) == 1
            else {"type": "MultiPolygon", "coordinates": closed},
            "properties": {
                "objectType": "detection",
                "name": str(i + 1),
                "classification": {"name": name, "color": colours[STEP * index % len(colours)]},
                "measurements": measured,
            },
        }


def _class_of(found: Instances, i: int) -> tuple[int, str]:
    index = int(found.classes[i])
    return index, found.class_names[index] if found.class_names else str(index)


def write_imagej(path: Path, instances: Instances, *, simplify: float = 0.0) -> Path:
    """Write the outlines of all objects as ImageJ ROIs in a ZIP file.

    Args:
        path: File to write.
        instances: Of one image.
        simplify: Px by which outlines may depart from the pixel edges, see ``polygons``.

    Returns:
        The path.

    Raises:
        SpatialEmbedError: ``bad_setting``, ``missing_extra`` (exit 2), ``disk_full`` (exit 5),
            ``too_large`` (exit 5) of labels with a side above ``LONGEST``.
    """
    found = instances.numpy()
    if max(found.labels.shape) > LONGEST:
        raise SpatialEmbedError(
            "too_large",
            f"{path}: boxes of ImageJ ROIs end at {LONGEST} px",
            "write geojson instead, or cut the image into parts",
            RESOURCE,
        )
    digits = len(str(len(found)))
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for i, parts in enumerate(polygons(found.labels, len(found), simplify)):
            index, name = _class_of(found, i)
            roi = _roi(parts)
            roi.name = f"{i + 1:0{digits}d}"
            roi.props = f"class: {_plain(name)}\nscore: {found.scores[i]:.4f}\n"
            roi.group = index + 1 if len(found.class_names) > 1 else 0
            entry = zipfile.ZipInfo(f"{roi.name}.roi")  # of a fixed date, for the same bytes
            file.writestr(entry, roi.tobytes(), zipfile.ZIP_DEFLATED)
    return path


def _roi(parts: list[Polygon]) -> ImagejRoi:
    rings = [ring.astype(np.int32) for polygon in parts for ring in polygon]
    roi = ImagejRoi.frompoints(np.concatenate(rings), name="")
    roi.right, roi.bottom = roi.right - 1, roi.bottom - 1  # corners, not pixels
    roi.roitype = ROI_TYPE.TRACED
    if len(rings) > 1:
        path = np.concatenate([_path(ring) for ring in rings])
        roi.roitype, roi.n_coordinates, roi.integer_coordinates = ROI_TYPE.RECT, 0, None
        roi.shape_roi_size, roi.multi_coordinates = len(path), path
    return roi


def _path(ring: np.ndarray) -> np.ndarray:
    """Float32 steps of a ring, each but the last with its x and y."""
    steps = np.insert(ring.astype(np.float32), 0, LINE, axis=1)  # (K, 3)
    steps[0, 0] = MOVE
    return np.append(steps.ravel(), np.float32(CLOSE))


def _plain(name: str) -> str:
    """In one line, and in characters of 16 bits, which the format counts by."""
    return "".join(c if c.isprintable() and ord(c) <= 0xFFFF else "?" for c in name)
