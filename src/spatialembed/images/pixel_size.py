"""The physical size of a pixel, where the file states it: OME-XML, ImageJ, TIFF tags, OME-Zarr.

file says                                            taken as
OME-XML PhysicalSizeX, PhysicalSizeXUnit             that; without a unit um
ImageJ unit and XResolution                          pixels per unit; of inches as the next line
XResolution in centimetres or inches                 that, for pixels up to COARSEST_UM
OME-Zarr axes of kind space with unit and scale      that

Programs write coarser tags for printing (72, 96, 300 dpi), whatever the object.
"""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import tifffile

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.decode import opened
from spatialembed.images.listing import is_zarr
from spatialembed.images.read import Page
from spatialembed.images.tiff import DAMAGED, valid_orientation, whole_pages

COARSEST_UM = 25.4
"""1000 dpi: what scanners of film and slides have, and printers have not."""
UM = {
    "pm": 1e-6, "picometer": 1e-6, "å": 1e-4, "angstrom": 1e-4, "nm": 1e-3, "nanometer": 1e-3,
    "um": 1.0, "µm": 1.0, "μm": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0,
    "micrometer": 1.0, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "m": 1e6,
    "meter": 1e6, "inch": 25_400.0, "in": 25_400.0,
}  # fmt: skip
"""Micrometres in a unit of length, by its names in small letters."""
_INCH_OR_CM = {2: "inch", 3: "cm"}

Size = tuple[float, float]


def pixel_size(source: Path | Page) -> Size | None:
    """Width and height of a pixel in um as its image is read, upright; None where it is unknown.

    Faults of the file are left to the reader of its pixels.
    """
    path, index = (source.path, source.index) if isinstance(source, Page) else (source, None)
    try:
        if is_zarr(path):
            return _of_zarr(path)
        with opened(path) as (file, form):
            if form != "TIFF":
                return None
            with tifffile.TiffFile(file) as tiff:
                place = next(whole_pages(tiff), 0) if index is None else index
                return _of_tiff(tiff, tiff.pages[place].aspage(), later_page=bool(index))
    except (SpatialEmbedError, *DAMAGED):
        return None


def _of_tiff(tiff: tifffile.TiffFile, page: tifffile.TiffPage, later_page: bool) -> Size | None:
    size = _of_ome(tiff.ome_metadata or "", later_page)
    size = size or _of_tags(page, tiff.imagej_metadata or {})
    if size is not None and valid_orientation(page.tags.valueof("Orientation")) >= 5:
        return size[::-1]
    return size


def _of_ome(xml: str, later_page: bool) -> Size | None:
    """Of the first image in it, by an expression: an XML reader would expand entities.

    Of a later page only if all images agree: which one it is of stands elsewhere.
    """
    sizes = [_of_pixels(tag) for tag in re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", xml)]
    return None if not sizes or (later_page and len(set(sizes)) > 1) else sizes[0]


def _of_pixels(tag: str) -> Size | None:
    values = re.findall(r'(\w+)="([^"]*)"', tag)
    said = {name: html.unescape(value) for name, value in values}  # &#181;m
    return _checked(
        *(
            float(said.get(f"PhysicalSize{axis}", "nan"))
            * _um(said.get(f"PhysicalSize{axis}Unit", "um"))
            for axis in "XY"
        )
    )


def _of_tags(page: tifffile.TiffPage, imagej: dict[str, Any]) -> Size | None:
    """Pixels per unit, which ImageJ names in its own description and others in a tag."""
    per_unit = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if not all(isinstance(rational, tuple) and all(rational) for rational in per_unit):
        return None
    units = [below / above for above, below in per_unit]
    unit = imagej.get("unit", _INCH_OR_CM.get(page.tags.valueof("ResolutionUnit"), ""))
    unit_y = imagej.get("yunit", unit)
    size = _checked(units[0] * _um(str(unit)), units[1] * _um(str(unit_y)))
    # ImageJ takes inches over from the tags of printing.
    said = "unit" in imagej and unit not in ("inch", "in")
    return size if size is not None and (said or max(size) <= COARSEST_UM) else None


def _of_zarr(path: Path) -> Size | None:
    """Of the full resolution, by the attributes of the group alone."""
    file = next((path / f for f in ("zarr.json", ".zattrs") if (path / f).is_file()), None)
    said: Any = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    said = said.get("attributes", said)
    scales = said.get("ome", said)["multiscales"][0]
    steps = scales["datasets"][0]["coordinateTransformations"]
    scale = next(step["scale"] for step in steps if step["type"] == "scale")
    um = {
        axis["name"]: step * _um(axis.get("unit", ""))
        for axis, step in zip(scales["axes"], scale, strict=True)
    }
    return _checked(um["x"], um["y"])


def _um(unit: str) -> float:
    return UM.get(unit.strip().lower().replace("metre", "meter"), math.nan)


def _checked(width: float, height: float) -> Size | None:
    fine = all(math.isfinite(side) and side > 0 for side in (width, height))
    return (width, height) if fine else None
