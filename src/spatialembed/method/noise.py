"""The floor of a stretch by percentiles: noise is not to be made as bright as objects are.

Where objects cover less than 0.2 % of an image its 99.8 percentile lies in the noise, and a blank
image has nothing else. So the noise is measured where the image is quietest::

    noise      10th percentile of the standard deviation in blocks of 16 x 16 px, by channel, in
               the values of ``to_tensor``; at least two levels of 8 bits in an 8-bit image, of
               which compression may leave nothing but blocks that differ by a few levels
    width      ``noise_floor`` times that; a stretch below it shows nothing but noise
    then       pixels more than a width off the median are objects, if they are at least SIGNAL_PX:
               the stretch ends inside them; without any it is one width

Of 399 training images of four kinds the stretch is 20 to 900 times the noise, of blank ones 5 to 8.
"""

from __future__ import annotations

import logging
import math
import os

import numpy as np

from spatialembed.types import Normalization

logger = logging.getLogger("spatialembed")

BLOCK_PX = 16
BLOCKS = 4096
"""Of an image, evenly spread, if it has more: 1 MP."""
QUIET = 10.0
"""Percentile of the blocks' standard deviations that is taken for noise."""
NOISE_STRETCH = 10.0
"""A stretch of so many times the noise, or less, is warned of."""
LEAST_LEVELS = 2.0
"""Noise of an 8-bit image at least; the shortest stretch of 399 training images is 24 levels."""
SIGNAL_PX = 16
"""Pixels far off the median that are objects; fewer are specks of the sensor."""
SIGNAL_PERCENTILE = 90.0
"""Of those pixels, counted from the median outwards: where the stretch ends."""


def quiet_noise(image: np.ndarray) -> np.ndarray:
    """Standard deviation of the noise of (H, W) or (H, W, C), in its own values: (C,) float64.

    0 for images with a side below 16 px, of which it cannot be told.
    """
    return quiet(block_deviations(image), image.dtype)


def quiet(deviations: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The same of the blocks (blocks, C) of an image of that type."""
    if not len(deviations):
        return np.zeros(deviations.shape[1])
    return np.maximum(
        np.percentile(deviations, QUIET, axis=0), LEAST_LEVELS if dtype == np.uint8 else 0.0
    )


def block_deviations(
    image: np.ndarray, whole_hw: tuple[int, int] | None = None, top: int = 0
) -> np.ndarray:
    """Standard deviation in blocks of 16 x 16 px of (H, W) or (H, W, C): (blocks, C) float64.

    Of a band of whole rows of a larger image, those of the blocks that the whole would give:
    whole_hw its size, top the first row of the band, a multiple of 16.
    """
    pixels = image.reshape(*image.shape[:2], math.prod(image.shape[2:]))
    rows, columns = (side // BLOCK_PX for side in pixels.shape[:2])
    of_rows, of_columns = (side // BLOCK_PX for side in whole_hw or pixels.shape[:2])
    step = max(1, int(np.sqrt(of_rows * of_columns / BLOCKS)))
    first = -(top // BLOCK_PX) % step
    if pixels.dtype in (np.uint8, np.uint16):
        # numba: 0.4 s, and not needed to import the package
        from spatialembed.method.kernels.pixels import block_sums

        sums, squares = block_sums(np.ascontiguousarray(pixels), BLOCK_PX, first, step)
        count = BLOCK_PX * BLOCK_PX
        return np.sqrt(count * squares - sums * sums) / count
    blocks = pixels[: rows * BLOCK_PX, : columns * BLOCK_PX].reshape(
        rows, BLOCK_PX, columns, BLOCK_PX, pixels.shape[2]
    )[first::step, :, ::step]
    return blocks.std(axis=(1, 3), dtype=np.float64).reshape(-1, pixels.shape[2])


def stretch_is_noise(image: np.ndarray, low: float, high: float) -> bool:
    """Whether the percentiles ``low`` and ``high`` of (H, W) or (H, W, C) lie in its noise.

    Of all its channels, from every 16th pixel; a constant image is not noise.
    """
    noise = quiet_noise(image)
    few = image[::4, ::4].reshape(-1, len(noise))
    return is_noise(np.subtract(*np.percentile(few, (high, low), axis=0)), noise)


def is_noise(stretch: np.ndarray, noise: np.ndarray) -> bool:
    """Whether a stretch (C,), above 0, is so short for the noise (C,) that it shows that alone."""
    return bool((stretch > 0).any() and (stretch < NOISE_STRETCH * noise).all())


def warn_of_noise(image: np.ndarray, how: Normalization, source: object) -> None:
    """Log a warning where a normalisation without floor makes objects of an image's noise."""
    if how.noise_floor or how.kind != "percentile" or not image.size:
        return
    if stretch_is_noise(image, how.low, how.high):
        named = isinstance(source, (str, os.PathLike))  # an array would be printed whole
        say_noise(source if named else f"an image of {image.shape[0]} x {image.shape[1]} px")


def say_noise(name: object) -> None:
    """Log that warning of the image of that name."""
    logger.warning("%s: its percentiles lie in the noise, which this model takes for objects", name)


def out_of_noise(
    low: float, high: float, values: np.ndarray, counts: np.ndarray, width: float
) -> tuple[float, float]:
    """The ends of the stretch of one channel whose ends by percentiles are less than a width apart.

    values (L,) ascending, counts (L,): how often each occurs.
    """
    middle = _percentile(values, counts, 50.0)
    ends = [low, high]
    found = False
    for side, sign in enumerate((-1, 1)):
        off = sign * (values - middle) > width
        if counts[off].sum() >= SIGNAL_PX:
            percent = SIGNAL_PERCENTILE if sign > 0 else 100 - SIGNAL_PERCENTILE
            ends[side] = _percentile(values[off], counts[off], percent)
            found = True
    return (ends[0], ends[1]) if found else (low, low + width)


def _percentile(values: np.ndarray, counts: np.ndarray, percent: float) -> float:
    """The value at a rank, without interpolation."""
    up_to = counts.cumsum()
    return float(values[np.searchsorted(up_to, up_to[-1] * percent / 100)])
