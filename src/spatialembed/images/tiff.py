"""TIFF to pixels as they are stored, by tifffile, which keeps every level of every type.

What it has no codec for goes to Pillow (``images.decode``), as far as that keeps the levels too:
8 bits a sample, or one sample of 16 or 32.
"""

from __future__ import annotations

import lzma
import math
import os
import struct
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.checks import check_size, refuse_codec, refuse_damaged, refuse_size, warn

DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError,
    ArithmeticError, RuntimeError, zlib.error, lzma.LZMAError, struct.error, tifffile.TiffFileError,
)  # fmt: skip
"""What the decoders raise on broken bytes (those of imagecodecs: RuntimeError)."""

COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Samples of a pixel by photometric interpretation: grey (white is 0, black is 0), RGB, palette,
CMYK, YCbCr."""
WHITE_IS_ZERO = 0
TO_PILLOW = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000}
"""What Pillow's libtiff knows: none, CCITT, LZW, JPEG, deflate, PackBits, LZMA, Zstandard."""
STRUCTURE = {
    256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338,
    339,
}  # fmt: skip
"""Tags that say how the pixels lie."""
INSTALL = "save with deflate or uncompressed, or pip install 'spatialembed[tiff]'"
_ORIENTATION_TAG = 0x0112


class Read(NamedTuple):
    """What tifffile knows of a page."""

    pixels: np.ndarray | None  # (H, W) or (H, W, C) as it lies; None: Pillow has to read it
    place: int  # of the page among all in the file
    orientation: int  # EXIF, 1 to 8
    bits: int  # a sample
    inverted: bool  # white is 0 in the file


def valid_orientation(orientation: object) -> int:
    """An EXIF orientation as 1 to 8; 1 for any other value."""
    return orientation if isinstance(orientation, int) and orientation in range(1, 9) else 1


def read_tiff(
    path: Path, file: BinaryIO, max_pixels: int, index: int | None, *, as_ids: bool = False
) -> Read:
    """Read the page ``index`` of all in the file, or the first whole one, with a warning of others.

    as_ids: of a mask: the numbers of a palette are wanted, and several pages are refused.

    Raises SpatialEmbedError: truncated, empty_image, too_large, bad_channels, unsupported_codec,
    several_masks.
    """
    try:
        with tifffile.TiffFile(file) as tiff:
            place = next(whole_pages(tiff), 0) if index is None else index
            page = tiff.pages[place].aspage()
            check_tags(path, page)
            check_colours(path, page)
            check_segments(path, page, os.fstat(file.fileno()).st_size, max_pixels)
            if index is None and (count := _images(tiff)) > 1:
                if as_ids:
                    what = f"{path}: a mask of {count} pages: the first alone is not the truth"
                    remedy = "save one page in which each object has its own id"
                    raise SpatialEmbedError("several_masks", what, remedy)
                warn(f"{path}: the first of {count} pages was read (predict takes --pages all)")
            orientation = valid_orientation(page.tags.valueof(_ORIENTATION_TAG))
            numbers = (0, 1, 2, 3) if as_ids else (0, 1, 2)  # 3: a palette
            pixels = _page_pixels(path, page) if page.photometric in numbers else None
            inverted = page.photometric == WHITE_IS_ZERO
            return Read(pixels, place, orientation, page.bitspersample, inverted)
    except DAMAGED as error:
        refuse_damaged(path, "TIFF", error)


def page_numbers(path: Path, file: BinaryIO) -> list[int]:
    """Indices of the images of a TIFF among its pages: no thumbnails, no masks, none reduced.

    Raises SpatialEmbedError: truncated, unsupported_codec (several images stored as one page).
    """
    try:
        with tifffile.TiffFile(file) as tiff:
            pages = list(whole_pages(tiff)) or [0]
            if (inside := _images_in_one(tiff)) > len(pages):
                what = f"{inside} images stored as {len(pages)} pages, as ImageJ and volumes do"
                refuse_codec(path, what, "save each image as a page of its own")
            return pages
    except DAMAGED as error:
        refuse_damaged(path, "TIFF", error)


def whole_pages(tiff: tifffile.TiffFile) -> Iterator[int]:
    """Indices of the pages that are neither reduced copies of another nor masks, one by one."""
    seen: set[int] = set()
    for place, listed in enumerate(tiff.pages):
        page = listed.aspage()
        if page.offset in seen:  # the list of pages runs in a circle
            return
        seen.add(page.offset)
        if not page.subfiletype & 5:
            yield place


def _images(tiff: tifffile.TiffFile) -> int:
    """Number of images; pages are counted only if a second one is no reduced copy of the first."""
    whole = whole_pages(tiff)
    next(whole, None)
    return max(_images_in_one(tiff), 1 if next(whole, None) is None else len(tiff.pages))


def _images_in_one(tiff: tifffile.TiffFile) -> int:
    """ImageJ writes stacks beyond 4 GB as one page that names the number of images."""
    images = int((tiff.imagej_metadata or {}).get("images", 1))
    return max(tiff.pages.first.imagedepth, images)


# ---------------------------------------------------------------- checks of the header


