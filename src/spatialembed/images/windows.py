"""Large images, read window by window: what lies outside of a window costs no memory.

    TIFF, BigTIFF, OME-TIFF   by their tiles or strips; uncompressed ones are mapped from the file
    Zarr, OME-Zarr            by their chunks (extra ``zarr``), at full resolution
    PNG                       row by row, once, into a file that is then mapped
    all others                decoded whole, once, into such a file: JPEG, WebP, BMP, GIF, PNG with
                              a palette or interlaced, and what an EXIF orientation turns

Pixels are by the rules of ``images.read``: alpha dropped, upright, uint8, uint16 or float32. What
is wrong with the pixels themselves is found when they are read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from spatialembed.errors import SpatialEmbedError, missing_extra
from spatialembed.files import atomic_write, mapped_array
from spatialembed.images.checks import (
    check_size,
    refuse_channels,
    refuse_codec,
    refuse_damaged,
    refuse_size,
    warn,
)
from spatialembed.images.decode import header_of, opened
from spatialembed.images.listing import is_zarr
from spatialembed.images.png import stream_png
from spatialembed.images.read import plain_type, read_image
from spatialembed.images.tiff import (
    DAMAGED,
    ORIENTATION_TAG,
    Read,
    channels_of,
    check_page,
    page_windows,
    valid_orientation,
    whole_pages,
)

WHOLE_BYTES = 3 << 28
"""An image that can only be decoded whole may have this many bytes, as 8-bit grey 28,000 px square
or as RGB 16,000: about twice as much is held for a moment."""
DEFLATE_RATIO = 1032
"""No deflated byte unpacks to more."""
ANY_SIZE = 1 << 62


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
        with opened(path, quiet=True) as (file, form):
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
    """A TIFF by its tiles or strips; None of one that is turned, or whose tiles are too large."""
    with ExitStack() as stack:
        try:
            tiff = stack.enter_context(tifffile.TiffFile(path))
            pages = list(whole_pages(tiff)) or [0]
            page = tiff.pages[pages[0]].aspage()
            check_page(path, file, page, ANY_SIZE)
            turned = valid_orientation(page.tags.valueof(ORIENTATION_TAG)) != 1
            if turned or (read := page_windows(path, page)) is None:
                return None
        except DAMAGED as error:
            refuse_damaged(path, "TIFF", error)
        if len(pages) > 1:
            warn(f"{path}: the first of {len(pages)} pages was read")
        shape_hw, channels = (page.imagelength, page.imagewidth), channels_of(page)
        close, dtype = stack.pop_all().close, _plain_dtype(page.dtype)
        return LargeImage(str(path), shape_hw, channels, dtype, read, close)


def _plain_dtype(dtype: Any) -> np.dtype:
    """The type that ``plain_type`` makes of pixels of this type; 1 bit has become a byte before."""
    name = np.dtype(dtype).newbyteorder("=").name
    return np.dtype({"bool": "uint8", "uint8": "uint8", "uint16": "uint16"}.get(name, "float32"))


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
        refuse_channels(path, channels)
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
        mapped = _decoded(path, store)
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


def _decoded(path: Path, store: Path) -> np.ndarray:
    """All pixels in the new file ``store``; those of a plain PNG go into it row by row."""
    most = WHOLE_BYTES // 3
    with opened(path) as (file, form):
        if form != "TIFF":
            height, width, mode = header_of(path, file, form)
            most = WHOLE_BYTES if mode in ("1", "L") else most  # 8-bit grey: one byte a pixel
        if form == "PNG":
            size = os.fstat(file.fileno()).st_size
            if width * height > 8 * DEFLATE_RATIO * size:  # 1 bit a pixel at least
                refuse_damaged(path, form, f"{size} bytes cannot hold {height} x {width} px")
            if (streamed := stream_png(path, file, store)) is not None:
                return streamed
    pixels = read_image(path, max_pixels=most)
    mapped = mapped_array(store, pixels.dtype, pixels.shape)
    mapped[:] = pixels
    return mapped
