"""The candidates of a large image: saved tile by tile, then brought together in the image's order.

Everything lies in mapped files of a work folder, so that memory does not grow with the image. The
file of a tile is there whole or not at all: an interrupted run resumes with those it has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialembed.errors import RESOURCE, SpatialEmbedError
from spatialembed.files import BROKEN_ARRAYS, atomic_write, mapped_array
from spatialembed.inference.tiling import Tile
from spatialembed.method.kernels.candidates import Candidates

CHUNK_PIXELS = 1 << 21
"""Candidates are brought together for about so many pixels of the image at a time."""
USUAL_SHARE = 0.25
"""Share of candidates among the pixels for which disk space is required beforehand."""
PLAIN = {"pixel": "<i8", "x": "<f4", "y": "<f4", "seed": "<f4"}
"""What a candidate has one of; its log-precision has a channel or two."""


class WorkFolder:
    """What an unfinished run has done so far; it belongs to one image and one set of settings.

    facts: everything that the tiles depend on, as JSON can hold it. channels: of log-precision.
    """

    def __init__(self, path: Path, facts: dict[str, Any], channels: int) -> None:
        self.path = path
        plain = [(name, np.dtype(dtype)) for name, dtype in PLAIN.items()]
        precision = ("log_precision", np.dtype("<f4"), (channels,))
        self.record = np.dtype([("class", "<u2"), *plain, precision])
        self._facts = json.loads(json.dumps(facts))

    def open(self) -> str:
        """Make or take over the folder; what stood in it for other facts is removed.

        Returns the name of the first fact that differs, "" where none does or nothing was there.
        """
        file, differs = self.path / "run.json", ""
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            names = [*self._facts, *before]
            differs = next((n for n in names if before.get(n) != self._facts.get(n)), "")
        except (OSError, ValueError, AttributeError):
            before = None
        if before is None or differs:
            shutil.rmtree(self.path, ignore_errors=True)
        if not file.is_file():
            with atomic_write(file) as temporary:
                temporary.write_text(json.dumps(self._facts, indent=1), encoding="utf-8")
        return differs

    def check_room(self, pixels: int) -> None:
        """Before the work: room for it where USUAL_SHARE of an image's pixels are candidates.

        Counted are the tiles, all of them together, owners and labels.
        Raises SpatialEmbedError ``disk_full`` (exit 5).
        """
        need = int(pixels * (USUAL_SHARE * 2 * self.record.itemsize + 1))
        free = shutil.disk_usage(self.path).free
        if need > free:
            raise SpatialEmbedError(
                "disk_full",
                f"{self.path}: {need / 1e9:.1f} GB of working space needed for a large image, "
                f"{free / 1e9:.1f} GB are free",
                "free some space, or choose another output folder",
                RESOURCE,
            )

    def remove(self) -> None:
        """Once the results are written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def save(self, tile: Tile, by_class: Sequence[Candidates]) -> None:
        """Write the candidates of the core of a tile. Raises SpatialEmbedError ``disk_full``."""
        ends = np.cumsum([len(found.pixel) for found in by_class])
        records = np.empty(int(ends[-1]), self.record)
        for c, (found, end) in enumerate(zip(by_class, ends, strict=True)):
            part = records[end - len(found.pixel) : end]
            part["class"] = c
            part["log_precision"] = found.log_precision.T
            for name in PLAIN:
                part[name] = getattr(found, name)
        with atomic_write(self._file(tile)) as temporary:
            np.save(temporary, records)

    def load(self, tile: Tile) -> np.ndarray | None:
        """The records of a tile, mapped; None where it is not done, or its file is damaged."""
        file = self._file(tile)
        try:
            try:
                records = np.load(file, mmap_mode="r")
            except (OSError, ValueError):  # an empty array cannot be mapped
                records = np.load(file)
            fits = len(records) * self.record.itemsize <= file.stat().st_size  # a header may lie
        except (*BROKEN_ARRAYS, TypeError, OverflowError):
            return None
        return records if fits and records.dtype == self.record and records.ndim == 1 else None

    def _file(self, tile: Tile) -> Path:
        return self.path / f"tile_{tile.row:04d}_{tile.column:04d}.npy"

    # ---------------------------------------------------------------- all tiles together

    def gather(self, tiles: Sequence[Tile], width: int, classes: int) -> list[Candidates]:
        """Candidates of each class over the whole image, ascending by pixel, as mapped arrays.

        tiles: all of the plan, row by row, each saved. width: of the image, px.
        Raises SpatialEmbedError ``disk_full``, before anything is written.
        """
        saved = [records for tile in tiles if (records := self.load(tile)) is not None]
        assert len(saved) == len(tiles), "a tile is missing"
        borders = [np.searchsorted(records["class"], range(classes + 1)) for records in saved]
        counts = np.diff(borders, axis=1).sum(0).tolist()
        gathered = [self._mapped(c, count) for c, count in enumerate(counts)]
        for c, whole in enumerate(gathered):
            of_class = [r[b[c] : b[c + 1]] for r, b in zip(saved, borders, strict=True)]
            done = 0
            for piece in _in_order(tiles, of_class, width):
                there = slice(done, done + len(piece))
                whole.log_precision[:, there] = piece["log_precision"].T
                for name in PLAIN:
                    getattr(whole, name)[there] = piece[name]
                done += len(piece)
        return gathered

    def _mapped(self, index: int, count: int) -> Candidates:
        """Arrays of ``count`` candidates in new files."""

        def new(name: str, dtype: str, *shape: int) -> np.ndarray:
            return mapped_array(self.path / f"all_{index}_{name}", np.dtype(dtype), shape)

        plain = {name: new(name, dtype, count) for name, dtype in PLAIN.items()}
        channels = self.record["log_precision"].shape[0]
        return Candidates(log_precision=new("log_precision", "<f4", channels, count), **plain)


