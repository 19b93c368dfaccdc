"""Pictures of results: the instances over the image, and how doubtful each pixel is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spatialembed.images.write import write_png
from spatialembed.pictures.drawing import overlay, zoom_for
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
    found = instances.numpy()
    named = len(found.class_names) > 1
    picture = overlay(
        image,
        found.labels,
        scores=found.scores,
        class_names=[found.class_names[c] for c in found.classes] if named else None,
        zoom=zoom_for(*found.labels.shape),
    )
    return write_png(overlay_path(stem), picture)


def write_ambiguity(stem: Path, ambiguity: np.ndarray) -> Path:
    """Write ``<stem>_ambiguity.png``, 8-bit grey: 255 times the ambiguity (H, W) in [0, 1].

    stem: folder and name without suffix. Returns the path. Raises SpatialEmbedError ``disk_full``.
    """
    picture = (255 * ambiguity + 0.5).astype(np.uint8)
    return write_png(stem.with_name(f"{stem.name}_ambiguity.png"), picture)