def check_tags(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse a page whose header names a tag that could not be read.

    tifffile leaves such a tag out, and its default gives other pixels.
    Raises SpatialEmbedError: truncated.
    """
    how, file = page.parent.tiff, page.parent.filehandle
    file.seek(page.offset)
    (count,) = struct.unpack(how.tagnoformat, file.read(how.tagnosize))
    entries = file.read(count * how.tagsize)
    named = {
        struct.unpack_from(f"{how.byteorder}H", entries, i)[0]
        for i in range(0, len(entries) - 1, how.tagsize)
    }
    if lost := sorted(code for code in named & STRUCTURE if code not in page.tags):
        refuse_damaged(path, "TIFF", f"its tags {lost} cannot be read")


def check_colours(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse what is neither grey nor colour, or of a kind that no rule covers.

    Raises SpatialEmbedError: bad_channels, unsupported_codec.
    """
    colours = COLOURS.get(page.photometric)
    bits = page.bitspersample
    plain = isinstance(bits, int) and (bits in (1, 2, 4) or bits >= 8)
    if colours is None or not plain or (bits > 8 and page.photometric > 2):
        name = getattr(page.photometric, "name", page.photometric)
        refuse_codec(path, f"TIFF colours {name} of {bits} bits", "save it as grey or RGB")
    if page.photometric == WHITE_IS_ZERO and page.sampleformat not in (1, 4):
        refuse_codec(path, "TIFF whose white is 0, with signs", "save it with black as 0")
    samples = page.samplesperpixel
    # Alpha is a sample declared so (1, 2), or an undeclared fourth one beside RGB.
    alpha = page.extrasamples[0] in (1, 2) if page.extrasamples else page.photometric == 2
    if samples != colours and not (samples == colours + 1 and alpha):
        raise SpatialEmbedError(
            "bad_channels",
            f"{path}: {samples} channels",
            "keep one (grey) or three (RGB), and save again",
        )


def check_segments(path: Path, page: tifffile.TiffPage, size: int, max_pixels: int) -> None:
    """Strips and tiles must be of a sane size, all there, and inside the file of ``size`` bytes.

    tifffile would make zeros of a missing one. Raises SpatialEmbedError: empty_image, too_large,
    truncated.
    """
    item = max(1, page.bitspersample // 8)
    pixel_bytes = page.samplesperpixel * item
    check_size(path, page.imagewidth, page.imagelength, pixel_bytes, max_pixels)
    chunk = math.prod(page.chunks) * item
    if chunk > 3 * max_pixels:
        refuse_size(path, f"TIFF tiles of {chunk} bytes", max_pixels)
    counts, needed = page.databytecounts, math.prod(page.chunked)
    if min(len(page.dataoffsets), len(counts)) < needed:
        refuse_damaged(path, "TIFF", f"{len(counts)} of {needed} strips or tiles")
    for start, count in zip(page.dataoffsets, counts, strict=False):
        if count == 0 or start + count > size:
            refuse_damaged(path, "TIFF", f"pixels up to byte {start + count}, the file has {size}")
    raw = (page.imagewidth * page.bitspersample * page.samplesperpixel // 8) * page.imagelength
    if page.compression == 1 and sum(counts) < raw and not page.is_subsampled:
        refuse_damaged(path, "TIFF", f"{sum(counts)} of {raw} bytes of pixels")


# ---------------------------------------------------------------- pixels


def _page_pixels(path: Path, page: tifffile.TiffPage) -> np.ndarray | None:
    """Pixels (H, W) or (H, W, C) of a page without alpha; None where only Pillow has the codec."""
    bare = find_spec("imagecodecs") is None
    if bare and page.compression == 50000:  # in tifffile it is Python's own from 3.14 on, no limit
        _check_pillow_can(path, page)
        return None
    if bare:
        _check_expansion(path, page)
    try:
        pixels = page.asarray(squeeze=False)  # (S, D, H, W, C)
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
        _check_pillow_can(path, page)
        return None
    pixels = pixels[:, 0]  # the first of a volume
    pixels = np.moveaxis(pixels, 0, -1)[..., 0, :] if len(pixels) > 1 else pixels[0]  # (H, W, C)
    if page.bitspersample < 8:
        pixels = pixels.astype(np.uint8) * np.uint8(255 // (2**page.bitspersample - 1))
    if page.photometric == WHITE_IS_ZERO:
        pixels = invert(pixels, page.bitspersample)
    pixels = pixels[..., : COLOURS[page.photometric]]
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def invert(pixels: np.ndarray, bits: int) -> np.ndarray:
    """White for black, and back; fewer than 8 bits lie stretched to 0..255."""
    return pixels.dtype.type(255 if bits < 8 else 2**bits - 1) - pixels


def _check_pillow_can(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse what Pillow would read wrongly or not at all."""
    grey = page.samplesperpixel == 1 and page.photometric == 1
    sample = (page.sampleformat, page.bitspersample)  # format 1 unsigned, 2 signed, 3 float
    right = (page.sampleformat == 1 and page.bitspersample <= 8) or (
        grey and sample in ((1, 16), (2, 16), (2, 32), (3, 32))
    )
    if not right or page.compression not in TO_PILLOW:
        name = getattr(page.compression, "name", page.compression)
        what = f"TIFF samples of {page.bitspersample} bits as {name}"
        refuse_codec(path, what, INSTALL)


def _check_expansion(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse a strip or tile that unpacks to far more than its pixels, without unpacking it all.

    Without imagecodecs tifffile unpacks without limit: a thousandfold by deflate, more by LZMA.
    """
    if page.compression not in (8, 32946, 34925):
        return
    most = 2 * math.prod(page.chunks) * max(1, page.bitspersample // 8) + (1 << 20)
    ratio = 10_000 if page.compression == 34925 else 1032
    file = page.parent.filehandle
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if count * ratio > max(most, 1 << 28):  # a smaller one harms nothing, and is the usual
            file.seek(start)
            packed = file.read(count)
            box = lzma.LZMADecompressor() if page.compression == 34925 else zlib.decompressobj()
            if len(box.decompress(packed, most + 1)) > most:
                refuse_damaged(path, "TIFF", f"a strip or tile of more than {most} bytes")
