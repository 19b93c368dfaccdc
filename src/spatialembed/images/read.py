"""The one image reader: training, prediction and label masks all come through here.

The content of a file becomes an array by these rules, whatever its name:

    1, 2, 4-bit grey       (H, W) uint8, stretched to 0..255
    grey 8, 16 bits        (H, W) uint8, uint16, every level kept
    RGB 8, 16 bits         (H, W, 3) uint8, uint16, every level kept
    palette, CMYK, YCbCr   (H, W, 3) uint8
    alpha                  dropped: the colours stored under it stand
    other numbers          float32: float, signed and 32-bit TIFF; NaN and Inf refused

PIL images become the same; arrays of uint8, uint16 and floats stay as they are. Gamma and colour
profiles are not applied. Of several frames or pages the first is read, with an ImageWarning. An
image with an EXIF orientation is turned upright, with another. Where a channel is asked for, it is
read alone, (H, W), see ``images.channels``. docs/inputs.md has the whole table.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.channels import COLOURS, Channel, parse_channel, pick
from spatialembed.images.checks import ImageWarning, warn_of_turning
from spatialembed.images.decode import decode, from_pillow, opened
from spatialembed.images.tiff import invert, page_numbers
from spatialembed.images.tiff_channels import channel_names

MAX_PIXELS = 2**28
"""Default limit of width x height, 268 million."""


@dataclass(frozen=True)
class Page:
    """One page of a TIFF of several; ``read_pixels`` takes it as it takes a path."""

    path: Path
    index: int  # among all pages of the file, from 0

    @property
    def suffix(self) -> str:
        """Of the file."""
        return self.path.suffix

    def __str__(self) -> str:
        return f"{self.path}, page {self.index + 1}"


def read_image(
    path: str | os.PathLike[str] | Page,
    *,
    max_pixels: int = MAX_PIXELS,
    channel: Channel | None = None,
) -> np.ndarray:
    """Read an image file, upright.

    Warns with ``ImageWarning`` of a wrong suffix, of further frames or pages, and of turning.

    Args:
        path: The file, or one ``Page`` of a TIFF.
        max_pixels: Limit of width x height; three bytes times it limit the unpacked bytes.
        channel: A number from 1, a name, "max" or "sum": only that; None: grey or colours.

    Returns:
        (H, W) grey or (H, W, 3) RGB, uint8, uint16 or float32.

    Raises:
        SpatialEmbedError: ``not_found``, ``not_a_file``, ``unreadable``, ``empty_file``,
            ``not_an_image``, ``truncated``, ``empty_image``, ``too_large`` (exit 5),
            ``unsupported_codec``, ``bad_channels``, ``value_range``, ``non_finite``,
            ``no_channel``; ``bad_setting`` (exit 2).
    """
    pixels, orientation = read_oriented(path, max_pixels=max_pixels, channel=channel)
    warn_of_turning(path, orientation)
    return pixels


def read_oriented(
    path: str | os.PathLike[str] | Page,
    *,
    max_pixels: int = MAX_PIXELS,
    channel: Channel | None = None,
) -> tuple[np.ndarray, int]:
    """As ``read_image``, and the EXIF orientation (1 to 8) that was undone, not warned of."""
    where, index = (path.path, path.index) if isinstance(path, Page) else (Path(path), None)
    with opened(where) as (file, form):
        found = decode(where, file, form, max_pixels, index, channel=parse_channel(channel))
    return np.ascontiguousarray(plain_type(path, found.pixels)), found.orientation


def oriented(path: Path, orientation: int, partner: str) -> SpatialEmbedError:
    """``oriented_image``: nobody knows whether image and truth were turned alike."""
    return SpatialEmbedError(
        "oriented_image",
        f"{path}: EXIF orientation {orientation}, which its {partner} may not have",
        "save it upright, without EXIF orientation",
    )


def read_pixels(
    image: Any, *, max_pixels: int = MAX_PIXELS, channel: Channel | None = None
) -> np.ndarray:
    """Pixels of a path, a PIL image or an array, by the rules of ``read_image``.

    Of 16-bit colours, PIL images hold only the high byte. The meaning of an array's axes is never
    guessed from its numbers.

    Args:
        image: A path, a ``Page``, a PIL image, or an array (H, W) or (H, W, 3); with a channel
            (H, W, C) of any C.
        max_pixels: Limit of width x height for files and PIL images.
        channel: As ``read_image`` takes it.

    Returns:
        (H, W) or (H, W, 3), uint8, uint16 or float32.

    Raises:
        SpatialEmbedError: As ``read_image``, and ``bad_image``, ``bad_dtype``.
    """
    if isinstance(image, (str, os.PathLike, Page)):
        return read_image(image, max_pixels=max_pixels, channel=channel)
    if isinstance(image, Image.Image):
        found = from_pillow(image, max_pixels)
        warn_of_turning("PIL image", found.orientation)
        pixels = pick("PIL image", found.pixels, channel)
        return np.ascontiguousarray(plain_type("PIL image", pixels))
    if isinstance(image, np.ndarray):
        several = image.ndim == 3 and image.size > 0
        pixels = pick("array", image, channel) if several else image
        _check_array(pixels)
        return np.ascontiguousarray(plain_type("array", pixels))
    raise SpatialEmbedError(
        "bad_image",
        f"a {type(image).__name__} is not an image",
        "give a path, a PIL image or a numpy array",
    )


def each_page(path: Path, name: str) -> list[tuple[Path | Page, str]]:
    """The pages of a TIFF of several with names ``<name>_p0001`` on, or the file as it is.

    Other files, and unreadable ones, stay as they are: reading them reports the fault. Reduced
    copies and masks are no pages of their own.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)  # repeated when it is read
            with opened(path) as (file, form):
                indices = page_numbers(path, file) if form == "TIFF" else [0]
    except SpatialEmbedError:
        return [(path, name)]
    if len(indices) == 1:
        return [(path, name)]
    return [(Page(path, at), f"{name}_p{i:04d}") for i, at in enumerate(indices, start=1)]


