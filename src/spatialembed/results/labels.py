"""Label images out: a 16-bit PNG, and a 32-bit TIFF for more instances than that can count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from spatialembed.files import atomic_write
from spatialembed.render import write_png

PNG_LIMIT = 65_535
"""Highest label of a 16-bit PNG."""


def write_labels(stem: Path, labels: Any) -> Path:
    """Write ``<stem>_labels.png``, uint16, or above 65,535 instances ``<stem>_labels.tif``, uint32.

    stem: folder and name without suffix. labels: (H, W) int32, 0 background, instances from 1.
    Returns the path. What an earlier run left under the other suffix is removed, so that one label
    image stands for one input. Raises SpatialEmbedError ``disk_full``.
    """
    labels = np.asarray(labels)
    png, tif = (stem.with_name(f"{stem.name}_labels{suffix}") for suffix in (".png", ".tif"))
    path, other = (png, tif) if labels.max(initial=0) <= PNG_LIMIT else (tif, png)
    if path is png:
        write_png(png, labels.astype(np.uint16))
    else:
        with atomic_write(tif) as temporary:
            tifffile.imwrite(temporary, labels.astype(np.uint32), compression="zlib", metadata=None)
    other.unlink(missing_ok=True)
    return path
