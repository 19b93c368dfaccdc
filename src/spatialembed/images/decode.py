"""Image bytes to pixels as they are stored: which format, which reader, which orientation.

Only the reader of the format that the first bytes name ever sees a file, and every limit is
checked on its header. What the pixels then mean is settled in ``images.read``.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
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

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.channels import Channel, pick
from spatialembed.images.checks import check_size, refuse_codec, refuse_damaged, refuse_size, warn
from spatialembed.images.png import plain_png, refuse_missing_rows
from spatialembed.images.tiff import (
    DAMAGED,
    ORIENTATION_TAG,
    Decoded,
    read_tiff,
    valid_orientation,
)
from spatialembed.images.tiff_channels import read_channel

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
def opened(path: Path, *, quiet: bool = False) -> Iterator[tuple[BinaryIO, str]]:
    """Yield the open file and its format: PNG, JPEG, TIFF, WebP, BMP or GIF, whatever its name.

    Warns where the name suggests another one, unless ``quiet``: for those who only measure a file
    that somebody else reads.

    Raises SpatialEmbedError: not_found, not_a_file, unreadable, empty_file, not_an_image.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # asked first: opening a FIFO would hang
            raise SpatialEmbedError("not_a_file", f"{path}: not a plain file", "name an image file")
        file = open(path, "rb")  # noqa: SIM115  faults of opening only are caught here
        head = file.read(16)
    except FileNotFoundError:
        raise SpatialEmbedError("not_found", f"{path}: no such file", "check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        remedy = "check its permissions, or copy it again"
        raise SpatialEmbedError("unreadable", f"{path}: {error}", remedy) from error
    with file:
        if not head:
            raise SpatialEmbedError("empty_file", f"{path}: zero bytes", "copy the file again")
        file.seek(0)
        if (form := _sniff(head)) is None:
            raise SpatialEmbedError(
                "not_an_image",
                f"{path}: the content is not PNG, JPEG, TIFF, WebP, BMP or GIF",
                "convert it to PNG or TIFF",
            )
        if not quiet:
            _check_suffix(path, form)
        yield file, form


def read_bytes(path: Path) -> bytes:
    """Content of an image file. Raises as ``opened`` does: a pipe would be read for ever."""
    with opened(path) as (file, _):
        return file.read()


def _check_suffix(path: Path, form: str) -> None:
    """Warn where the name suggests another format than the content: the content wins."""
    family = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP"}
    family |= {".png": "PNG", ".bmp": "BMP", ".gif": "GIF"}
    named = family.get(path.suffix.lower(), form)
    if named != form:
        warn(f"{path}: named like {named}, read as {form}, its actual format")


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 2 mirrored, 3 by 180 degrees, 4 flipped, 5 to 8 axes swapped."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # (H, W, ...) -> (W, H, ...)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


# ---------------------------------------------------------------- Pillow: all formats but TIFF

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_DEEP = ("RGB;16B", "RGBA;16B", "LA;16B")


def _read_pillow(
    path: Path,
    file: BinaryIO,
    form: str,
    max_pixels: int,
    *,
    as_ids: bool = False,
) -> Decoded:
    """Read with the one plugin of this format.

    It is called as ``Image.open(file, formats=[form])`` would call it; that itself only warns from
    89 to 179 million pixels, and takes more only where a global of Pillow is changed.
    """
    moves = False
    if form == "PNG":
        file, moves = plain_png(path, file, max_pixels)
    elif form == "WebP":
        file = _whole_webp(path, file, os.fstat(file.fileno()).st_size, max_pixels)
    image = _open_pillow(path, file, form, max_pixels)
    raw = str(image.tile[0].args) if form == "PNG" and image.tile else ""
    _check_pillow_size(path, image, max_pixels, deep=raw in _DEEP)
    try:
        if moves or getattr(image, "is_animated", False):  # of a GIF it looks for a second frame
            warn(f"{path}: the first of several frames was read")
        image.load()
        if form == "PNG" and _may_lack_rows(image):
            refuse_missing_rows(path, file)
        orientation = valid_orientation(image.getexif().get(ORIENTATION_TAG))
        pixels = _deep_png(file) if raw in _DEEP else _plain_array(image, as_ids)
        if form == "JPEG":
            _refuse_grey_end(path, file, image)
    except Image.DecompressionBombError as error:  # a GIF frame larger than in its header
        refuse_size(path, str(error), max_pixels)
    except DAMAGED as error:
        refuse_damaged(path, form, error)
    return Decoded(upright(pixels, orientation), orientation, {"L;2": 2, "L;4": 4}.get(raw, 8))


def png_alpha(where: object, data: bytes, max_pixels: int) -> np.ndarray:
    """Opacity (H, W) uint8 of a PNG in memory, 255 where it states none.

    Raises SpatialEmbedError: truncated, empty_image, too_large (exit 5), unsupported_codec.
    """
    file, _ = plain_png(where, io.BytesIO(data), max_pixels)
    try:
        image = PngImagePlugin.PngImageFile(file)
        image.load()
        if _may_lack_rows(image):
            refuse_missing_rows(where, file)
        return np.asarray(image.convert("RGBA"))[..., 3]
    except DAMAGED as error:
        refuse_damaged(where, "PNG", error)


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether its last row is zero, as it is where its data end early, or it has no last one."""
    last = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get("interlace")) or not np.asarray(last).any()


def _check_pillow_size(
    where: object, image: Image.Image, max_pixels: int, *, deep: bool = False
) -> None:
    """Of an image that is not yet loaded; deep: its samples have 16 bits, whatever its mode."""
    item = 2 if deep or image.mode.startswith("I;16") else 4 if image.mode in "IF" else 1
    check_size(where, *image.size, len(image.getbands()) * item, max_pixels)


def _open_pillow(path: Path, file: BinaryIO, form: str, max_pixels: int) -> ImageFile.ImageFile:
    try:
        return _PLUGINS[form](file)
    except Image.DecompressionBombError as error:
        refuse_size(path, str(error), max_pixels)
    except DAMAGED as error:
        if "annot handle" in str(error) or "nsupported" in str(error):
            refuse_codec(path, f"{form}: {error}")
        refuse_damaged(path, form, error)


def _plain_array(image: Image.Image, as_ids: bool = False) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3) of an image of any mode, by the rules of ``images.read``.

    as_ids: of a palette the numbers, not the colours.
    """
    mode = image.mode
    if mode in ("L", "RGB", "F") or mode.startswith("I") or (as_ids and mode == "P"):
        return np.asarray(image)
    if mode in ("LA", "La"):
        return np.asarray(image)[..., 0]
    if mode in ("RGBA", "RGBa", "RGBX"):  # the stored colours
        return np.asarray(image)[..., :3]
    if "transparency" in image.info:  # convert() would mix it in, or warn
        image = image.copy()
        del image.info["transparency"]
    return np.asarray(image.convert("L" if mode == "1" else "RGB"))


def _deep_png(file: BinaryIO) -> np.ndarray:
    """16-bit PNG of several channels, (H, W, 3) or (H, W) uint16 without its alpha.

    Pillow keeps the high byte only.
    """
    file.seek(0)
    pixels = imagecodecs.png_decode(file.read())
    return pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0]