def _in_order(
    tiles: Sequence[Tile], of_class: Sequence[np.ndarray], width: int
) -> Iterator[np.ndarray]:
    """Records of the tiles' candidates in the order of the image's pixels, piece by piece."""
    rows = max(1, CHUNK_PIXELS // width)
    for number in range(tiles[-1].row + 1):
        row = [(t, r) for t, r in zip(tiles, of_class, strict=True) if t.row == number]
        core = row[0][0].core
        tops = [*range(core.y0, core.y1, rows), core.y1]
        cuts = [np.searchsorted(records["pixel"], np.array(tops) * width) for _, records in row]
        for i in range(len(tops) - 1):
            parts = [r[cut[i] : cut[i + 1]] for (_, r), cut in zip(row, cuts, strict=True)]
            piece = np.concatenate(parts)
            yield piece[np.argsort(piece["pixel"], kind="stable")]


# ---------------------------------------------------------------- after the clustering


def label_bands(
    by_class: Sequence[Candidates],
    owners: Sequence[np.ndarray],
    width: int,
    rows: Iterator[np.ndarray],
    columns: np.ndarray,
) -> Iterator[np.ndarray]:
    """Labels (h, W) uint32 of the image, band after band.

    owners: of each class the label of each candidate, 0 for none. width: of the image in which the
    candidates were found. rows: for each band the row of that image that each of its rows shows;
    columns: (W,) the same of its columns.
    """
    for shown in rows:
        top, bottom = int(shown[0]), int(shown[-1]) + 1
        band = np.zeros((bottom - top) * width, np.uint32)
        for found, owner in zip(by_class, owners, strict=True):
            first, last = np.searchsorted(found.pixel, (top * width, bottom * width))
            mine = np.asarray(owner[first:last])
            pixel = np.asarray(found.pixel[first:last])[mine > 0] - top * width
            band[pixel] = mine[mine > 0]
        small = band.reshape(-1, width)
        whole = len(columns) == width and bottom - top == len(shown)
        yield small if whole else small[shown - top][:, columns]


def mean_seeds(
    by_class: Sequence[Candidates], owners: Sequence[np.ndarray], number: int
) -> np.ndarray:
    """Mean seed (number,) float64 over the candidates that each label owns."""
    sums, step = np.zeros((2, number + 1)), CHUNK_PIXELS // 4
    for found, owner in zip(by_class, owners, strict=True):
        for i in range(0, len(owner), step):
            label = np.asarray(owner[i : i + step])
            sums[0] += np.bincount(label, found.seed[i : i + step], number + 1)
            sums[1] += np.bincount(label, minlength=number + 1)
    return sums[0, 1:] / sums[1, 1:]
