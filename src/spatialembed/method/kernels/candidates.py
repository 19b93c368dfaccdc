"""From the network's maps to the candidates of the clustering, on the CPU, without torch.

Embeddings are computed for candidates alone. The seeds are read once to count candidates by row;
then every map once, row by row: checked, and while it is in the cache, gathered from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spatialembed.concurrency import spread, usable
from spatialembed.errors import MODEL, SpatialEmbedError
from spatialembed.method.kernels.jit import compiled

PER_THREAD = 1 << 17
"""Pixels that are worth a thread."""
MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
"""Bits of a float32 without its sign; those of infinity, NaN above."""
PER_PIXEL = np.float32(1 / 1024)
"""Units: a power of two, so that every product with a column is exact."""


class Candidates(NamedTuple):
    """The P pixels of one class that take part, ascending by pixel."""

    pixel: np.ndarray  # (P,) int64, linear index in the image
    x: np.ndarray  # (P,) float32, embedding in units
    y: np.ndarray  # (P,) float32
    log_precision: np.ndarray  # (S, P) float32 as the network gives it, S = 1 or 2 (x, y)
    seed: np.ndarray  # (P,) float32 in [0, 1]


def candidates(
    offset: np.ndarray,
    log_precision: np.ndarray,
    seed: np.ndarray,
    *,
    foreground: float,
    origin_yx: tuple[int, int] = (0, 0),
    image_width: int | None = None,
    threads: int | None = None,
    name: str = "maps",
) -> list[Candidates]:
    """Candidates of each class in maps of an image, or of a window of one.

    offset: (2, H, W) float32 (x, y) in units. log_precision: (S, H, W) float32, a tenth of the log.
    seed: (C, H, W) float32. Without a copy where contiguous. origin_yx, image_width: where the
    window stands and how wide its image is; by default the maps are the image. foreground is
    compared as float32.
    Raises ``non_finite_output`` (exit 4) for NaN or infinity anywhere, with ``name`` in front.
    """
    offset, log_precision, seed = (
        np.ascontiguousarray(m, np.float32) for m in (offset, log_precision, seed)
    )
    (classes, height, width), channels = seed.shape, len(log_precision)
    workers = min(usable(threads), 1 + height * width // PER_THREAD)
    rows = [(height * i // workers, height * (i + 1) // workers) for i in range(workers)]
    low = np.float32(foreground)
    ends = np.zeros((classes, height + 1), np.int64)  # of row r of class c at [c, r + 1]
    spread(_count, [(seed, low, *share, ends) for share in rows], workers)
    ends = ends.cumsum().reshape(ends.shape)
    size = ends[-1, -1]
    x, y, seeds = np.empty((3, size), np.float32)
    raw = np.empty((channels, size), np.float32)
    whole = Candidates(np.empty(size, np.int64), x, y, raw, seeds)
    maps = (offset, log_precision, seed)
    place = (*origin_yx, image_width or width)
    jobs = [(maps, low, place, share, ends, whole) for share in rows]
    if not all(spread(_fill, jobs, workers)):
        check_finite(*maps, name)
    of_class = (slice(row[0], row[-1]) for row in ends)
    return [Candidates(*(np.ascontiguousarray(a[..., own]) for a in whole)) for own in of_class]


def check_finite(
    offset: np.ndarray, log_precision: np.ndarray, seed: np.ndarray, name: str = "maps"
) -> None:
    """Raise ``non_finite_output`` (exit 4), with the counts, where a map has NaN or infinity."""
    maps = {"offset": offset, "log_precision": log_precision, "seed": seed}
    counts = {key: int(np.count_nonzero(~np.isfinite(m))) for key, m in maps.items()}
    if any(counts.values()):
        listed = ", ".join(f"{n} in {key}" for key, n in counts.items() if n)
        raise SpatialEmbedError(
            "non_finite_output",
            f"{name}: NaN or infinite values: {listed}",
            "the network overflowed: predict with precision float32, or check the weights",
            MODEL,
        )


@compiled
def _count(
    seed: np.ndarray, foreground: np.float32, first: int, last: int, counts: np.ndarray
) -> None:
    """Write candidates by row, counts (C, H + 1) from column 1 on, for rows first:last."""
    for c in range(len(seed)):
        for row in range(first, last):
            n = 0
            for s in seed[c, row]:
                n += s > foreground
            counts[c, row + 1] = n


@compiled
def _all_finite(maps: np.ndarray, row: int) -> np.bool_:
    """Whether one row of maps (M, H, W) is, by its bits: a loop that runs on whole vectors."""
    most = np.int32(0)
    for m in range(len(maps)):
        for bits in maps[m, row].view(np.int32):
            most = max(most, np.int32(bits & MAGNITUDE))
    return most < INFINITY


@compiled
def _fill(
    maps: tuple[np.ndarray, np.ndarray, np.ndarray],
    foreground: np.float32,
    place: tuple[int, int, int],
    rows: tuple[int, int],
    ends: np.ndarray,
    found: Candidates,
) -> bool:
    """Write the candidates of some rows, class after class; whether all maps are finite there."""
    offset, log_precision, seed = maps
    top, left, image_width = place
    columns = np.empty(seed.shape[2] + 1, np.int32)
    finite = True
    for row in range(rows[0], rows[1]):
        finite &= _all_finite(offset, row)
        finite &= _all_finite(log_precision, row)
        finite &= _all_finite(seed, row)
        place_y = np.float32(top + row) * PER_PIXEL
        for c in range(len(seed)):
            begin, size = ends[c, row], ends[c, row + 1] - ends[c, row]
            if size == 0:
                continue
            n = 0
            row_seed, row_x, row_y = seed[c, row], offset[0, row], offset[1, row]
            for column in range(len(row_seed)):
                columns[n] = column  # written always, kept where n moves on: nothing to mispredict
                n += row_seed[column] > foreground
            for k in range(size):
                column = columns[k]
                found.pixel[begin + k] = (top + row) * image_width + left + column
                found.x[begin + k] = row_x[column] + np.float32(left + column) * PER_PIXEL
                found.y[begin + k] = row_y[column] + place_y
                found.seed[begin + k] = row_seed[column]
            for channel in range(len(log_precision)):
                row_raw = log_precision[channel, row]
                for k in range(size):
                    found.log_precision[channel, begin + k] = row_raw[columns[k]]
    return finite
