"""Image bytes to pixels as they are stored: which format, which reader, which orientation.

Only the reader of the format that the first bytes name ever sees a file, and every limit is
checked on its header. What the pixels then mean is settled in ``data.images``.
"""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
import tifffile
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from spatialembed.errors import RESOURCE, SpatialEmbedError

_ORIENTATION_TAG = 0x0112
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError,
    ArithmeticError, zlib.error, struct.error, tifffile.TiffFileError,
)  # fmt: skip
"""What the decoders raise on broken bytes."""


class ImageWarning(UserWarning):
    """An image was read, but not the whole of it or not as it lay."""


class Decoded(NamedTuple):
    """What a decoder got out of a file."""

    pixels: np.ndarray  # (H, W) or (H, W, C), any type, upright
    orientation: int  # EXIF, 1 to 8, that was undone
    mode: str = ""  # Pillow's, "" where tifffile read it


# ---------------------------------------------------------------- which format a file has


def _sniff(head: bytes) -> str | None:
    """Format by the first 16 bytes; only these formats' readers ever see the file."""
    starts = {
        b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP",
        b"GIF87a": "GIF", b"GIF89a": "GIF",
        b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    }  # fmt: skip
    if head[:2] == b"BM" and head[6:10] != bytes(4):  # two letters that many a text begins with
        return None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return next((name for start, name in starts.items() if head.startswith(start)), None)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Yield the open file and its format: PNG, JPEG, TIFF, WebP, BMP or GIF, whatever its name.

    Raises SpatialEmbedError: not_found, not_a_file, unreadable, empty_file, not_an_image.
    """
    # Its status comes first: opening a FIFO would hang.
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise SpatialEmbedError("not_a_file", f"{path}: no regular file", "name an image file")
        file = open(path, "rb")  # noqa: SIM115  faults of opening only are caught here
    except FileNotFoundError:
        raise SpatialEmbedError("not_found", f"{path}: no such file", "check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise SpatialEmbedError(
            "unreadable", f"{path}: {error}", "check its permissions"
        ) from error
    with file:
        if status.st_size == 0:
            raise SpatialEmbedError("empty_file", f"{path}: zero bytes", "copy the file again")
        head = file.read(16)
        file.seek(0)
        if (form := _sniff(head)) is None:
            raise SpatialEmbedError(
                "not_an_image",
                f"{path}: the content is no PNG, JPEG, TIFF, WebP, BMP or GIF",
                "convert it to PNG or TIFF",
            )
        _check_suffix(path, form)
        yield file, form


def _check_suffix(path: Path, form: str) -> None:
    """Warn where the name says another format than the content: the content wins."""
    family = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP"}
    family |= {".png": "PNG", ".bmp": "BMP", ".gif": "GIF"}
    named = family.get(path.suffix.lower(), form)
    if named != form:
        _warn(f"{path}: named like {named}, read as {form}, which it is")


def _warn(message: str) -> None:
    warnings.warn(message, ImageWarning, stacklevel=2)


def _refuse_damaged(where: object, form: str, detail: object) -> NoReturn:
    raise SpatialEmbedError(
        "truncated", f"{where}: {form} cut short or damaged: {detail}", "copy or export it again"
    )


def _check_size(path: Path, width: int, height: int, pixel_bytes: int, max_pixels: int) -> None:
    """Refuse by the header alone: too many pixels, or more bytes than 8-bit RGB of as many."""
    if width < 1 or height < 1:
        raise SpatialEmbedError("empty_image", f"{path}: {width}x{height} px", "export it again")
    if width * height > max_pixels or width * height * pixel_bytes > 3 * max_pixels:
        _refuse_size(path, f"{width}x{height} px of {pixel_bytes} bytes", max_pixels)


def _refuse_size(path: Path, size: str, max_pixels: int) -> NoReturn:
    raise SpatialEmbedError(
        "too_large",
        f"{path}: {size}, the limit is {max_pixels} px of 3 bytes",
        "cut it into tiles, or raise max_pixels",
        RESOURCE,
    )


def _valid(orientation: object) -> int:
    """An EXIF orientation as 1 to 8; 1 for what is none."""
    return orientation if isinstance(orientation, int) and orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 2 mirrored, 3 by 180 degrees, 4 flipped, 5 to 8 axes swapped."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # (H, W, ...) -> (W, H, ...)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


# ---------------------------------------------------------------- Pillow: all formats but most TIFF

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}


def _read_pillow(path: Path, file: BinaryIO, form: str, max_pixels: int) -> Decoded:
    """Read with the one plugin of this format.

    It is called as ``Image.open(file, formats=[form])`` would call it; that itself only warns from
    89 to 179 million pixels, and takes more only where a global of Pillow is changed.
    """
    try:
        image = _PLUGINS[form](file)
    except Image.DecompressionBombError as error:
        _refuse_size(path, str(error), max_pixels)
    except _DAMAGED as error:
        _refuse_damaged(path, form, error)
    raw = str(image.tile[0][3]) if image.tile else ""
    deep = form == "PNG" and raw in ("RGB;16B", "RGBA;16B", "LA;16B")
    item = 2 if deep or image.mode.startswith("I;16") else 4 if image.mode in "IF" else 1
    _check_size(path, *image.size, len(image.getbands()) * item, max_pixels)
    try:
        if getattr(image, "is_animated", False):
            _warn(f"{path}: the first of several frames was read")
        image.load()
        orientation = _valid(image.getexif().get(_ORIENTATION_TAG))  # none left in a TIFF
        pixels = _deep_png(file, raw) if deep else np.asarray(_plain_mode(image))
    except Image.DecompressionBombError as error:  # a GIF frame larger than its header says
        _refuse_size(path, str(error), max_pixels)
    except _DAMAGED as error:
        _refuse_damaged(path, form, error)
    return Decoded(_upright(pixels, orientation), orientation, image.mode)


def _plain_mode(image: Image.Image) -> Image.Image:
    """The image in a mode whose array is what the rules of ``data.images`` say."""
    if image.mode in ("L", "RGB", "F") or image.mode.startswith("I"):
        return image
    if "transparency" in image.info:  # convert() would mix it in, or warn
        image = image.copy()
        del image.info["transparency"]
    # RGBA becomes RGB too: it keeps the stored colours.
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _deep_png(file: BinaryIO, raw: str) -> np.ndarray:
    """16-bit PNG of several channels, (H, W, C) or (H, W) uint16 without its alpha.

    Pillow keeps the high byte only. Its unpackers for the two byte orders differ in which byte of
    a big-endian sample they keep, so that two passes give both.
    """
    if raw == "LA;16B":  # four bytes a pixel, as RGBA has: L high, L low, alpha high, alpha low
        bytes_ = np.asarray(_repeat_png(file, "RGBA", "RGBA"))
        return bytes_[..., 0].astype(np.uint16) << 8 | bytes_[..., 1]
    mode = raw.removesuffix(";16B")
    high = np.asarray(_repeat_png(file, mode, f"{mode};16B"))[..., :3]
    low = np.asarray(_repeat_png(file, mode, f"{mode};16L"))[..., :3]
    return high.astype(np.uint16) << 8 | low


def _repeat_png(file: BinaryIO, mode: str, raw: str) -> PngImagePlugin.PngImageFile:
    """Decode the PNG once more, its rows unpacked as ``raw`` says."""
    file.seek(0)
    image = PngImagePlugin.PngImageFile(file)
    image._mode = mode
    image.tile = [tile._replace(args=raw) for tile in image.tile]
    image.load()
    return image


# ---------------------------------------------------------------- TIFF


def _read_tiff(path: Path, file: BinaryIO, max_pixels: int) -> Decoded:
    """Read with tifffile, which keeps every level, or Pillow, which has more codecs and colours."""
    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            # ImageJ writes stacks beyond 4 GB as one page that names the number of images.
            count = max(len(tiff.pages), int((tiff.imagej_metadata or {}).get("images", 1)))
            item = max(1, page.bitspersample // 8)
            pixel_bytes = page.samplesperpixel * item
            _check_size(path, page.imagewidth, page.imagelength, pixel_bytes, max_pixels)
            _check_segments(path, page, os.fstat(file.fileno()).st_size)
            if count > 1 or page.imagedepth > 1:
                _warn(f"{path}: the first of {max(count, page.imagedepth)} pages was read")
            orientation = _valid(page.tags.valueof(_ORIENTATION_TAG))
            wide = page.bitspersample > 8 or page.samplesperpixel > 4
            pixels = _page_pixels(path, page) if wide or page.photometric in (1, 2) else None
    except _DAMAGED as error:
        _refuse_damaged(path, "TIFF", error)
    if pixels is not None:
        return Decoded(_upright(pixels, orientation), orientation)
    file.seek(0)
    # Pillow turns TIFF upright by itself, and forgets that it did.
    return _read_pillow(path, file, "TIFF", max_pixels)._replace(orientation=orientation)


def _check_segments(path: Path, page: tifffile.TiffPage, size: int) -> None:
    """Every strip and tile must lie inside the file: tifffile would make a missing one zeros."""
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count == 0 or start + count > size:
            _refuse_damaged(path, "TIFF", f"pixels up to byte {start + count}, the file has {size}")


def _page_pixels(path: Path, page: tifffile.TiffPage) -> np.ndarray | None:
    """Pixels (H, W) or (H, W, C) of a page; None where only Pillow knows the codec."""
    try:
        pixels = page.asarray()
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
        if page.bitspersample > 8 and (page.samplesperpixel > 1 or page.bitspersample % 16):
            raise SpatialEmbedError(
                "unsupported_codec",
                f"{path}: TIFF samples of {page.bitspersample} bits as {page.compression.name}",
                "save 8 or 16 bits with deflate or uncompressed, or pip install imagecodecs",
            ) from error
        return None
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        pixels = np.moveaxis(pixels, 0, -1)  # (C, H, W) -> (H, W, C)
    pixels = pixels.reshape(page.imagelength, page.imagewidth, -1)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if page.photometric == 0 and pixels.dtype.kind == "u":  # white is zero
        pixels = np.iinfo(pixels.dtype).max - pixels
    colours = 3 if page.photometric == 2 else 1
    # Alpha is what is declared so (1, 2), or a fourth sample beside RGB that nothing is said of.
    alpha = page.extrasamples[0] in (1, 2) if page.extrasamples else colours == 3
    if pixels.shape[-1] == colours + 1 and alpha:
        pixels = pixels[..., :colours]
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


# ---------------------------------------------------------------- what callers use


def decode(path: Path, file: BinaryIO, form: str, max_pixels: int) -> Decoded:
    """Pixels of what ``opened(path)`` gave, upright.

    Raises SpatialEmbedError: truncated, empty_image, too_large (exit 5), unsupported_codec.
    """
    if form == "TIFF":
        return _read_tiff(path, file, max_pixels)
    return _read_pillow(path, file, form, max_pixels)


def from_pillow(image: Image.Image) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3), upright, of a PIL image, which stays as it is."""
    try:  # the pixels of an image that was only opened are read here
        pixels = np.asarray(_plain_mode(image))
        return _upright(pixels, _valid(image.getexif().get(_ORIENTATION_TAG)))
    except _DAMAGED as error:
        _refuse_damaged("PIL image", str(image.format), error)
