"""PNG: its chunks checked before Pillow sees them; or row by row into a file, where it is large."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from spatialembed.files import mapped_array
from spatialembed.images.checks import check_size, refuse_codec, refuse_damaged, refuse_size
from spatialembed.method.kernels.pixels import unfilter

START = b"\x89PNG\r\n\x1a\n"
PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
TURNED = {b"eXIf", b"zTXt", b"iTXt", b"tEXt"}
"""Chunks in which an orientation can stand."""
TURN_WORDS = (b"XML:com.adobe.xmp\0\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
"""Texts in which it does. A text of another kind is never unpacked."""
LONGEST_TEXT = 1 << 20
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type: grey, RGB, palette, grey and alpha, RGB and alpha."""
PALETTE = 3
BLOCK_BYTES = 1 << 24
"""Rows are unpacked in blocks of about so many bytes."""
DEFLATE = 1032
"""Bytes that one compressed byte can become at most."""
PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""Of an interlaced image: first column and row, steps of columns and rows."""


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk, read from the start; the file stands at its contents."""
    place = len(START)
    while True:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        place += 12 + length


def plain_png(path: object, file: BinaryIO, max_pixels: int) -> tuple[BinaryIO, bool]:
    """A PNG of its pixels and its orientation only, and whether it was an animation.

    Pillow checks no checksum of pixels, and unpacks every text and colour profile, however large.

    Raises SpatialEmbedError: truncated, too_large, empty_image, unsupported_codec.
    """
    kept, moves, room, palette_due, packed, needed = [START], False, 0, False, 0, 0
    size = file.seek(0, io.SEEK_END)
    for kind, length in _chunks(file):
        if length > size:  # room for as much would be made before it is read
            break
        pixels = kind in PIXELS
        if not pixels and not kind[0] & 0x20:  # an unknown one that must be known
            refuse_codec(path, f"PNG with a chunk {kind!r}, which is not in the standard")
        moves |= kind == b"acTL"
        if not (pixels or (kind in TURNED | {b"tRNS"} and length <= LONGEST_TEXT)):
            continue
        body = file.read(length + 4)
        if len(body) < length + 4:
            break
        sound = zlib.crc32(body[:-4], zlib.crc32(kind)) == int.from_bytes(body[-4:], "big")
        if not sound and pixels:
            refuse_damaged(path, "PNG", f"wrong checksum of a chunk {kind.decode('ascii')}")
        if kind == b"IHDR":
            room, needed = _room(path, body, max_pixels), raw_bytes(body)
            palette_due = body[9] == PALETTE
        elif kind == b"IDAT" and (packed := packed + length) > room:
            refuse_size(path, "PNG with more data than its pixels can take", max_pixels)
        if sound and (not kind.endswith(b"Xt") or body.startswith(TURN_WORDS)):
            kept += [struct.pack(">I4s", length, kind), body]
        palette_due &= kind != b"PLTE"
        if kind == b"IDAT" and palette_due:  # Pillow would take one of its own
            refuse_damaged(path, "PNG", "its palette is missing")
        if kind == b"IEND":
            _check_needed(path, needed, packed)
            return io.BytesIO(b"".join(kept)), moves
    refuse_damaged(path, "PNG", "it has no end")


