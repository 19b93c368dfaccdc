"""The first pass over a large image: what normalisation must know of it, and a small picture.

Integers are counted level by level. Floats are counted by the upper half of their bits, put in the
order of their values, and once more by the lower half where the percentiles fall: so both kinds of
percentiles are those of all pixels, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spatialembed.errors import SpatialEmbedError
from spatialembed.files import atomic_write
from spatialembed.images.resample import resample, scaled_side, source_span
from spatialembed.images.windows import LargeImage
from spatialembed.method.kernels import levels as kernels
from spatialembed.method.normalization import Levels, levels_of_counts
from spatialembed.types import Normalization

BAND_PIXELS = 1 << 23
"""The image is read in bands of about this many pixels."""
HALF = 1 << 16
"""Values of one half of the bits of a float32."""


class Overview(NamedTuple):
    """What one look at a whole image gives."""

    picture: np.ndarray  # (h, w) or (h, w, 3), its dtype: the image reduced by a whole factor
    levels: Levels | None  # None where the normalisation does not need them

    def save(self, path: Path) -> None:
        """Write it as an ``.npz``."""
        levels = {} if self.levels is None else self.levels._asdict()
        with atomic_write(path) as temporary:
            np.savez(temporary, picture=self.picture, **levels)

    @classmethod
    def load(cls, path: Path) -> Overview:
        """Read what ``save`` has written."""
        with np.load(path) as arrays:
            levels = Levels(*(arrays[n] for n in Levels._fields)) if "low" in arrays else None
            return cls(arrays["picture"], levels)


def rescaled(image: LargeImage, factor: float) -> LargeImage:
    """The image at ``factor`` in (0, 1] of its size; what a window shows does not depend on it."""
    if factor == 1:
        return image
    height, width = image.shape_hw

    def read(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        rows = source_span(y0, y1, height, factor)
        columns = source_span(x0, x1, width, factor)
        source = image.read(*rows, *columns)
        corner = (rows[0], columns[0])
        return resample(source, corner, image.shape_hw, (y0, y1, x0, x1), factor)

    shape_hw = (scaled_side(height, factor), scaled_side(width, factor))
    return replace(image, shape_hw=shape_hw, window=read)


def look_over(
    image: LargeImage,
    how: Normalization,
    *,
    side: int,
    advance: Callable[[float], None] = lambda share: None,
) -> Overview:
    """Read an image once, band by band; a float image that needs percentiles twice.

    side: longest side of the picture, px. advance: called after each band with its share.

    Raises SpatialEmbedError: those of ``LargeImage.read``; value_range as ``network_input`` does.
    """
    wanted = how.kind == "percentile"
    counter = None
    if wanted:
        counter = _Counter(image) if image.dtype.kind == "u" else _FloatCounter(image)
    step = max(1, -(-max(image.shape_hw) // side))
    small = rescaled(image, 1 / step)
    picture = np.empty((*small.shape_hw, image.channels), image.dtype)
    for y0, y1 in _bands(image, step):
        band = image.read(y0, y1, 0, image.shape_hw[1])
        if counter is not None:
            counter.add(band)
        elif band.dtype.kind == "f":
            _check_range(image.name, band)
        i0, i1 = y0 // step, min(-(-y1 // step), len(picture))
        if i1 > i0:
            part = band if step == 1 else small.read(i0, i1, 0, picture.shape[1])
            picture[i0:i1] = part.reshape(picture[i0:i1].shape)
        advance((y1 - y0) / image.shape_hw[0])
    levels = counter.levels(how) if counter is not None else None
    return Overview(picture[..., 0] if image.channels == 1 else picture, levels)


def _bands(image: LargeImage, step: int) -> Iterator[tuple[int, int]]:
    """Rows y0:y1 of one band after the other, from multiples of ``step`` on."""
    height, width = image.shape_hw
    rows = step * max(1, BAND_PIXELS // (width * step))
    for y0 in range(0, height, rows):
        yield y0, min(y0 + rows, height)


def _check_range(name: str, band: np.ndarray) -> None:
    low, high = float(band.min()), float(band.max())
    if low < 0 or high > 1:
        raise SpatialEmbedError(
            "value_range",
            f"{name}: float pixels from {low:g} to {high:g}; this model takes them in [0, 1]",
            "divide them by their largest possible value, or train with percentiles",
        )


class _Counter:
    """How often each level of an integer image occurs."""

    def __init__(self, image: LargeImage) -> None:
        self._dtype = image.dtype
        self._counts = np.zeros((image.channels, np.iinfo(image.dtype).max + 1), np.int64)

    def add(self, band: np.ndarray) -> None:
        channels, levels = self._counts.shape
        self._counts += kernels.count_levels(band.reshape(-1, channels), levels)

    def levels(self, how: Normalization) -> Levels:
        most = np.float32(np.iinfo(self._dtype).max)
        values = np.arange(self._counts.shape[1]).astype(np.float32) / most  # as to_tensor has them
        return levels_of_counts(self._counts, values, how)


class _FloatCounter:
    """The same of a float image: upper halves as bands come, lower ones by a second look."""

    def __init__(self, image: LargeImage) -> None:
        self._image = image
        self._upper = np.zeros((image.channels, HALF), np.int64)

    def add(self, band: np.ndarray) -> None:
        for c, key in enumerate(_keys(band)):
            self._upper[c] += np.bincount(key >> 16, minlength=HALF)

    def levels(self, how: Normalization) -> Levels:
        bins = [_bins(counts, how) for counts in self._upper]
        lower = [dict.fromkeys(its, np.zeros(HALF, np.int64)) for its in bins]
        for y0, y1 in _bands(self._image, 1):
            band = self._image.read(y0, y1, 0, self._image.shape_hw[1])
            for fine, key in zip(lower, _keys(band), strict=True):
                for b in fine:
                    here = key[key >> 16 == b] & (HALF - 1)
                    fine[b] = fine[b] + np.bincount(here, minlength=HALF)
        of_channels = [
            levels_of_counts(*_merged(counts, fine), how)
            for counts, fine in zip(self._upper, lower, strict=True)
        ]
        return Levels(*(np.concatenate(column) for column in zip(*of_channels, strict=True)))


def _keys(band: np.ndarray) -> Iterator[np.ndarray]:
    """Of each channel the bits (P,) of its values, as integers of the same order."""
    for c in range(1 if band.ndim == 2 else band.shape[2]):
        values = band if band.ndim == 2 else band[..., c]
        bits = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
        yield np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _values(keys: np.ndarray) -> np.ndarray:
    """The float32 of such integers."""
    bits = np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys)
    return bits.astype(np.uint32).view(np.float32)


def _bins(counts: np.ndarray, how: Normalization) -> set[int]:
    """Upper halves (of counts (65536,)) in which the least, the most and the percentiles lie."""
    last = int(counts.sum()) - 1
    ranks = {0, last}
    for percent in (how.low, how.high):
        below = int(np.floor(last * percent / 100))
        ranks |= {max(below - 1, 0), below, min(below + 1, last)}  # rounding of the rank is covered
    return {int(b) for b in np.searchsorted(counts.cumsum(), sorted(ranks), side="right")}


def _merged(upper: np.ndarray, fine: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Counts (1, L) and values (L,): coarse by upper half, in single floats where they matter."""
    counts, keys = [], []
    for b in np.flatnonzero(upper):
        if int(b) in fine:
            there = np.flatnonzero(fine[int(b)])
            counts.append(fine[int(b)][there])
            keys.append((np.uint32(b) << np.uint32(16)) + there.astype(np.uint32))
        else:
            counts.append(upper[b : b + 1])
            keys.append(np.array([b << 16], np.uint32))
    return np.concatenate(counts)[None], _values(np.concatenate(keys))
