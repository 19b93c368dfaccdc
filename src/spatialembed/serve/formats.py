"""The formats of an answer; no torch here."""

FORMATS = {
    "json": "application/json",
    "labels": "image/png",
    "tiff": "image/tiff",
    "geojson": "application/geo+json",
    "csv": "text/csv",
    "imagej": "application/zip",
    "overlay": "",
    "coco": "",
}
"""And the media type by which ``Accept`` asks for each."""
