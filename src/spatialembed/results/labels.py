"""Label images out: a 16-bit PNG or TIFF, and a 32-bit TIFF for more instances than that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from spatialembed.files import atomic_write
from spatialembed.images.write import write_png

HIGHEST_16 = 65_535
"""Highest label of 16 bits."""


def write_labels(stem: Path, labels: Any, tiff: bool = False) -> Path:
    """Write a label image: ``<stem>_labels.png``, or above 65,535 instances ``<stem>_labels.tif``.

    A file of an earlier run under the other suffix is removed, so that one label image stands for
    one input.

    Args:
        stem: Folder and name without suffix.
        labels: (H, W) int32, 0 background, instances from 1.
        tiff: Write a TIFF in any case, uint16 where that is enough, else uint32.

    Returns:
        The path.

    Raises:
        SpatialEmbedError: ``disk_full`` (exit 5).
    """
    labels = np.asarray(labels)
    png, tif = (stem.with_name(f"{stem.name}_labels{suffix}") for suffix in (".png", ".tif"))
    small = labels.max(initial=0) <= HIGHEST_16
    labels = labels.astype(np.uint16 if small else np.uint32)
    path, other = (png, tif) if small and not tiff else (tif, png)
    if path is png:
        write_png(png, labels)
    else:
        with atomic_write(tif) as temporary:
            tifffile.imwrite(temporary, labels, compression="zlib", metadata=None)
    other.unlink(missing_ok=True)
    return path
