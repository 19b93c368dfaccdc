"""Pictures of results: the instances over the image, and how doubtful each pixel is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.read import read_pixels
from spatialembed.images.write import write_png
from spatialembed.pictures.drawing import overlay, zoom_for
from spatialembed.pictures.html import render
from spatialembed.pictures.thumbnail import small_overlay
from spatialembed.types import Instances


def overlay_path(stem: Path) -> Path:
    """Where ``write_overlay`` writes: ``<stem>_overlay.png``."""
    return stem.with_name(f"{stem.name}_overlay.png")


def write_overlay(stem: Path, image: Any, instances: Instances) -> Path:
    """Write ``<stem>_overlay.png``: instances in colour over the image, small images enlarged.

    The score, and the class where the model knows several, stand on each object that has room.

    Args:
        stem: Folder and name without suffix.
        image: (H, W) or (H, W, 3), any dtype, upright.
        instances: Of that image.

    Returns:
        The path.

    Raises:
        SpatialEmbedError: ``disk_full`` (exit 5).
    """
    return write_png(overlay_path(stem), _drawn(image, instances))


def picture_of(image: Any, instances: Instances) -> Image.Image:
    """The picture of ``write_overlay``; image: as ``read_pixels`` takes it."""
    return Image.fromarray(_drawn(pixels_of(image, instances), instances))


def html_of(instances: Instances) -> str:
    """A part of a page: the instances on black ground, their number by class, and their sizes."""
    found = instances.numpy()
    counts = np.bincount(found.classes, minlength=len(found.class_names)).tolist()
    values = {
        "picture": small_overlay(np.zeros(found.labels.shape, np.uint8), found.labels),
        "found": found,
        "classes": list(zip(found.class_names, counts, strict=False)),
        "median_area": float(np.median(found.areas)) if len(found) else 0.0,
    }
    return render("instances.html", values)


def pixels_of(image: Any, instances: Instances) -> np.ndarray:
    """``read_pixels`` of the image of these instances. Raises ``size_mismatch`` (exit 3) too."""
    pixels = read_pixels(image)
    height, width = instances.labels.shape
    if pixels.shape[:2] != (height, width):
        what = f"an image of {pixels.shape[0]} x {pixels.shape[1]} px, labels of {height} x {width}"
        raise SpatialEmbedError("size_mismatch", what, "give the image that was predicted")
    return pixels


def _drawn(image: Any, instances: Instances) -> np.ndarray:
    found = instances.numpy()
    named = len(found.class_names) > 1
    return overlay(
        image,
        found.labels,
        scores=found.scores,
        class_names=[found.class_names[c] for c in found.classes] if named else None,
        zoom=zoom_for(*found.labels.shape),
    )


def write_ambiguity(stem: Path, ambiguity: np.ndarray) -> Path:
    """Write ``<stem>_ambiguity.png``, 8-bit grey: 255 times the ambiguity (H, W) in [0, 1].

    stem: folder and name without suffix. Returns the path. Raises SpatialEmbedError ``disk_full``.
    """
    picture = (255 * ambiguity + 0.5).astype(np.uint8)
    return write_png(stem.with_name(f"{stem.name}_ambiguity.png"), picture)
