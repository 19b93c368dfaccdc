"""Large images, read window by window: what lies outside of a window costs no memory.

    TIFF, BigTIFF, OME-TIFF   by their tiles or strips; uncompressed ones are mapped from the file
    Zarr, OME-Zarr            by their chunks (extra ``zarr``), at full resolution
    PNG                       row by row, once, into a file that is then mapped
    all others                decoded whole, once, into such a file: JPEG, WebP, BMP, GIF, palettes,
                              interlaced PNG, and TIFF with a codec that only Pillow knows

Pixels are by the rules of ``images.read``: alpha dropped, upright, uint8, uint16 or float32. What
is wrong with the pixels themselves is found when they are read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from spatialembed.errors import SpatialEmbedError, missing_extra
from spatialembed.files import atomic_write, mapped_array
from spatialembed.images.checks import (
    check_size,
    refuse_codec,
    refuse_damaged,
    refuse_size,
    warn,
)
from spatialembed.images.decode import header_of, opened, upright
from spatialembed.images.listing import is_zarr
from spatialembed.images.png import stream_png
from spatialembed.images.read import plain_type, read_image
from spatialembed.images.tiff import (
    COLOURS,
    DAMAGED,
    WHITE_IS_ZERO,
    check_colours,
    check_segments,
    valid_orientation,
    whole_pages,
)

WHOLE_BYTES = 3 << 28
"""An image that can only be decoded whole may have this many bytes, as 8-bit grey 28,000 px square
or as RGB 16,000: about twice as much is held for a moment."""
DEFLATE_RATIO = 1032
"""No deflated byte unpacks to more."""
SEGMENT_BYTES = 1 << 28
"""Tiles and strips above this are not unpacked one by one."""
CACHE_BYTES = 1 << 27
"""Unpacked tiles and strips that are kept, since windows overlap."""
ANY_SIZE = 1 << 62
ORIENTATION_TAG = 0x0112

Read = Callable[[int, int, int, int], np.ndarray]


@dataclass(frozen=True)
class LargeImage:
    """An image of any size whose windows can be read. To be closed after use."""

    name: str
    shape_hw: tuple[int, int]  # upright
    channels: int  # 1 grey, 3 RGB
    dtype: np.dtype  # uint8, uint16 or float32
    window: Read
    close: Callable[[], None] = lambda: None

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Pixels y0:y1, x0:x1, (h, w) or (h, w, 3); the window must lie in the image.

        Raises SpatialEmbedError: truncated, non_finite, value_range.
        """
        try:
            pixels = self.window(y0, y1, x0, x1)
        except DAMAGED as error:
            refuse_damaged(self.name, f"rows {y0} to {y1}, columns {x0} to {x1}", error)
        return np.ascontiguousarray(plain_type(self.name, pixels))


