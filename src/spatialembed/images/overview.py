"""The first pass over a large image: what normalisation must know of it, and a small picture.

Integers are counted level by level: their percentiles are those of all pixels, to the last bit.
Of floats so are the least and the most; percentiles are those of every k-th pixel along both axes,
where an image has more than ``SAMPLED`` values. Noise is that of the blocks of the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spatialembed.files import BROKEN_ARRAYS, atomic_write
from spatialembed.images.resample import resample, scaled_side, source_span
from spatialembed.images.windows import LargeImage
from spatialembed.method.kernels.pixels import count_levels
from spatialembed.method.noise import BLOCK_PX, block_deviations, is_noise, quiet, say_noise
from spatialembed.method.normalization import Levels, check_range, levels_of_counts
from spatialembed.types import Normalization

BAND_PIXELS = 1 << 23
"""The image is read in bands of about this many pixels."""
SAMPLED = 1 << 23
"""Values of a float image from which percentiles are taken: a rank is off by 1e-5 or so."""


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
    """Read an image once, band by band.

    side: longest side of the picture, px. advance: called after each band with its share.

    Raises SpatialEmbedError: those of ``LargeImage.read``; value_range as ``network_input`` does.
    """
    values = (_Sample if image.dtype.kind == "f" else _Counts)(image)
    step = max(1, -(-max(image.shape_hw) // side))
    small = rescaled(image, 1 / step)
    picture = np.empty((*small.shape_hw, image.channels), image.dtype)
    deviations = [np.zeros((0, image.channels))]
    rest = np.empty((0, image.shape_hw[1], image.channels), image.dtype)  # of a row of blocks
    for y0, y1 in _bands(image, step):
        band = image.read(y0, y1, 0, image.shape_hw[1])
        if how.kind == "percentile":
            values.add(band, y0)
            rest = np.concatenate((rest, band.reshape(len(band), *rest.shape[1:])))
            whole = len(rest) // BLOCK_PX * BLOCK_PX
            deviations.append(block_deviations(rest[:whole], image.shape_hw, y1 - len(rest)))
            rest = rest[whole:]
        elif band.dtype.kind == "f":
            check_range(band, f"{image.name}: ")
        i0, i1 = y0 // step, min(-(-y1 // step), len(picture))
        if i1 > i0:
            part = band if step == 1 else small.read(i0, i1, 0, picture.shape[1])
            picture[i0:i1] = part.reshape(picture[i0:i1].shape)
        advance((y1 - y0) / image.shape_hw[0])
    levels = None
    if how.kind == "percentile":
        noise = quiet(np.concatenate(deviations), image.dtype)
        levels = values.levels(how, noise if how.noise_floor else None)
        most = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
        if not how.noise_floor and is_noise((levels.high - levels.low) * most, noise):
            say_noise(image.name)
    return Overview(picture[..., 0] if image.channels == 1 else picture, levels)


def _bands(image: LargeImage, step: int) -> Iterator[tuple[int, int]]:
    """Rows y0:y1 of one band after the other, from multiples of ``step`` on."""
    height, width = image.shape_hw
    rows = step * max(1, BAND_PIXELS // (width * step))
    for y0 in range(0, height, rows):
        yield y0, min(y0 + rows, height)


class _Counts:
    """How often each level of an image of integers occurs."""

    def __init__(self, image: LargeImage) -> None:
        self._counts = np.zeros((image.channels, np.iinfo(image.dtype).max + 1), np.int64)

    def add(self, band: np.ndarray, top: int) -> None:
        channels, levels = self._counts.shape
        self._counts += count_levels(band.reshape(-1, channels), levels)

    def levels(self, how: Normalization, noise: np.ndarray | None) -> Levels:
        most = np.float32(self._counts.shape[1] - 1)
        values = np.arange(self._counts.shape[1]).astype(np.float32) / most  # as to_tensor has them
        return levels_of_counts(self._counts, values, how, None if noise is None else noise / most)


class _Sample:
    """Every k-th pixel of an image of floats along both axes, and its least and most of all."""

    def __init__(self, image: LargeImage) -> None:
        self._every = math.isqrt(max(0, math.prod(image.shape_hw) - 1) // SAMPLED) + 1
        self._pixels = [np.zeros((0, image.channels), np.float32)]
        self._ends = [np.full(image.channels, v, np.float32) for v in (np.inf, -np.inf)]

    def add(self, band: np.ndarray, top: int) -> None:
        every, channels = self._every, self._pixels[0].shape[1]
        self._pixels.append(band[-top % every :: every, ::every].reshape(-1, channels))
        pixels = band.reshape(-1, channels)
        self._ends[0] = np.minimum(self._ends[0], pixels.min(0))
        self._ends[1] = np.maximum(self._ends[1], pixels.max(0))

    def levels(self, how: Normalization, noise: np.ndarray | None) -> Levels:
        columns = np.concatenate(self._pixels).T  # (C, P)
        values = np.unique(columns)
        counts = [np.bincount(np.searchsorted(values, c), minlength=len(values)) for c in columns]
        least, most = self._ends
        levels = levels_of_counts(np.stack(counts), values, how, noise)
        return levels._replace(least=least, most=most)
