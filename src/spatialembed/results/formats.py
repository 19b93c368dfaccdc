"""Which files a prediction writes: the names that ``predict --format`` takes."""

from __future__ import annotations

from collections.abc import Sequence

from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.results.cityscapes import check_class_names
from spatialembed.results.polygons import check_simplify

FORMATS = {
    "labels": "NAME_labels.png, uint16; above 65,535 objects NAME_labels.tif, uint32",
    "tiff": "NAME_labels.tif, uint16 or uint32, instead",
    "overlay": "NAME_overlay.png",
    "csv": "objects.csv of all images",
    "coco": "instances.json of all images, COCO with RLE",
    "geojson": "NAME.geojson, outlines, for QuPath",
    "imagej": "NAME_rois.zip, outlines, for ImageJ and Fiji",
    "cityscapes": "cityscapes/NAME.txt, masks and upload.zip, for the benchmark",
}
"""Names, and what each writes of an image NAME."""
DEFAULT = ("labels", "overlay", "csv", "coco")
WHOLE_ONLY = ("geojson", "imagej", "cityscapes")
"""Not of images that go by tiles."""


def chosen(names: str | Sequence[str]) -> tuple[str, ...]:
    """The formats named, with commas between if in one string, each once.

    Raises SpatialEmbedError ``bad_setting`` (exit 2) for an unknown one, or for none.
    """
    listed = names.split(",") if isinstance(names, str) else names
    found = tuple(dict.fromkeys(name.strip() for name in listed if name.strip()))
    unknown = [name for name in found if name not in FORMATS]
    if unknown or not found:
        from spatialembed.errors import nearest  # the parser of the command line

        best = nearest(unknown[0], list(FORMATS)) if unknown else None
        what = f"format {unknown[0]!r}: no such format" if unknown else "no format named"
        remedy = f"the nearest is {best}" if best else f"there are {', '.join(FORMATS)}"
        raise SpatialEmbedError("bad_setting", what, remedy, USAGE)
    return found


def check(
    formats: str | Sequence[str], class_names: Sequence[str], simplify: float
) -> tuple[str, ...]:
    """The formats as ``chosen``; what cannot be written of these classes is refused beforehand.

    Raises SpatialEmbedError ``bad_setting``, ``missing_extra``, ``unknown_class`` (all exit 2).
    """
    names = chosen(formats)
    check_simplify(simplify)
    if "cityscapes" in names:
        check_class_names(class_names)
    return names
