"""TIFF to pixels, whole or by windows, by tifffile, which keeps every level of every type."""

from __future__ import annotations

import lzma
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.checks import (
    check_size,
    refuse_channels,
    refuse_codec,
    refuse_damaged,
    refuse_size,
    warn,
)

DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError,
    ArithmeticError, RuntimeError, SystemError, zlib.error, lzma.LZMAError, struct.error,
    tifffile.TiffFileError,
)  # fmt: skip
"""What the decoders raise on broken bytes (imagecodecs: RuntimeError, numcodecs: SystemError)."""

COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Samples of a pixel by photometric interpretation: grey (white is 0, black is 0), RGB, palette,
CMYK, YCbCr."""
WHITE_IS_ZERO = 0
PALETTE, CMYK, YCBCR = 3, 5, 6
TO_RGB = {7, 33003, 33005, 34712}
"""Codecs of which tifffile gives RGB where YCbCr is stored: JPEG, JPEG 2000."""
STRUCTURE = {
    256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338,
    339,
}  # fmt: skip
"""Tags that say how the pixels lie."""
ORIENTATION_TAG = 0x0112
SEGMENT_BYTES = 1 << 28
"""Tiles and strips above this are not unpacked one by one."""
CACHE_BYTES = 1 << 27
"""Unpacked tiles and strips that are kept, since windows overlap."""

OTHERS = "--channel reads another as a channel; predict takes --pages all"
"""What can be done about pages after the first."""

Read = Callable[[int, int, int, int], np.ndarray]
"""Pixels y0:y1, x0:x1 of an image, (h, w) or (h, w, 3)."""


class Decoded(NamedTuple):
    """Pixels as a decoder got them out of a file, and what it knows of them."""

    pixels: np.ndarray  # (H, W) or (H, W, C), any type
    orientation: int  # EXIF, 1 to 8
    bits: int = 8  # a sample, as stored; 2 and 4 were stretched to 0..255
    inverted: bool = False  # white is 0 in the file; here black is


def valid_orientation(orientation: object) -> int:
    """An EXIF orientation as 1 to 8; 1 for any other value."""
    return orientation if isinstance(orientation, int) and orientation in range(1, 9) else 1


def read_tiff(
    path: Path, file: BinaryIO, max_pixels: int, index: int | None, *, as_ids: bool = False
) -> Decoded:
    """Read the page ``index`` of all in the file, or the first whole one, with a warning of others.

    The pixels are not turned. as_ids: of a mask: the numbers of a palette are wanted, and several
    pages are refused.

    Raises SpatialEmbedError: truncated, empty_image, too_large, bad_channels, unsupported_codec,
    several_masks.
    """
    try:
        with tifffile.TiffFile(file) as tiff:
            place = next(whole_pages(tiff), 0) if index is None else index
            page = tiff.pages[place].aspage()
            _check_tags(path, page)
            check_page(path, file, page, max_pixels)
            if index is None and (count := images_in(tiff)) > 1:
                if as_ids:
                    what = f"{path}: a mask of {count} pages: the first alone is not the truth"
                    remedy = "save one page in which each object has its own id"
                    raise SpatialEmbedError("several_masks", what, remedy)
                warn(f"{path}: the first of {count} pages was read ({OTHERS})")
            return _decoded(path, page, as_ids=as_ids)
    except DAMAGED as error:
        refuse_damaged(path, "TIFF", error)


def read_samples(
    path: Path, file: BinaryIO, page: tifffile.TiffPage, samples: Sequence[int], max_pixels: int
) -> Decoded:
    """These samples of a page, (H, W, N), not turned. Raises SpatialEmbedError as ``read_tiff``."""
    _check_tags(path, page)
    check_page(path, file, page, max_pixels, any_samples=True)
    return _decoded(path, page, samples=samples)


def _decoded(
    path: Path,
    page: tifffile.TiffPage,
    *,
    as_ids: bool = False,
    samples: Sequence[int] | None = None,
) -> Decoded:
    pixels = _planes_last(_unpacked_page(path, page))
    return Decoded(
        _plain_colours(page, pixels, as_ids=as_ids, samples=samples),
        valid_orientation(page.tags.valueof(ORIENTATION_TAG)),
        page.bitspersample,
        page.photometric == WHITE_IS_ZERO,
    )


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


def images_in(tiff: tifffile.TiffFile) -> int:
    """Number of images; pages are counted only if a second one is no reduced copy of the first."""
    whole = whole_pages(tiff)
    next(whole, None)
    return max(_images_in_one(tiff), 1 if next(whole, None) is None else len(tiff.pages))


def _images_in_one(tiff: tifffile.TiffFile) -> int:
    """Stacks of one page that names their number: ImageJ's beyond 4 GB, tifffile's truncated."""
    first = tiff.pages.first
    images = int((tiff.imagej_metadata or {}).get("images", 1))
    for said in (tiff.shaped_metadata or ())[:1]:
        if said.get("truncated"):
            images = max(images, math.prod(said["shape"]) // max(1, math.prod(first.shape)))
    return max(first.imagedepth, images)


# ---------------------------------------------------------------- checks of the header


def _check_tags(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse a page whose header names a tag that could not be read.

    tifffile leaves such a tag out, and its default gives other pixels.
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


def check_page(
    path: Path,
    file: BinaryIO,
    page: tifffile.TiffPage,
    max_pixels: int,
    *,
    any_samples: bool = False,
) -> None:
    """Refuse colours that no rule covers, and pixels that are not all in the file.

    any_samples: one of them is wanted, however many there are.

    Raises SpatialEmbedError: bad_channels, unsupported_codec, empty_image, too_large, truncated.
    """
    _check_colours(path, page, any_samples)
    _check_segments(path, page, os.fstat(file.fileno()).st_size, max_pixels)


def _check_colours(path: Path, page: tifffile.TiffPage, any_samples: bool) -> None:
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
    if any_samples and page.photometric <= 2:
        return
    if samples != colours and not (samples == colours + 1 and alpha):
        refuse_channels(path, samples)


def _check_segments(path: Path, page: tifffile.TiffPage, size: int, max_pixels: int) -> None:
    """Strips and tiles must be of a sane size, all there, and inside the file of ``size`` bytes.

    tifffile would make zeros of a missing one.
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