def image_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image file by its header, not upright; None where it has none."""
    try:
        if is_zarr(path):
            return _zarr_plane(path).shape_hw
        with opened(path) as (file, form):
            if form == "TIFF":
                with tifffile.TiffFile(file) as tiff:
                    page = tiff.pages[next(whole_pages(tiff), 0)].aspage()
                    return page.imagelength, page.imagewidth
            return header_of(path, file, form)[:2]
    except (SpatialEmbedError, *DAMAGED):
        return None  # reading it reports the fault


def open_large(path: str | os.PathLike[str], scratch: Path) -> LargeImage:
    """Open an image file, or the folder of a Zarr array or OME-Zarr image, for reading by windows.

    scratch: an existing folder, for the pixels of an image that can only be decoded whole. Of
    several pages, times, planes or levels the first is read, with an ImageWarning.

    Raises SpatialEmbedError: those of ``read_image``; missing_extra (exit 2), bad_zarr.
    """
    path = Path(path)
    if is_zarr(path):
        return _zarr_plane(path)
    with opened(path) as (file, form):
        image = _by_segments(path, file) if form == "TIFF" else None
    return image or _whole(path, scratch)


# ---------------------------------------------------------------- TIFF


def _by_segments(path: Path, file: BinaryIO) -> LargeImage | None:
    """A TIFF by its tiles or strips; None where tifffile cannot, or they are too large."""
    tiff = None
    try:
        tiff = tifffile.TiffFile(path)
        pages = list(whole_pages(tiff)) or [0]
        page = tiff.pages[pages[0]].aspage()
        check_colours(path, page)
        check_segments(path, page, os.fstat(file.fileno()).st_size, ANY_SIZE)
        if len(pages) > 1 or page.imagedepth > 1:
            warn(f"{path}: the first of {max(len(pages), page.imagedepth)} pages was read")
        read = _mapped(path, page) or _unpacked(page)
        if read is None or page.imagedepth > 1:
            tiff.close()
            return None
        shape_hw = (page.imagelength, page.imagewidth)
        colours = COLOURS[page.photometric]
        return _upright(
            LargeImage(
                str(path),
                shape_hw,
                colours,
                _plain_dtype(page.dtype),
                _as_colours(read, page.photometric, page.bitspersample, colours),
                tiff.close,
            ),
            valid_orientation(page.tags.valueof(ORIENTATION_TAG)),
        )
    except DAMAGED as error:
        if tiff is not None:
            tiff.close()
        refuse_damaged(path, "TIFF", error)


def _plain_dtype(dtype: Any) -> np.dtype:
    """The type that ``plain_type`` makes of pixels of this type; 1 bit has become a byte before."""
    name = np.dtype(dtype).newbyteorder("=").name
    return np.dtype({"bool": "uint8", "uint8": "uint8", "uint16": "uint16"}.get(name, "float32"))


def _mapped(path: Path, page: tifffile.TiffPage) -> Read | None:
    """Windows of an uncompressed page that lies in one piece, from the mapped file."""
    if not page.is_memmappable or page.photometric not in (0, 1, 2):
        return None
    dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    shape = (planes, page.imagelength, page.imagewidth, page.samplesperpixel // planes)
    pixels = np.memmap(path, dtype, "r", page.dataoffsets[0], shape)

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        part = pixels[:, y0:y1, x0:x1].astype(page.dtype)  # (planes, h, w, samples), native
        return np.moveaxis(part, 0, -1)[..., 0, :] if planes > 1 else part[0]

    return read


def _unpacked(page: tifffile.TiffPage) -> Read | None:
    """Windows put together from the tiles or strips that they touch, the last ones kept."""
    if page.photometric not in (0, 1, 2) and page.compression not in (7, 33003, 33005, 34712):
        return None
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
    try:  # the first one shows whether the codec is there
        _segment(page, 0)
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error) and "not supported" not in str(error):
            raise
        return None
    unpacked = lru_cache(max(1, CACHE_BYTES // segment_bytes))(partial(_segment, page))

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        result = np.empty((y1 - y0, x1 - x0, planes * samples), page.dtype)
        for plane in range(planes):
            for i in range(y0 // tile_h, -(-y1 // tile_h)):
                for j in range(x0 // tile_w, -(-x1 // tile_w)):
                    number = plane * segments + i * across + j
                    tile = unpacked(number)
                    top, left = i * tile_h, j * tile_w
                    part = tile[max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
                    y, x = max(top - y0, 0), max(left - x0, 0)
                    target = result[y : y + part.shape[0], x : x + part.shape[1]]
                    target[..., plane * samples : (plane + 1) * samples] = part
        return result

    return read


def _segment(page: tifffile.TiffPage, number: int) -> np.ndarray:
    """One unpacked tile or strip (h, w, samples), cut at the border of the image."""
    handle = page.parent.filehandle
    handle.seek(page.dataoffsets[number])
    data = handle.read(page.databytecounts[number])
    tables = {"jpegtables": page.jpegtables} if page.jpegtables is not None else {}
    pixels, _, _ = page.decode(data, number, **tables)
    return pixels[0]


def _as_colours(read: Read, photometric: int, bits: int, colours: int) -> Read:
    """Windows (h, w) or (h, w, 3) of stored samples (h, w, S): full range, black 0, no alpha."""

    def plain(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        pixels = read(y0, y1, x0, x1)
        if bits < 8:
            pixels = pixels.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
        if photometric == WHITE_IS_ZERO:
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels[..., 0] if colours == 1 else pixels[..., :colours]

    return plain


def _upright(image: LargeImage, orientation: int) -> LargeImage:
    """The same image turned by its EXIF orientation."""
    if orientation == 1:
        return image
    warn(f"{image.name}: turned upright (EXIF orientation {orientation})")
    height, width = image.shape_hw[::-1] if orientation >= 5 else image.shape_hw

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        if orientation in (3, 4, 7, 8):
            y0, y1 = height - y1, height - y0
        if orientation in (2, 3, 6, 7):
            x0, x1 = width - x1, width - x0
        if orientation >= 5:
            y0, y1, x0, x1 = x0, x1, y0, y1
        return upright(image.window(y0, y1, x0, x1), orientation)

    return replace(image, shape_hw=(height, width), window=read)


# ---------------------------------------------------------------- Zarr


def _zarr_plane(path: Path) -> LargeImage:
    """The first plane of the array of full resolution."""
    try:
        import zarr
    except ImportError as error:
        raise missing_extra("zarr", "zarr", f"reading {path}") from error
    try:
        node: Any = zarr.open(path, mode="r")
        axes: Sequence[str] = ()
        if not isinstance(node, zarr.Array):
            attributes: Any = dict(node.attrs)
            scales = attributes.get("ome", attributes)["multiscales"][0]
            axes = [a["name"] if isinstance(a, dict) else a for a in scales.get("axes", ())]
            node = node[scales["datasets"][0]["path"]]
        axes = axes or list("tczyx"[-node.ndim :] if node.ndim != 3 else "yxc")
        if len(axes) != node.ndim or not {"y", "x"} <= set(axes):
            raise ValueError(f"axes {axes} for an array of shape {node.shape}")
    except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise SpatialEmbedError(
            "bad_zarr",
            f"{path}: no image of y and x axes in it: {error}",
            "give the folder of an OME-Zarr image (with multiscales) or of an array (y, x[, c])",
        ) from error
    return _plane_of(path, node, axes)


def _plane_of(path: Path, array: Any, axes: Sequence[str]) -> LargeImage:
    sizes = dict(zip(axes, array.shape, strict=True))
    channels = sizes.get("c", 1)
    if channels not in (1, 3):
        raise SpatialEmbedError(
            "bad_channels",
            f"{path}: {channels} channels",
            "keep one (grey) or three (RGB), and save again",
        )
    if array.dtype.kind not in "uifb":
        refuse_codec(path, f"an array of {array.dtype}", "save it as uint8, uint16 or float32")
    if (chunk := math.prod(array.chunks) * array.dtype.itemsize) > WHOLE_BYTES:
        refuse_size(path, f"chunks of {chunk} bytes", WHOLE_BYTES // 3)
    if any(size > 1 for name, size in sizes.items() if name not in "yxc"):
        warn(f"{path}: the first of {sizes} was read")
    check_size(path, sizes["x"], sizes["y"], 1, ANY_SIZE)
    last = [name for name in axes if name in "yxc"]
    order = [last.index(name) for name in "yxc" if name in last]  # to (y, x[, c])

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        spans = {"y": slice(y0, y1), "x": slice(x0, x1), "c": slice(None)}
        pixels = np.asarray(array[tuple(spans.get(name, 0) for name in axes)]).transpose(order)
        pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
        return pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels

    shape_hw = (sizes["y"], sizes["x"])
    return LargeImage(str(path), shape_hw, channels, _plain_dtype(array.dtype), read)


# ---------------------------------------------------------------- decoded whole


def _whole(path: Path, scratch: Path) -> LargeImage:
    """Any other image, its pixels in a file of ``scratch`` that is mapped."""
    store, facts = scratch / "pixels", scratch / "pixels.json"
    mapped = _kept(store, facts)
    if mapped is None:
        streamed = _streamed(path, store)
        if streamed is None:
            pixels = read_image(path, max_pixels=_most_pixels(path))
            streamed = mapped_array(store, pixels.dtype, pixels.shape)
            streamed[:] = pixels
        mapped = streamed
        with atomic_write(facts) as temporary:
            temporary.write_text(json.dumps([mapped.dtype.name, *mapped.shape]))

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.array(mapped[y0:y1, x0:x1])

    channels = 1 if mapped.ndim == 2 else 3
    return LargeImage(str(path), (mapped.shape[0], mapped.shape[1]), channels, mapped.dtype, read)


def _kept(store: Path, facts: Path) -> np.ndarray | None:
    """The pixels of an earlier run; None where they are not all there."""
    try:
        dtype, *shape = json.loads(facts.read_text())  # written last: then the pixels are whole
        size = math.prod(shape) * np.dtype(dtype).itemsize
        sides = all(isinstance(side, int) and side > 0 for side in shape) and len(shape) in (2, 3)
        if sides and size == store.stat().st_size and dtype in ("uint8", "uint16", "float32"):
            return np.memmap(store, dtype, "r", shape=tuple(shape))
    except (OSError, ValueError, TypeError, OverflowError):
        pass
    return None


def _streamed(path: Path, store: Path) -> np.ndarray | None:
    """The pixels of a PNG that could be unpacked row by row into the file."""
    with opened(path) as (file, form):
        if form != "PNG":
            return None
        height, width, _ = header_of(path, file, form)
        size = os.fstat(file.fileno()).st_size
        if width * height > 8 * DEFLATE_RATIO * size:  # 1 bit a pixel at least
            refuse_damaged(path, form, f"{size} bytes cannot hold {height} x {width} px")
        return stream_png(path, file, store)


def _most_pixels(path: Path) -> int:
    """The limit for ``read_image``: by bytes, of which 8-bit grey has one a pixel."""
    with opened(path) as (file, form):
        grey = form != "TIFF" and header_of(path, file, form)[2] in ("1", "L")
    return WHOLE_BYTES if grey else WHOLE_BYTES // 3
