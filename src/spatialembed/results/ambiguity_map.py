"""Ambiguity maps out: how near each pixel came to another answer, as a grey picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spatialembed.render import write_png


def write_ambiguity(stem: Path, ambiguity: np.ndarray) -> Path:
    """Write ``<stem>_ambiguity.png``, 8-bit grey: 255 times the ambiguity (H, W) in [0, 1].

    stem: folder and name without suffix. Returns the path. Raises SpatialEmbedError ``disk_full``.
    """
    picture = (255 * ambiguity + 0.5).astype(np.uint8)
    return write_png(stem.with_name(f"{stem.name}_ambiguity.png"), picture)