# ---------------------------------------------------------------- pixels of a whole page


def _unpacked_page(path: Path, page: tifffile.TiffPage) -> np.ndarray:
    """(S, H, W, C) in separate planes, or in one; of a volume the first."""
    try:
        return page.asarray(squeeze=False)[:, 0]  # (S, D, H, W, C)
    except (ValueError, NotImplementedError) as error:
        _refuse_unknown(path, error)
        raise


def _refuse_unknown(where: object, error: Exception) -> None:
    """Raise ``unsupported_codec`` if tifffile says that it has no decoder."""
    if "not supported" in str(error) or "imagecodecs" in str(error):
        refuse_codec(where, f"TIFF: {error}")


def _planes_last(pixels: np.ndarray) -> np.ndarray:
    """(S, H, W, C) of separate planes, or of one, as (H, W, samples)."""
    return np.moveaxis(pixels, 0, -1)[..., 0, :] if len(pixels) > 1 else pixels[0]


def channels_of(page: tifffile.TiffPage) -> int:
    """Of the pixels as they are read: 1 grey, 3 RGB."""
    return 1 if page.photometric in (0, 1) else 3


def _plain_colours(
    page: tifffile.TiffPage,
    pixels: np.ndarray,
    *,
    as_ids: bool = False,
    samples: Sequence[int] | None = None,
) -> np.ndarray:
    """(h, w) or (h, w, 3) of stored samples (h, w, S): full range, black 0, RGB, no alpha.

    as_ids: the numbers of a palette, not its colours. samples: those alone, (h, w, N), of colours
    that are not stored as such after their conversion.
    """
    kind = page.photometric
    if kind == PALETTE and not as_ids:
        table = (page.colormap >> 8).astype(np.uint8)  # (3, 2^bits)
        return table.T[pixels[..., 0]][..., slice(None) if samples is None else list(samples)]
    if page.bitspersample < 8:
        pixels = pixels.astype(np.uint8) * np.uint8(255 // (2**page.bitspersample - 1))
    if kind == WHITE_IS_ZERO:
        pixels = invert(pixels, page.bitspersample)
    if samples is not None and kind <= 2:
        return pixels[..., list(samples)]
    if samples is not None:
        return _plain_colours(page, pixels)[..., list(samples)]
    pixels = pixels[..., : COLOURS[kind]]
    if kind == CMYK or (kind == YCBCR and page.compression not in TO_RGB):
        mode = "CMYK" if kind == CMYK else "YCbCr"
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels), mode).convert("RGB"))
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def invert(pixels: np.ndarray, bits: int) -> np.ndarray:
    """White for black, and back; fewer than 8 bits lie stretched to 0..255."""
    return pixels.dtype.type(255 if bits < 8 else 2**bits - 1) - pixels


