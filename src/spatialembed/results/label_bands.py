"""Label images too large for memory: written band by band, and measured on the way.

A band is as many whole rows as the tiles of the file are high. Of each object only its area, box,
sums and the runs of its mask are kept, the runs in a file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile

from spatialembed.errors import missing_extra
from spatialembed.files import atomic_write, mapped_array
from spatialembed.method.labels import Rle, encode_runs
from spatialembed.results.measurements import Facts, Sums, vertical_runs

TILE = 256
"""Side of the tiles of a label file, and height of a band, px."""
CLASSIC_BYTES = 1 << 31
"""Labels above this, unpacked, go into a BigTIFF: 32-bit offsets end at 4 GB."""
STRIP = 4096
"""Columns of a band that are measured at a time."""
BLOCK_RUNS = 1 << 18
"""Masks are encoded for so many runs at a time."""

Bands = Iterable[np.ndarray]  # (TILE, W) one after the other, the last one lower; unsigned labels


Read = Callable[[int, int], np.ndarray]
"""Pixels of the image from a row to another, (h, W) or (h, W, 3)."""


class Measure:
    """Facts and masks of the objects 1..N of a label image (H, W) that passes by in bands.

    runs: an empty or missing file for the runs of the masks. read: for the mean intensities.
    """

    def __init__(
        self, number: int, shape_hw: tuple[int, int], runs: Path, read: Read | None = None
    ) -> None:
        self._sums = Sums(number)
        self._shape_hw = shape_hw
        self._path = runs
        self._read = read
        self._runs_of = np.zeros(number + 1, np.int64)
        nothing = np.zeros((0, shape_hw[1]), np.uint32)
        self._last = nothing, nothing  # the end of the band before the last one, and that

    def passed(self, bands: Bands) -> Iterator[np.ndarray]:
        """The same bands, each measured before it is handed on."""
        top = 0
        with open(self._path, "wb") as file:
            for band in bands:
                self._add(band, top, file)
                self._add_borders(band)
                top += len(band)
                yield band

    def _add(self, band: np.ndarray, top: int, file: IO[bytes]) -> None:
        for left in range(0, band.shape[1], STRIP):
            owner, x, begin, end = vertical_runs(band[:, left : left + STRIP])  # (R,) each
            x, begin, end = x + left, begin + top, end + top
            self._sums.add_runs(owner, x, begin, end)
            self._runs_of += np.bincount(owner, minlength=len(self._runs_of))
            place = x * self._shape_hw[0]  # column-major
            np.stack((owner, place + begin, place + end), axis=1).tofile(file)
        if self._read is not None:
            self._sums.add_pixels(band, self._read(top, top + len(band)))

    def _add_borders(self, below: np.ndarray) -> None:
        """Of the last band, which the ends of its neighbours decide as well."""
        above, band = self._last
        height = len(band)
        around = np.zeros((height + 4, self._shape_hw[1] + 4), below.dtype)
        around[2 - len(above) : 2, 2:-2] = above
        around[2 : 2 + height, 2:-2] = band
        around[2 + height : 2 + height + len(below[:2]), 2:-2] = below[:2]
        self._sums.add_borders(around)
        self._last = band[-2:], below

    def facts(self) -> Facts:
        """Of the whole image, once, when all bands have passed."""
        self._add_borders(self._last[1][:0])  # the consumer of the bands may stop before their end
        return self._sums.facts()

    def masks(self) -> Iterator[Rle]:
        """The masks of the objects in the order of their labels, a block of them in memory."""
        total = int(self._runs_of.sum())
        if not total:
            return
        runs = np.memmap(self._path, np.int64, "r", shape=(total, 3))
        by_owner = _sorted_by_owner(runs, self._runs_of, self._path.with_suffix(".sorted"))
        ends = self._runs_of.cumsum()
        first = 1
        while first < len(ends):
            room = int(ends[first - 1]) + BLOCK_RUNS
            last = max(first + 1, int(np.searchsorted(ends, room, side="right")))
            part = np.array(by_owner[ends[first - 1] : ends[last - 1]])
            part = part[np.lexsort((part[:, 1], part[:, 0]))]
            yield from encode_runs(
                part[:, 0] - (first - 1), part[:, 1], part[:, 2], last - first, self._shape_hw
            )
            first = last


def _sorted_by_owner(runs: np.ndarray, runs_of: np.ndarray, path: Path) -> np.ndarray:
    """The runs (R, 3) by owner, in a new file that is mapped; a block at a time is sorted."""
    result = mapped_array(path, np.int64, runs.shape)
    place = np.concatenate(([0], runs_of.cumsum()))[:-1]  # the next free one of each owner
    for i in range(0, len(runs), BLOCK_RUNS):
        block = runs[i : i + BLOCK_RUNS]
        block = block[np.argsort(block[:, 0], kind="stable")]
        owners, first, counts = np.unique(block[:, 0], return_index=True, return_counts=True)
        rank = np.arange(len(block)) - np.repeat(first, counts)
        result[place[block[:, 0]] + rank] = block
        place[owners] += counts
    return result


class Thumbnail:
    """Labels at the size of a picture (h, w), taken from the bands of an image (H, W)."""

    def __init__(self, size_hw: tuple[int, int], picture_hw: tuple[int, ...]) -> None:
        self.labels = np.zeros(picture_hw[:2], np.int32)
        self._rows, self._columns = (
            ((np.arange(small) + 0.5) * side / small).astype(np.int64)
            for side, small in zip(size_hw, picture_hw, strict=True)
        )

    def passed(self, bands: Bands) -> Iterator[np.ndarray]:
        """The same bands, each looked at before it is handed on."""
        top = 0
        for band in bands:
            here = (self._rows >= top) & (self._rows < top + len(band))
            self.labels[here] = band[self._rows[here] - top][:, self._columns]
            top += len(band)
            yield band


def remove_labels(path: Path) -> None:
    """Remove a label file, or the folder of one as Zarr, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def label_dtype(number: int) -> type[np.unsignedinteger]:
    """uint16 while that can count the objects, else uint32."""
    return np.uint16 if number <= np.iinfo(np.uint16).max else np.uint32


def write_label_tiff(path: Path, bands: Bands, shape_hw: tuple[int, int], number: int) -> Path:
    """Write labels 0..number as a deflated TIFF of 256 px tiles, a BigTIFF where it may need one.

    Raises SpatialEmbedError ``disk_full``.
    """
    dtype = np.dtype(label_dtype(number))
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
    array = group.create_array("0", shape=shape_hw, chunks=chunk, dtype=label_dtype(number))
    top = 0
    for band in bands:
        array[top : top + len(band)] = band
        top += len(band)
    return path
