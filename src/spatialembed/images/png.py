"""PNG row by row: from the top as far as is needed, or into a file where the whole is too large."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from spatialembed.files import mapped_array
from spatialembed.images.checks import refuse_damaged
from spatialembed.method.kernels.png_filters import unfilter

BLOCK_BYTES = 1 << 24
"""Rows are unpacked in blocks of about so many bytes."""
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""By colour type: grey, RGB, grey and alpha, RGB and alpha."""
SPECIAL = (b"acTL", b"eXIf", b"zTXt", b"iTXt", b"tEXt")
"""An animation; where an orientation may be: such images are left to the usual reader."""


def stream_png(path: Path, file: BinaryIO, store: Path) -> np.ndarray | None:
    """The pixels of a PNG, (H, W) or (H, W, 3), alpha dropped, mapped from the new file ``store``.

    None for what it does not read: interlaced ones, palettes, fewer than 8 bits, animations and,
    since they may be turned, images with texts or EXIF data.

    Raises SpatialEmbedError: truncated; disk_full (exit 5).
    """
    if (head := _plain_header(path, file)) is None:
        return None
    pixels = mapped_array(store, head.dtype, head.shape(head.height))
    _fill(pixels, path, file, head)
    return pixels


def top_rows(path: Path, file: BinaryIO, count: int) -> tuple[np.ndarray, int] | None:
    """The first ``count`` rows of a PNG, (n, W) or (n, W, 3), alpha dropped, and its height.

    As ``stream_png`` reads it, None for what that does not read. All chunks are held to their
    checksums, but what comes after these rows is not unpacked.

    Raises SpatialEmbedError: truncated.
    """
    if (head := _plain_header(path, file)) is None:
        return None
    pixels = np.empty(head.shape(min(count, head.height)), head.dtype)
    _fill(pixels, path, file, head)
    return pixels, head.height


class _Header(NamedTuple):
    width: int
    height: int
    dtype: np.dtype
    samples: int  # of a pixel, as stored

    @property
    def kept(self) -> int:
        """Samples without alpha."""
        return self.samples if self.samples % 2 else self.samples - 1

    def shape(self, rows: int) -> tuple[int, ...]:
        """Of the array of so many rows."""
        return (rows, self.width) if self.kept == 1 else (rows, self.width, self.kept)


def _plain_header(path: Path, file: BinaryIO) -> _Header | None:
    """None for a PNG that is left to the usual reader."""
    file.seek(8)
    head = file.read(25)  # length, IHDR, 13 bytes, checksum
    if len(head) < 25 or head[4:8] != b"IHDR":
        refuse_damaged(path, "PNG", "its header is short")
    width, height, bits, colour, *_, interlaced = struct.unpack(">IIBBBBB", head[8:21])
    plain = bits in (8, 16) and colour in CHANNELS and not interlaced and width * height > 0
    if not plain or any(kind in SPECIAL for kind, _ in _chunks(file)):
        return None
    return _Header(width, height, np.dtype(f"u{bits // 8}"), CHANNELS[colour])


def _fill(pixels: np.ndarray, path: Path, file: BinaryIO, head: _Header) -> None:
    """The first rows of a PNG into (n, W) or (n, W, C)."""
    step = head.samples * head.dtype.itemsize
    done = 0
    for rows in _rows(path, file, len(pixels), step * head.width, step):
        block = rows.reshape(len(rows), head.width, -1).view(head.dtype.newbyteorder(">"))
        pixels[done : done + len(rows)] = (
            block[..., 0] if head.kept == 1 else block[..., : head.kept]
        )
        done += len(rows)
    if done < len(pixels):
        refuse_damaged(path, "PNG", f"{done} of {head.height} rows")


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk, read from the start; the file stands at its contents."""
    place = 8
    while True:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        place += 12 + length


def _rows(path: Path, file: BinaryIO, height: int, width: int, step: int) -> Iterator[np.ndarray]:
    """Blocks of whole rows (n, width) uint8 of bytes, ``step`` a pixel, their filters undone."""
    most = max(1, BLOCK_BYTES // (width + 1))
    before, box, waiting = np.zeros(width, np.uint8), zlib.decompressobj(), bytearray()
    left = height
    for packed in _packed(path, file):
        while packed and left:
            room = min(most, left) * (width + 1) - len(waiting)
            try:
                waiting += box.decompress(packed, room)
            except zlib.error as error:
                refuse_damaged(path, "PNG", error)
            packed = box.unconsumed_tail  # noqa: PLW2901
            if len(waiting) == min(most, left) * (width + 1):
                rows = np.frombuffer(waiting, np.uint8).reshape(-1, width + 1)  # may be written
                if unfilter(rows, before, step) >= 0:
                    refuse_damaged(path, "PNG", "a filter that does not exist")
                before = rows[-1, 1:].copy()
                left -= len(rows)
                waiting = bytearray()
                yield rows[:, 1:]


def _packed(path: Path, file: BinaryIO) -> Iterator[bytes]:
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
