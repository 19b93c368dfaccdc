"""Label images out: a PNG or TIFF; those too large for memory band by band, as TIFF or OME-Zarr.

A band is as many whole rows as the tiles of the file are high.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from spatialembed.errors import missing_extra
from spatialembed.files import atomic_write
from spatialembed.images.write import png_bytes

TILE = 256
"""Side of the tiles of a label file, and height of a band, px."""
CLASSIC_BYTES = 1 << 31
"""Labels above this, unpacked, go into a BigTIFF: 32-bit offsets end at 4 GB."""

Bands = Iterable[np.ndarray]
"""(TILE, W) one after the other, the last one lower; unsigned labels."""


def _dtype(number: int) -> type[np.unsignedinteger]:
    """uint16 while that can count the objects, else uint32."""
    return np.uint16 if number <= np.iinfo(np.uint16).max else np.uint32


def write_labels(stem: Path, labels: Any, tiff: bool = False) -> Path:
    """Write a label image: ``<stem>_labels.png``, or above 65,535 instances ``<stem>_labels.tif``.

    A file of an earlier run under the other suffix is removed, so that one label image stands for
    one input.

    Args:
        stem: Folder and name without suffix.
        labels: (H, W) int32, 0 background, instances from 1.
        tiff: Write a TIFF in any case, uint16 where that is enough, else uint32.

    Returns:
        The path.

    Raises:
        SpatialEmbedError: ``disk_full`` (exit 5).
    """
    suffix, content = label_file(labels, tiff)
    png, tif = (stem.with_name(f"{stem.name}_labels{suffix}") for suffix in (".png", ".tif"))
    path, other = (png, tif) if suffix == ".png" else (tif, png)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    other.unlink(missing_ok=True)
    return path


def label_file(labels: Any, tiff: bool = False) -> tuple[str, bytes]:
    """Suffix and content of the file that ``write_labels`` writes."""
    labels = np.asarray(labels)
    labels = labels.astype(_dtype(labels.max(initial=0)))
    if labels.dtype == np.uint16 and not tiff:
        return ".png", png_bytes(labels)
    stream = BytesIO()
    tifffile.imwrite(stream, labels, compression="zlib", metadata=None)
    return ".tif", stream.getvalue()


def remove_labels(path: Path) -> None:
    """Remove a label file, or the folder of one as Zarr, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_label_tiff(path: Path, bands: Bands, shape_hw: tuple[int, int], number: int) -> Path:
    """Write labels 0..number as a deflated TIFF of 256 px tiles, a BigTIFF where it may need one.

    Raises SpatialEmbedError ``disk_full``.
    """
    dtype = np.dtype(_dtype(number))
    with atomic_write(path) as temporary:
        tifffile.imwrite(
            temporary,
            (tile for band in bands for tile in _tiles(band.astype(dtype, copy=False))),
            shape=shape_hw,
            dtype=dtype,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="minisblack",
            metadata=None,
            bigtiff=shape_hw[0] * shape_hw[1] * dtype.itemsize > CLASSIC_BYTES,
            maxworkers=1,
        )
    return path


def _tiles(band: np.ndarray) -> Iterator[np.ndarray]:
    """The tiles of a band from left to right, the last one filled up with background."""
    for x in range(0, band.shape[1], TILE):
        tile = np.zeros((TILE, TILE), band.dtype)
        part = band[:, x : x + TILE]
        tile[: part.shape[0], : part.shape[1]] = part
        yield tile


def write_label_zarr(path: Path, bands: Bands, shape_hw: tuple[int, int], number: int) -> Path:
    """Write labels 0..number as an OME-Zarr 0.5 label image, the folder ``path``; one resolution.

    Stopped on the way it leaves a part of them.
    Raises SpatialEmbedError: ``missing_extra`` (exit 2), ``disk_full``.
    """
    try:
        import zarr
    except ImportError as error:
        raise missing_extra("zarr", "zarr", "writing OME-Zarr") from error
    remove_labels(path)
    group = zarr.open_group(path, mode="w", zarr_format=3)
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    facts: Any = {
        "version": "0.5",
        "image-label": {"version": "0.5"},
        "multiscales": [
            {
                "name": path.stem,
                "axes": [{"name": name, "type": "space"} for name in "yx"],
                "datasets": [{"path": "0", "coordinateTransformations": scale}],
            }
        ],
    }
    group.attrs["ome"] = facts
    chunk = tuple(min(TILE, side) for side in shape_hw)
    array = group.create_array("0", shape=shape_hw, chunks=chunk, dtype=_dtype(number))
    top = 0
    for band in bands:
        array[top : top + len(band)] = band
        top += len(band)
    return path
