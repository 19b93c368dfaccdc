"""PNG row by row, into a file: for images that are too large to be decoded at once."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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
    file.seek(8)
    head = file.read(25)  # length, IHDR, 13 bytes, checksum
    if len(head) < 25 or head[4:8] != b"IHDR":
        refuse_damaged(path, "PNG", "its header is short")
    width, height, bits, colour, *_, interlaced = struct.unpack(">IIBBBBB", head[8:21])
    plain = bits in (8, 16) and colour in CHANNELS and not interlaced and width * height > 0
    if not plain or any(kind in SPECIAL for kind, _ in _chunks(file)):
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
