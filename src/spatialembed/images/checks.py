"""How an image file is refused, or told of; limits that are checked on headers alone.

Decoders believe headers: they allocate what a header claims, unpack what a text chunk holds, and
fill up what is missing. So ``png``, ``tiff`` and ``decode`` look at sizes, chunks and checksums
before a decoder sees the file.
"""

from __future__ import annotations

import warnings
from typing import NoReturn

from spatialembed.errors import RESOURCE, SpatialEmbedError


class ImageWarning(UserWarning):
    """An image was read, but not the whole of it or not as it lay."""


def warn(message: str) -> None:
    """Warn of how an image was read."""
    warnings.warn(message, ImageWarning, stacklevel=2)


def warn_of_turning(where: object, orientation: int) -> None:
    """Warn where an EXIF orientation (1 to 8) was undone."""
    if orientation != 1:
        warn(f"{where}: turned upright (EXIF orientation {orientation})")


def refuse_damaged(where: object, form: str, detail: object) -> NoReturn:
    """Raise ``truncated``."""
    raise SpatialEmbedError(
        "truncated", f"{where}: {form} cut short or damaged: {detail}", "copy or export it again"
    )


def refuse_size(where: object, size: str, max_pixels: int) -> NoReturn:
    """Raise ``too_large`` (exit 5)."""
    raise SpatialEmbedError(
        "too_large",
        f"{where}: {size}, the limit is {max_pixels} px of 3 bytes",
        "cut it into tiles, or raise the limit, --max-pixels",
        RESOURCE,
    )


def refuse_codec(where: object, what: str, remedy: str = "save it as 8 or 16-bit PNG") -> NoReturn:
    """Raise ``unsupported_codec``: a sound file of a kind that nothing here decodes."""
    raise SpatialEmbedError("unsupported_codec", f"{where}: {what}", remedy)


def refuse_channels(where: object, count: int, names: str = "") -> NoReturn:
    """Raise ``bad_channels``; names: of the channels, for the remedy."""
    remedy = f"choose one with --channel: {names or f'1 to {count}, max or sum'}"
    raise SpatialEmbedError("bad_channels", f"{where}: {count} channels", remedy)


def check_size(where: object, width: int, height: int, pixel_bytes: int, max_pixels: int) -> None:
    """Refuse by the header alone: too many pixels, or more bytes than 8-bit RGB of as many."""
    if width < 1 or height < 1:
        raise SpatialEmbedError("empty_image", f"{where}: {height}x{width} px", "export it again")
    if width * height > max_pixels or width * height * pixel_bytes > 3 * max_pixels:
        refuse_size(where, f"{height}x{width} px of {pixel_bytes} bytes", max_pixels)