def _room(path: object, header: bytes, max_pixels: int) -> int:
    """Bytes that the compressed pixels of this header can take at most; checks its size."""
    if len(header) < 17:
        refuse_damaged(path, "PNG", "its header is short")
    width, height, bits, colour = struct.unpack_from(">IIBB", header)
    pixel_bits = bits * CHANNELS.get(colour, 4)
    check_size(path, width, height, max(1, pixel_bits // 8), max_pixels)
    return 2 * height * (width * pixel_bits // 8 + 2) + (1 << 20)


def _check_needed(path: object, needed: int, packed: int) -> None:
    """Before room is made for pixels: whether so many bytes can be so many unpacked ones."""
    if needed > DEFLATE * packed:
        refuse_damaged(path, "PNG", f"{packed} bytes, its pixels need {needed} unpacked ones")


def raw_bytes(header: bytes) -> int:
    """Bytes of the unpacked pixels, filters included, of the contents of IHDR."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", header)
    pixel_bits = bits * CHANNELS.get(colour, 4)
    total = 0
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // across), -((top - height) // down)
        total += max(0, rows) * (-(-columns * pixel_bits // 8) + 1) if columns > 0 else 0
    return total


def refuse_missing_rows(path: object, file: BinaryIO) -> None:
    """Refuse a PNG whose compressed pixels end early, as such: Pillow leaves those rows zero.

    Raises SpatialEmbedError ``truncated``.
    """
    file.seek(len(START) + 8)
    needed, box, found = raw_bytes(file.read(13)), zlib.decompressobj(), 0
    for packed in _packed(path, file):
        while packed and found < needed:
            found += len(box.decompress(packed, BLOCK_BYTES))
            packed = box.unconsumed_tail  # noqa: PLW2901
    if found < needed:
        refuse_damaged(path, "PNG", f"{found} of {needed} bytes of pixels")


# ---------------------------------------------------------------- row by row


def stream_png(path: Path, file: BinaryIO, store: Path) -> np.ndarray | None:
    """The pixels of a PNG, (H, W) or (H, W, 3), alpha dropped, mapped from the new file ``store``.

    None for those it does not read: interlaced ones, palettes, fewer than 8 bits, animations and,
    since they may be turned, images with texts or EXIF data.

    Raises SpatialEmbedError: truncated; disk_full (exit 5).
    """
    file.seek(len(START))
    head = file.read(25)  # length, IHDR, 13 bytes, checksum
    if len(head) < 25 or head[4:8] != b"IHDR":
        refuse_damaged(path, "PNG", "its header is short")
    width, height, bits, colour, *_, interlaced = struct.unpack(">IIBBBBB", head[8:21])
    plain = bits in (8, 16) and colour in CHANNELS.keys() - {PALETTE} and not interlaced
    if not (plain and width and height) or any(k in TURNED | {b"acTL"} for k, _ in _chunks(file)):
        return None
    samples, dtype = CHANNELS[colour], np.dtype(f"u{bits // 8}")
    kept = samples if samples % 2 else samples - 1  # without alpha
    pixels = mapped_array(store, dtype, (height, width, kept))
    done, step = 0, samples * dtype.itemsize
    for rows in _rows(path, file, height, step * width, step):
        block = rows.reshape(len(rows), width, -1).view(dtype.newbyteorder(">"))
        pixels[done : done + len(rows)] = block[..., :kept]
        done += len(rows)
    if done < height:
        refuse_damaged(path, "PNG", f"{done} of {height} rows")
    return pixels[..., 0] if kept == 1 else pixels


def _rows(path: Path, file: BinaryIO, left: int, width: int, step: int) -> Iterator[np.ndarray]:
    """Blocks of the ``left`` rows (n, width) uint8 of bytes, ``step`` a pixel, filters undone."""
    most = max(1, BLOCK_BYTES // (width + 1))
    before, box, waiting = np.zeros(width, np.uint8), zlib.decompressobj(), bytearray()
    for packed in _packed(path, file):
        while packed and left:
            block_bytes = min(most, left) * (width + 1)
            try:
                waiting += box.decompress(packed, block_bytes - len(waiting))
            except zlib.error as error:
                refuse_damaged(path, "PNG", error)
            packed = box.unconsumed_tail  # noqa: PLW2901
            if len(waiting) == block_bytes:
                rows = np.frombuffer(waiting, np.uint8).reshape(-1, width + 1)  # may be written
                if unfilter(rows, before, step) >= 0:
                    refuse_damaged(path, "PNG", "a filter that does not exist")
                before = rows[-1, 1:].copy()
                left -= len(rows)
                waiting = bytearray()
                yield rows[:, 1:]


def _packed(path: object, file: BinaryIO) -> Iterator[bytes]:
    """The compressed pixels piece by piece, each chunk held to its checksum."""
    for kind, length in _chunks(file):
        if kind != b"IDAT":
            continue
        check = zlib.crc32(kind)
        while length and (piece := file.read(min(length, 1 << 20))):
            check, length = zlib.crc32(piece, check), length - len(piece)  # noqa: PLW2901
            yield piece
        if file.read(4) != check.to_bytes(4, "big"):
            refuse_damaged(path, "PNG", "wrong checksum of a chunk IDAT")