# ---------------------------------------------------------------- what libraries do not check


def _whole_webp(path: Path, file: BinaryIO, size: int, max_pixels: int) -> BinaryIO:
    """The WebP alone, without what lies behind it: its decoder reads and allocates at once.

    size: bytes of the file.
    """
    head = file.read(30)
    length = 8 + int.from_bytes(head[4:8], "little")
    if length > size or len(head) < 30:
        refuse_damaged(path, "WebP", f"{size} of {length} bytes")
    kind, body = head[12:16], head[20:]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
    check_size(path, width, height, 3, max_pixels)
    if length > 4 * width * height + (1 << 24):
        refuse_size(path, f"WebP of {length} bytes for {height}x{width} px", max_pixels)
    file.seek(0)
    return io.BytesIO(file.read(length))


def _stretched_jpeg(data: bytes) -> bytes | None:
    """The JPEG with bytes without sense before its end; None where it has no end.

    libjpeg fills missing data before the end marker with grey, and gives no sign of it.
    In a whole JPEG the added bytes stand behind the last block and change nothing.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and len(data) > at + 4:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        at += 1 if marker == 0xFF else 2 + length
        if marker == 0xDA:
            break
    end = data.find(b"\xff\xd9", at)
    return None if end < 0 else data[:end] + b"\x55" * 4096 + data[end:]


def _refuse_grey_end(path: Path, file: BinaryIO, image: Image.Image) -> None:
    """Refuse a JPEG that was cut and closed again: libjpeg makes its missing blocks mid-grey."""
    last = np.asarray(image.getpixel((image.width - 1, image.height - 1)))
    if np.abs(last - 128).max() > 4:  # colours blend with their neighbours
        return
    file.seek(0)
    if (data := _stretched_jpeg(file.read())) is None:
        return
    other = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    if not np.array_equal(np.asarray(other), np.asarray(image)):
        refuse_damaged(path, "JPEG", "its end is missing")


# ---------------------------------------------------------------- what callers use


def decode(
    path: Path,
    file: BinaryIO,
    form: str,
    max_pixels: int,
    page: int | None = None,
    *,
    as_ids: bool = False,
    channel: Channel | None = None,
) -> Decoded:
    """Pixels of what ``opened(path)`` gave, upright; of a TIFF the page of that index.

    as_ids: of a mask: the numbers of a palette are wanted, and several pages are refused.
    channel: alone is read.

    Raises SpatialEmbedError: truncated, empty_image, too_large (exit 5), unsupported_codec,
    bad_channels, several_masks, no_channel.
    """
    if form != "TIFF":
        found = _read_pillow(path, file, form, max_pixels, as_ids=as_ids)
        return found._replace(pixels=pick(path, found.pixels, channel))
    asked = None
    if channel is not None:
        asked = read_channel(path, file, max_pixels, page, channel)
    found = asked or read_tiff(path, file, max_pixels, page, as_ids=as_ids)
    return found._replace(pixels=upright(found.pixels, found.orientation))


def header_of(path: Path, file: BinaryIO, form: str) -> tuple[int, int, str]:
    """Stored height and width, and Pillow's mode, of what ``opened(path)`` gave but a TIFF.

    Raises SpatialEmbedError: truncated, too_large (exit 5), unsupported_codec.
    """
    image = _open_pillow(path, file, form, 0)
    return image.height, image.width, image.mode


def from_pillow(image: Image.Image, max_pixels: int) -> Decoded:
    """Pixels (H, W) or (H, W, 3), upright, of a PIL image, which stays as it is.

    Raises SpatialEmbedError: empty_image, too_large (exit 5), bad_image, truncated.
    """
    where = "PIL image"
    _check_pillow_size(where, image, max_pixels)
    if image.mode == "LAB":
        raise SpatialEmbedError("bad_image", f"{where}: mode LAB", "convert it to RGB")
    try:
        orientation = valid_orientation(image.getexif().get(ORIENTATION_TAG))
        _load(image)
        pixels = _plain_array(image)
        # A TIFF turns itself when it is read, and then no longer has the tag.
        left = valid_orientation(image.getexif().get(ORIENTATION_TAG))
    except DAMAGED as error:
        refuse_damaged(where, str(image.format), error)
    return Decoded(upright(pixels, left), orientation)


def _load(image: Image.Image) -> None:
    """Read the pixels of an image that was only opened.

    Pillow (13.0) maps an uncompressed TIFF with the sides of the upright image, not those of the
    stored one, and gives scrambled pixels. It maps none without a name.
    """
    name = getattr(image, "filename", "")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image.filename = ""
    try:
        image.load()
    finally:
        if name:
            image.filename = name  # type: ignore[attr-defined]
