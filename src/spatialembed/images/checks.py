"""What is checked of an image file before a decoder sees it, and how it is refused.

Decoders believe headers: they allocate what a header claims, unpack what a text chunk holds, and
fill up what is missing. So sizes, chunks and checksums are looked at here first.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, NoReturn

from spatialembed.errors import RESOURCE, SpatialEmbedError


class ImageWarning(UserWarning):
    """An image was read, but not the whole of it or not as it lay."""


def warn(message: str) -> None:
    """Warn of how an image was read."""
    warnings.warn(message, ImageWarning, stacklevel=2)


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


def check_size(where: object, width: int, height: int, pixel_bytes: int, max_pixels: int) -> None:
    """Refuse by the header alone: too many pixels, or more bytes than 8-bit RGB of as many."""
    if width < 1 or height < 1:
        raise SpatialEmbedError("empty_image", f"{where}: {height}x{width} px", "export it again")
    if width * height > max_pixels or width * height * pixel_bytes > 3 * max_pixels:
        refuse_size(where, f"{height}x{width} px of {pixel_bytes} bytes", max_pixels)


# ---------------------------------------------------------------- PNG

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_TURN_WORDS = (b"XML:com.adobe.xmp\0\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
"""Texts in which an orientation can stand. A text of another kind is never unpacked."""
_LONGEST_TEXT = 1 << 20


def plain_png(path: Path, file: BinaryIO, max_pixels: int) -> tuple[BinaryIO, bool]:
    """A PNG of its pixels and its orientation only, and whether it was an animation.

    Pillow checks no checksum of pixels, and unpacks every text and colour profile, however large.

    Raises SpatialEmbedError: truncated, too_large, empty_image, unsupported_codec.
    """
    kept, moves, room, palette_due = [_PNG_START], False, 0, False
    size = file.seek(0, io.SEEK_END)
    file.seek(len(_PNG_START))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if length > size:  # room for as much would be made before it is read
            break
        if kind not in _PIXEL_CHUNKS and not (kind[0] & 0x20):  # an unknown one that must be known
            refuse_codec(path, f"PNG with a chunk {kind!r}, which is not in the standard")
        if kind == b"acTL":
            moves = True
        if not _is_kept(kind, length):
            file.seek(length + 4, io.SEEK_CUR)
            continue
        body = file.read(length + 4)
        if len(body) < length + 4:
            break
        sound = zlib.crc32(body[:-4], zlib.crc32(kind)) == int.from_bytes(body[-4:], "big")
        if not sound and kind in _PIXEL_CHUNKS:
            refuse_damaged(path, "PNG", f"wrong checksum of a chunk {kind.decode('ascii')}")
        if kind == b"IHDR":
            room = _png_room(path, body, max_pixels)
            palette_due = body[9] == 3
        elif kind == b"IDAT" and (room := room - length) < 0:
            refuse_size(path, "PNG with more data than its pixels can take", max_pixels)
        if sound and ((kind[1:] != b"TXt" and kind[1:] != b"EXt") or body.startswith(_TURN_WORDS)):
            kept += [head, body]
        palette_due &= kind != b"PLTE"
        if kind == b"IDAT" and palette_due:  # Pillow would take one of its own
            refuse_damaged(path, "PNG", "its palette is missing")
        if kind == b"IEND":
            return io.BytesIO(b"".join(kept)), moves
    refuse_damaged(path, "PNG", "it has no end")


def _is_kept(kind: bytes, length: int) -> bool:
    if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tRNS"):
        return length <= _LONGEST_TEXT
    return kind in _PIXEL_CHUNKS


def _png_room(path: Path, header: bytes, max_pixels: int) -> int:
    """Bytes that the compressed pixels of this header can take at most; checks its size."""
    if len(header) < 17:
        refuse_damaged(path, "PNG", "its header is short")
    width, height, bits, colour = struct.unpack_from(">IIBB", header)
    pixel_bits = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 4)
    check_size(path, width, height, max(1, pixel_bits // 8), max_pixels)
    return 2 * height * (width * pixel_bits // 8 + 2) + (1 << 20)


# ---------------------------------------------------------------- WebP


def whole_webp(path: Path, file: BinaryIO, size: int, max_pixels: int) -> BinaryIO:
    """The WebP alone, without what lies behind it: its decoder reads and allocates at once.

    size: bytes of the file. Raises SpatialEmbedError: truncated, too_large, empty_image.
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


# ---------------------------------------------------------------- JPEG


def stretched_jpeg(data: bytes) -> bytes | None:
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
