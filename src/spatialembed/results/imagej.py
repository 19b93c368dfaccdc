"""ImageJ ROIs out: one for each object in a ZIP file, for the ROI Manager of ImageJ and Fiji.

An object of one outline is a traced polygon, as the wand makes it, others are composites. Its name
is its label, its properties are class and score; of several classes the first has group 1.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from roifile import ROI_TYPE, ImagejRoi

from spatialembed.errors import RESOURCE, SpatialEmbedError
from spatialembed.files import atomic_write
from spatialembed.results.polygons import Polygon, polygons
from spatialembed.types import Instances

LONGEST = 60_535
"""px: boxes have 16 bits, of which ImageJ takes the highest 5,000 values for negative ones."""
MOVE, LINE, CLOSE = 0, 1, 4  # steps of the path of a composite


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
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for i, parts in enumerate(polygons(found.labels, len(found), simplify)):
            index = int(found.classes[i])
            class_name = _plain(found.class_names[index]) if found.class_names else str(index)
            roi = _roi(parts)
            roi.name = f"{i + 1:0{digits}d}"
            roi.props = f"class: {class_name}\nscore: {found.scores[i]:.4f}\n"
            roi.group = index + 1 if len(found.class_names) > 1 else 0
            entry = zipfile.ZipInfo(f"{roi.name}.roi")  # of a fixed date, for the same bytes
            file.writestr(entry, roi.tobytes(), zipfile.ZIP_DEFLATED)
    with atomic_write(path) as temporary:
        temporary.write_bytes(packed.getvalue())
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