# ---------------------------------------------------------------- windows of a page


def page_windows(
    path: Path,
    page: tifffile.TiffPage,
    samples: Sequence[int] | None = None,
    *,
    cache_bytes: int = CACHE_BYTES,
) -> Read | None:
    """Windows of a page by its tiles or strips, not turned; an uncompressed one is mapped.

    samples: those alone, (h, w, N). None where they are too large to be unpacked. Raises
    SpatialEmbedError: unsupported_codec.
    """
    if page.imagedepth > 1:
        return None
    if page.is_memmappable:
        return _mapped(path, page, samples)
    return _unpacked(path, page, samples, cache_bytes)


def _mapped(path: Path, page: tifffile.TiffPage, samples: Sequence[int] | None) -> Read:
    dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    shape = (planes, page.imagelength, page.imagewidth, page.samplesperpixel // planes)
    pixels = np.memmap(path, dtype, "r", page.dataoffsets[0], shape)

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        part = pixels[:, y0:y1, x0:x1].astype(page.dtype)  # native, and of this window alone
        return _plain_colours(page, _planes_last(part), samples=samples)

    return read


def _unpacked(
    path: Path, page: tifffile.TiffPage, chosen: Sequence[int] | None, cache_bytes: int
) -> Read | None:
    """Windows put together from the tiles or strips that they touch, the last ones kept."""
    height, width = page.imagelength, page.imagewidth
    tile_h = page.tilelength if page.is_tiled else page.rowsperstrip
    tile_w = page.tilewidth if page.is_tiled else width
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    samples = page.samplesperpixel // planes
    across = -(-width // tile_w)
    segments = across * -(-height // tile_h)  # of a plane
    segment_bytes = tile_h * tile_w * samples * np.dtype(page.dtype).itemsize
    if segment_bytes > SEGMENT_BYTES:
        return None
    try:  # the first one shows whether there is a decoder
        _segment(page, 0)
    except (ValueError, NotImplementedError) as error:
        _refuse_unknown(path, error)
        raise
    unpacked = lru_cache(max(1, cache_bytes // segment_bytes))(partial(_segment, page))

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        result = np.empty((y1 - y0, x1 - x0, planes * samples), page.dtype)
        for plane in range(planes):
            for i in range(y0 // tile_h, -(-y1 // tile_h)):
                for j in range(x0 // tile_w, -(-x1 // tile_w)):
                    tile = unpacked(plane * segments + i * across + j)
                    top, left = i * tile_h, j * tile_w
                    part = tile[max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
                    y, x = max(top - y0, 0), max(left - x0, 0)
                    target = result[y : y + part.shape[0], x : x + part.shape[1]]
                    target[..., plane * samples : (plane + 1) * samples] = part
        return _plain_colours(page, result, samples=chosen)

    return read


def _segment(page: tifffile.TiffPage, number: int) -> np.ndarray:
    """One unpacked tile or strip (h, w, samples), cut at the border of the image."""
    handle = page.parent.filehandle
    handle.seek(page.dataoffsets[number])
    data = handle.read(page.databytecounts[number])
    tables = {"jpegtables": page.jpegtables} if page.jpegtables is not None else {}
    pixels, _, _ = page.decode(data, number, **tables)
    return pixels[0]