def grey_channels(path: Path) -> list[str] | None:
    """Names of the channels of an image that has no colours, "" without one; None: unreadable.

    One for grey and for colour pictures, which are read as they are.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            with opened(path) as (file, form):
                names = channel_names(path, file) if form == "TIFF" else [""]
    except SpatialEmbedError:
        return None
    return [""] if tuple(names) == COLOURS else names


def _check_array(array: np.ndarray) -> None:
    if array.ndim not in (2, 3):
        shape = f"an array of shape {array.shape}"
        raise SpatialEmbedError("bad_image", shape, "give (H, W) or (H, W, 3), one image per call")
    if array.ndim == 3 and array.shape[2] != 3:
        raise SpatialEmbedError(
            "bad_channels",
            f"an array of shape {array.shape} has {array.shape[2]} channels on its last axis",
            "give (H, W) for grey or (H, W, 3) for RGB, or choose a channel",
        )
    if array.size == 0:
        raise SpatialEmbedError("empty_image", f"an array of shape {array.shape}", "give pixels")
    if array.dtype.kind != "f" and array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise SpatialEmbedError(
            "bad_dtype",
            f"an array of {array.dtype}, which has no stated range",
            "give uint8, uint16, or floats in [0, 1]",
        )


def plain_type(where: object, pixels: np.ndarray) -> np.ndarray:
    """The same values as uint8, uint16, or else float32."""
    native = pixels.dtype.newbyteorder("=")
    if native in (np.uint8, np.uint16):
        return pixels.astype(native, copy=False)
    if pixels.dtype.kind not in "uif":
        raise SpatialEmbedError("value_range", f"{where}: {pixels.dtype} pixels", "save as float32")
    with np.errstate(over="ignore"):
        pixels = pixels.astype(np.float32)
    if bad := int(np.count_nonzero(~np.isfinite(pixels))):
        raise SpatialEmbedError(
            "non_finite", f"{where}: {bad} pixels are NaN or Inf", "replace them first"
        )
    return pixels


def read_labels(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a label mask, a PNG or TIFF of one channel.

    The ids are as stored, whatever a TIFF says of its white or a colour table of its numbers. 1-bit
    masks have the id 255. Whole numbers stored as float are taken.

    Args:
        path: The file.
        max_pixels: Limit of width x height.

    Returns:
        (H, W) int32 ids, 0 background.

    Raises:
        SpatialEmbedError: As ``read_image``, and ``label_format`` (JPEG and other lossy or foreign
            formats), ``colour_labels`` (RGB), ``label_values`` (negative, fractions, NaN),
            ``several_masks`` (pages), ``oriented_image``.
    """
    path = Path(path)
    with opened(path) as (file, form):
        if form not in ("PNG", "TIFF"):
            raise SpatialEmbedError(
                "label_format",
                f"{path}: a mask as {form}, which does not keep ids",
                "save masks as 16-bit PNG or TIFF",
            )
        found = decode(path, file, form, max_pixels, as_ids=True)
    pixels, bits = found.pixels, found.bits
    if found.orientation != 1:
        raise oriented(path, found.orientation, "image")
    if pixels.ndim != 2:
        raise SpatialEmbedError(
            "colour_labels",
            f"{path}: a mask with {pixels.shape[2]} channels: colours are not ids",
            "save one channel of ids, 16-bit PNG or TIFF",
        )
    if found.inverted:  # ImageJ and tifffile write masks so, and mean the number
        pixels = invert(pixels, bits)
    if bits in (2, 4):  # stretched to 0..255, as a picture is
        pixels = pixels // (255 // (2**bits - 1))
    return np.ascontiguousarray(_as_ids(path, pixels))


def _as_ids(path: Path, pixels: np.ndarray) -> np.ndarray:
    """The same ids as int32; refused where one is no whole number in [0, 2^31)."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels.astype(np.int32)
    wrong = ~np.isfinite(pixels) | (pixels < 0) | (pixels > np.iinfo(np.int32).max)
    if pixels.dtype.kind == "f":
        wrong |= pixels != np.trunc(pixels)
    if wrong.any():
        raise SpatialEmbedError(
            "label_values",
            f"{path}: {int(wrong.sum())} pixels have no valid id, one is {pixels[wrong][0]}",
            "ids are whole numbers, 0 for background",
        )
    return pixels.astype(np.int32)
