"""From the network's maps to the candidates of the clustering, on the CPU, without torch.

Embeddings are computed for candidates alone: the maps are read twice (a check and a
count by row, then the filling), and nothing of their size is written.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spatialembed.errors import MODEL, SpatialEmbedError
from spatialembed.kernels.jit import compiled
from spatialembed.kernels.threads import spread, usable

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
    height, width = seed.shape[1:]
    workers = min(usable(threads), 1 + height * width // PER_THREAD)
    counts = np.zeros((len(seed), height), np.int64)
    rows = _shares(height, workers)
    bits = [m.view(np.int32) for m in (offset, log_precision, seed)]
    low = np.float32(foreground)
    if not all(spread(_count, [(*bits, seed, low, *share, counts) for share in rows], workers)):
        check_finite(offset, log_precision, seed, name)
    place = (*origin_yx, image_width or width)
    found = []
    for c in range(len(seed)):
        ends = counts[c].cumsum()
        new = _empty(int(ends[-1]) if height else 0, len(log_precision))
        maps = (offset, log_precision, seed[c])
        spread(_fill, [(maps, low, place, *share, ends, *new) for share in rows], workers)
        found.append(new)
    return found


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


def _shares(height: int, workers: int) -> list[tuple[int, int]]:
    """Rows first:last of each worker."""
    return [(height * i // workers, height * (i + 1) // workers) for i in range(workers)]


def _empty(points: int, channels: int) -> Candidates:
    return Candidates(
        np.empty(points, np.int64),
        np.empty(points, np.float32),
        np.empty(points, np.float32),
        np.empty((channels, points), np.float32),
        np.empty(points, np.float32),
    )


@compiled
def _all_finite(bits: np.ndarray, row: int) -> bool:
    """Of one row of maps (M, H, W) as bits, int32."""
    most = np.int32(0)
    for m in range(len(bits)):
        for b in bits[m, row]:
            most = max(most, np.int32(b & MAGNITUDE))
    return most < INFINITY


@compiled
def _count(
    offset_bits: np.ndarray,
    log_precision_bits: np.ndarray,
    seed_bits: np.ndarray,
    seed: np.ndarray,
    foreground: np.float32,
    first: int,
    last: int,
    counts: np.ndarray,
) -> bool:
    """Write ``counts`` (C, H) of candidates for rows first:last; whether all maps are finite."""
    finite = True
    for row in range(first, last):
        finite &= _all_finite(offset_bits, row)
        finite &= _all_finite(log_precision_bits, row)
        finite &= _all_finite(seed_bits, row)
        for c in range(len(seed)):
            n = 0
            for s in seed[c, row]:
                n += s > foreground
            counts[c, row] = n
    return finite


@compiled
def _fill(
    maps: tuple[np.ndarray, np.ndarray, np.ndarray],
    foreground: np.float32,
    place: tuple[int, int, int],
    first: int,
    last: int,
    ends: np.ndarray,
    pixel: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    raw: np.ndarray,
    seed: np.ndarray,
) -> None:
    """Fill the arrays of the candidates of rows first:last; those of row r end at ends[r]."""
    offset, log_precision, seeds = maps
    top, left, image_width = place
    columns = np.empty(seeds.shape[1] + 1, np.int32)
    begin = ends[first - 1] if first else 0
    for row in range(first, last):
        end = ends[row]
        if begin == end:
            continue
        n = 0
        row_seed, row_x, row_y = seeds[row], offset[0, row], offset[1, row]
        for column in range(len(row_seed)):
            columns[n] = column  # written always, kept where n moves on: nothing to mispredict
            n += row_seed[column] > foreground
        pixels, xs, ys, ss = pixel[begin:end], x[begin:end], y[begin:end], seed[begin:end]
        place_y = np.float32(top + row) * PER_PIXEL
        for k in range(end - begin):
            column = columns[k]
            pixels[k] = (top + row) * image_width + left + column
            xs[k] = row_x[column] + np.float32(left + column) * PER_PIXEL
            ys[k] = row_y[column] + place_y
            ss[k] = row_seed[column]
        for channel in range(len(log_precision)):
            row_raw, raws = log_precision[channel, row], raw[channel, begin:end]
            for k in range(end - begin):
                raws[k] = row_raw[columns[k]]
        begin = end
