"""Arrays to image files: PNG and JPEG."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from spatialembed.files import atomic_write


def png_bytes(picture: np.ndarray) -> bytes:
    """The PNG of (H, W, 3) uint8, or (H, W) uint8 or uint16."""
    stream = BytesIO()
    # Of colours, level 2 takes a quarter of the time of the default 6 for a tenth more bytes; of
    # labels, 4 takes as long as 2 does and half its bytes.
    level = 2 if picture.ndim == 3 else 4
    Image.fromarray(picture).save(stream, format="PNG", compress_level=level)
    return stream.getvalue()


def jpeg_bytes(picture: np.ndarray, quality: int = 85) -> bytes:
    """The JPEG of (H, W, 3) uint8."""
    stream = BytesIO()
    Image.fromarray(picture).save(stream, format="JPEG", quality=quality)
    return stream.getvalue()


def write_png(path: Path, picture: np.ndarray) -> Path:
    """Write a picture as ``png_bytes`` makes it, and the folder if need be; returns the path.

    Raises SpatialEmbedError ``disk_full`` (exit 5).
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(png_bytes(picture))
    return path
