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

from spatialembed.files import BROKEN_ARRAYS, atomic_write
from spatialembed.images.resample import resample, scaled_side, source_span
from spatialembed.images.windows import LargeImage
from spatialembed.method.kernels import levels as kernels
from spatialembed.method.noise import block_deviations, quiet
from spatialembed.method.normalization import Levels, check_range, levels_of_counts
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
    def load(cls, path: Path) -> Overview | None:
        """Read what ``save`` has written; None where it is not there, or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                levels = Levels(*(arrays[n] for n in Levels._fields)) if "low" in arrays else None
                return cls(arrays["picture"], levels)
        except BROKEN_ARRAYS:
            return None


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
    counter = _Counter(image) if how.kind == "percentile" else None
    step = max(1, -(-max(image.shape_hw) // side))
    small = rescaled(image, 1 / step)
    picture = np.empty((*small.shape_hw, image.channels), image.dtype)
    deviations = [np.zeros((0, image.channels))]
    for y0, y1 in _bands(image, step):
        band = image.read(y0, y1, 0, image.shape_hw[1])
        if counter is not None:
            counter.add(band)
            if how.noise_floor:
                deviations.append(block_deviations(band))
        elif band.dtype.kind == "f":
            check_range(band, f"{image.name}: ")
        i0, i1 = y0 // step, min(-(-y1 // step), len(picture))
        if i1 > i0:
            part = band if step == 1 else small.read(i0, i1, 0, picture.shape[1])
            picture[i0:i1] = part.reshape(picture[i0:i1].shape)
        advance((y1 - y0) / image.shape_hw[0])
    noise = quiet(np.concatenate(deviations), image.dtype) if how.noise_floor else None
    levels = counter.levels(how, noise) if counter is not None else None
    return Overview(picture[..., 0] if image.channels == 1 else picture, levels)


def _bands(image: LargeImage, step: int) -> Iterator[tuple[int, int]]:
    """Rows y0:y1 of one band after the other, from multiples of ``step`` on."""
    height, width = image.shape_hw
    rows = step * max(1, BAND_PIXELS // (width * step))
    for y0 in range(0, height, rows):
        yield y0, min(y0 + rows, height)


class _Counter:
    """How often each level of an image occurs: of floats, the upper half of their bits first."""

    def __init__(self, image: LargeImage) -> None:
        self._image = image
        self._levels = HALF if image.dtype.kind == "f" else np.iinfo(image.dtype).max + 1
        self._counts = np.zeros((image.channels, self._levels), np.int64)

    def add(self, band: np.ndarray) -> None:
        pixels = band.reshape(-1, self._image.channels)
        if band.dtype.kind == "f":
            pixels = (_keys(pixels) >> 16).astype(np.uint16)
        self._counts += kernels.count_levels(pixels, self._levels)

    def levels(self, how: Normalization, noise: np.ndarray | None) -> Levels:
        if self._image.dtype.kind == "f":
            return self._float_levels(how, noise)
        most = np.float32(self._levels - 1)
        values = np.arange(self._levels).astype(np.float32) / most  # as to_tensor has them
        return levels_of_counts(self._counts, values, how, None if noise is None else noise / most)

    def _float_levels(self, how: Normalization, noise: np.ndarray | None) -> Levels:
        """The lower halves are counted where the percentiles fall, in a second pass."""
        bins = np.unique(np.concatenate([_bins(counts, how) for counts in self._counts]))
        fine = np.zeros((len(self._counts), len(bins) * HALF), np.int64)
        for y0, y1 in _bands(self._image, 1):
            band = self._image.read(y0, y1, 0, self._image.shape_hw[1])
            for c, keys in enumerate(_keys(band.reshape(-1, len(fine))).T):
                inside = keys[np.isin(keys >> 16, bins)]
                at = np.searchsorted(bins, inside >> 16) * HALF + (inside & (HALF - 1))
                fine[c] += np.bincount(at, minlength=fine.shape[1])
        others = np.setdiff1d(np.arange(HALF), bins)
        keys = np.concatenate(((bins[:, None] * HALF + np.arange(HALF)).ravel(), others * HALF))
        counts = np.concatenate((fine, self._counts[:, others]), axis=1)
        there = np.flatnonzero(counts.any(0))  # without the bits of NaN and infinities
        there = there[np.argsort(keys[there])]
        values = _values(keys[there].astype(np.uint32))
        return levels_of_counts(counts[:, there], values, how, noise)


def _keys(values: np.ndarray) -> np.ndarray:
    """The bits of float32 as uint32 of the same order and shape."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _values(keys: np.ndarray) -> np.ndarray:
    """The float32 of such uint32."""
    return np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys).view(np.float32)


def _bins(counts: np.ndarray, how: Normalization) -> np.ndarray:
    """Upper halves (of counts (65536,)) in which the least, the most and the percentiles lie."""
    last = int(counts.sum()) - 1
    below = np.floor(last * np.array((how.low, how.high)) / 100)
    ranks = np.concatenate(([0, last], below - 1, below, below + 1)).clip(0, last)
    return np.searchsorted(counts.cumsum(), ranks, side="right")
