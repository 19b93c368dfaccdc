"""The one image reader: training, prediction and label masks all come through here.

What a file holds becomes an array by these rules, whatever its name says::

    1-bit                  (H, W) uint8, 0 or 255
    grey 8, 16 bits        (H, W) uint8, uint16, every level kept
    RGB 8, 16 bits         (H, W, 3) uint8, uint16, every level kept
    palette, CMYK, YCbCr   (H, W, 3) uint8
    alpha                  dropped: the colours stored under it stand
    float TIFF             float32, NaN and Inf refused
    other integer TIFF     uint16 where all values fit, else refused: their range is not known

Of several frames or pages the first is read, with an ImageWarning. An image with an EXIF
orientation is turned upright, with another.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spatialembed.data.decode import ImageWarning, decode, from_pillow, opened
from spatialembed.errors import SpatialEmbedError

MAX_PIXELS = 2**28
"""Default limit of width x height, 268 million."""


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file: (H, W) grey or (H, W, 3) RGB, uint8, uint16 or float32, upright.

    max_pixels limits width x height; nor may it take more bytes than 8-bit RGB of that many.
    Warns with ImageWarning of a wrong suffix, further frames or pages, and of turning.

    Raises SpatialEmbedError: not_found, not_a_file, unreadable, empty_file, not_an_image,
    truncated, empty_image, too_large (exit 5), unsupported_codec, bad_channels, value_range,
    non_finite.
    """
    pixels, orientation = read_oriented(path, max_pixels=max_pixels)
    if orientation != 1:
        message = f"{path}: turned upright (EXIF orientation {orientation})"
        warnings.warn(message, ImageWarning, stacklevel=2)
    return pixels


def read_oriented(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, int]:
    """As ``read_image``, and the EXIF orientation (1 to 8) that was undone, not warned of."""
    path = Path(path)
    with opened(path) as (file, form):
        pixels, orientation, _ = decode(path, file, form, max_pixels)
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise SpatialEmbedError(
            "bad_channels",
            f"{path}: {pixels.shape[2]} channels",
            "keep one (grey) or three (RGB), and save again",
        )
    return np.ascontiguousarray(_plain_type(path, pixels)), orientation


def read_pixels(image: Any) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3), uint8, uint16 or float32, of a path, a PIL image or an array.

    Files and PIL images go by the rules above; of 16-bit colours, PIL images hold but the high
    byte. What an array's axes mean is never guessed from its numbers.

    Raises SpatialEmbedError as ``read_image`` does, and: bad_image, bad_dtype.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise SpatialEmbedError("empty_image", f"a PIL image of {image.size}", "give pixels")
        return np.ascontiguousarray(_plain_type("PIL image", from_pillow(image)))
    if isinstance(image, np.ndarray):
        _check_array(image)
        return np.ascontiguousarray(_plain_type("array", image))
    raise SpatialEmbedError(
        "bad_image",
        f"a {type(image).__name__} is no image",
        "give a path, a PIL image or a numpy array",
    )


def _check_array(array: np.ndarray) -> None:
    if array.ndim not in (2, 3):
        shape = f"an array of shape {array.shape}"
        raise SpatialEmbedError("bad_image", shape, "give (H, W) or (H, W, 3), one image a call")
    if array.ndim == 3 and array.shape[2] != 3:
        raise SpatialEmbedError(
            "bad_channels",
            f"an array of shape {array.shape} has {array.shape[2]} channels on its last axis",
            "give (H, W) for grey or (H, W, 3) for RGB",
        )
    if array.size == 0:
        raise SpatialEmbedError("empty_image", f"an array of shape {array.shape}", "give pixels")
    if array.dtype.kind != "f" and array.dtype not in (np.uint8, np.uint16):
        raise SpatialEmbedError(
            "bad_dtype",
            f"an array of {array.dtype}, which has no stated range",
            "give uint8, uint16, or floats in [0, 1]",
        )


def _plain_type(where: object, pixels: np.ndarray) -> np.ndarray:
    """The same values as uint8, uint16 or float32."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype.kind == "f":
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32)
        if bad := int(np.count_nonzero(~np.isfinite(pixels))):
            raise SpatialEmbedError(
                "non_finite", f"{where}: {bad} pixels are NaN or Inf", "replace them before"
            )
        return pixels
    if pixels.dtype.kind not in "iu":
        raise SpatialEmbedError("value_range", f"{where}: {pixels.dtype} pixels", "save as float32")
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise SpatialEmbedError(
            "value_range",
            f"{where}: {pixels.dtype} values from {low} to {high}, which have no stated range",
            "save as 16-bit (0 to 65535) or as float32",
        )
    return pixels.astype(np.uint16)


def read_labels(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a label mask, PNG or TIFF of 1, 8, 16 or 32 bits: (H, W) int32 ids, 0 background.

    The ids are as stored. 1-bit masks have the id 255. Whole numbers stored as float are taken.

    Raises SpatialEmbedError as ``read_image`` does, and: label_format (JPEG and other lossy or
    foreign formats), colour_labels (RGB or palette), label_values (negative, fractions, NaN).
    """
    path = Path(path)
    with opened(path) as (file, form):
        if form not in ("PNG", "TIFF"):
            raise SpatialEmbedError(
                "label_format",
                f"{path}: a mask as {form}, which does not keep ids",
                "save masks as 16-bit PNG or TIFF",
            )
        pixels, _, mode = decode(path, file, form, max_pixels)
    if pixels.ndim != 2:
        what = "a palette" if mode.startswith("P") else f"{pixels.shape[2]} channels"
        raise SpatialEmbedError(
            "colour_labels",
            f"{path}: a mask with {what}: colours are no ids",
            "save one channel of ids, 16-bit PNG or TIFF",
        )
    return np.ascontiguousarray(_as_ids(path, pixels))


def _as_ids(path: Path, pixels: np.ndarray) -> np.ndarray:
    """The same ids as int32; refused where one is no whole number in [0, 2^31)."""
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
