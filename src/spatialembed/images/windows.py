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
from operator import index
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from spatialembed.errors import SpatialEmbedError, missing_extra
from spatialembed.files import atomic_write, mapped_array
from spatialembed.images.channels import (
    COLOURS,
    MAX,
    Channel,
    chosen,
    combined,
    is_sum,
    listed,
    parse_channel,
)
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
    CACHE_BYTES,
    DAMAGED,
    ORIENTATION_TAG,
    OTHERS,
    Read,
    channels_of,
    check_page,
    page_windows,
    valid_orientation,
    whole_pages,
)
from spatialembed.images.tiff_channels import by_page, channel_planes

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
                    return index(page.imagelength), index(page.imagewidth)  # not of two numbers
            return header_of(path, file, form)[:2]
    except (SpatialEmbedError, *DAMAGED):
        return None  # reading it reports the fault


def open_large(
    path: str | os.PathLike[str], scratch: Path, channel: Channel | None = None
) -> LargeImage:
    """Open an image file, or the folder of a Zarr array or OME-Zarr image, for reading by windows.

    scratch: an existing folder, for the pixels of an image that can only be decoded whole. Of
    several pages, times, planes or levels the first is read, with an ImageWarning. channel: as
    ``read_image`` takes it, that alone.

    Raises SpatialEmbedError: those of ``read_image``; missing_extra (exit 2), bad_zarr.
    """
    path, channel = Path(path), parse_channel(channel)
    if is_zarr(path):
        return _zarr_plane(path, channel)
    with opened(path) as (file, form):
        image = _by_segments(path, file, channel) if form == "TIFF" else None
    return image or _whole(path, scratch, channel)


# ---------------------------------------------------------------- TIFF


def _by_segments(path: Path, file: BinaryIO, channel: Channel | None) -> LargeImage | None:
    """A TIFF by its tiles or strips; None of one that is turned, or whose tiles are too large."""
    with ExitStack() as stack:
        try:
            tiff = stack.enter_context(tifffile.TiffFile(path))
            parts = None if channel is None else _channel_parts(path, tiff, channel)
            pages = list(whole_pages(tiff)) or [0]
            reads, first = [], tiff.pages[parts[0][0] if parts else pages[0]].aspage()
            wanted: Sequence[tuple[int, list[int] | None]] = parts or [(pages[0], None)]
            for place, samples in wanted:
                page = tiff.pages[place].aspage()
                check_page(path, file, page, ANY_SIZE, any_samples=samples is not None)
                turned = valid_orientation(page.tags.valueof(ORIENTATION_TAG)) != 1
                share = CACHE_BYTES // len(wanted)
                read = page_windows(path, page, samples, cache_bytes=share)
                if turned or read is None or page.shape[:2] != first.shape[:2]:
                    return None  # pages of several sizes are refused where they are read
                reads.append(read)
        except DAMAGED as error:
            refuse_damaged(path, "TIFF", error)
        if parts is None and len(pages) > 1:
            warn(f"{path}: the first of {len(pages)} pages was read ({OTHERS})")
        shape_hw = (first.imagelength, first.imagewidth)
        channels, dtype = 1 if parts else channels_of(first), _plain_dtype(first.dtype)
        if parts and is_sum(channel):
            dtype = np.dtype(np.float32)
        close = stack.pop_all().close
        one = reads[0] if parts is None else _combined(channel, reads)
        return LargeImage(str(path), shape_hw, channels, dtype, one, close)


def _channel_parts(
    path: Path, tiff: tifffile.TiffFile, channel: Channel
) -> list[tuple[int, list[int]]] | None:
    """Pages and samples of a channel; None where it was only preferred and is not there."""
    planes = channel_planes(path, tiff)
    which = chosen(path, [plane.name for plane in planes], channel)
    return None if which is None else by_page(planes, which)


def _combined(channel: Channel | None, reads: Sequence[Read]) -> Read:
    """Windows (h, w) of what is asked for of the samples that ``reads`` give, (h, w, N) each."""
    assert channel is not None

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        planes = (np.moveaxis(one(y0, y1, x0, x1), -1, 0) for one in reads)
        return combined(channel, (plane for several in planes for plane in several))

    return read


def _plain_dtype(dtype: Any) -> np.dtype:
    """The type that ``plain_type`` makes of pixels of this type; 1 bit has become a byte before."""
    name = np.dtype(dtype).newbyteorder("=").name
    return np.dtype({"bool": "uint8", "uint8": "uint8", "uint16": "uint16"}.get(name, "float32"))


# ---------------------------------------------------------------- Zarr


def _zarr_plane(path: Path, channel: Channel | None = None) -> LargeImage:
    """The first plane of the array of full resolution."""
    try:
        import zarr
    except ImportError as error:
        raise missing_extra("zarr", "zarr", f"reading {path}") from error
    try:
        node: Any = zarr.open(path, mode="r")
        axes: Sequence[str] = ()
        names: Sequence[str] = ()
        if not isinstance(node, zarr.Array):
            attributes: Any = dict(node.attrs)
            scales = attributes.get("ome", attributes)["multiscales"][0]
            axes = [a["name"] if isinstance(a, dict) else a for a in scales.get("axes", ())]
            names = _names_of(attributes)
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
    return _plane_of(path, node, axes, names, channel)


def _names_of(attributes: Any) -> list[str]:
    """Of the channels of an OME-Zarr, which says them beside, or in, its own part."""
    said = attributes.get("ome", attributes).get("omero", attributes.get("omero", {}))
    return [str(channel.get("label", "")) for channel in said.get("channels", ())]


def _plane_of(
    path: Path, array: Any, axes: Sequence[str], names: Sequence[str], channel: Channel | None
) -> LargeImage:
    sizes = dict(zip(axes, array.shape, strict=True))
    channels = sizes.get("c", 1)
    if len(names) != channels:
        names = COLOURS if channels == 3 else ("",) * channels
    which = None if channel is None else chosen(path, names, channel)
    if channels not in (1, 3) and which is None:
        refuse_channels(path, channels, listed(names))
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
        taken = slice(which[0], which[-1] + 1) if which else slice(None)
        spans = {"y": slice(y0, y1), "x": slice(x0, x1), "c": taken}
        pixels = np.asarray(array[tuple(spans.get(name, 0) for name in axes)]).transpose(order)
        pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
        if which and pixels.ndim == 3:
            return combined(channel or MAX, np.moveaxis(pixels, -1, 0))
        return pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels

    shape_hw, dtype = (sizes["y"], sizes["x"]), _plain_dtype(array.dtype)
    if which and is_sum(channel) and "c" in axes:
        dtype = np.dtype(np.float32)
    return LargeImage(str(path), shape_hw, 1 if which else channels, dtype, read)


# ---------------------------------------------------------------- decoded whole


def _whole(path: Path, scratch: Path, channel: Channel | None) -> LargeImage:
    """Any other image, its pixels in a file of ``scratch`` that is mapped."""
    store, facts = scratch / "pixels", scratch / "pixels.json"
    mapped = _kept(store, facts)
    if mapped is None:
        mapped = _decoded(path, store, channel)
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


def _decoded(path: Path, store: Path, channel: Channel | None) -> np.ndarray:
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
            if channel is None and (streamed := stream_png(path, file, store)) is not None:
                return streamed
    pixels = read_image(path, max_pixels=most, channel=channel)
    mapped = mapped_array(store, pixels.dtype, pixels.shape)
    mapped[:] = pixels
    return mapped
