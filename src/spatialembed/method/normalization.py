"""Pixel values to network input: to [0, 1], by a fixed mean, or by percentiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spatialembed.errors import SpatialEmbedError
from spatialembed.method.noise import out_of_noise, quiet_noise
from spatialembed.types import Normalization


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W) or (H, W, 3) uint8, uint16 or float -> (3, H, W) float32; grey is repeated.

    Integers are divided by the maximum of their type, floats are kept as they are.
    """
    scale = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
    tensor = torch.from_numpy(image.astype(np.float32) / np.float32(scale))
    if tensor.ndim == 2:
        return tensor.expand(3, *tensor.shape)
    return tensor.permute(2, 0, 1).contiguous()


class Levels(NamedTuple):
    """What a normalisation by percentiles must know of a whole image, by channel, C = 1 or 3.

    In the values of ``to_tensor``: integers divided by the maximum of their type.
    """

    low: np.ndarray  # (C,) the percentile that becomes 0
    high: np.ndarray  # (C,) the one that becomes 1
    least: np.ndarray  # (C,)
    most: np.ndarray  # (C,)


def normalize(image: Tensor, how: Normalization, levels: Levels | None = None) -> Tensor:
    """Normalise one whole image (3, H, W) float32 for the model; same shape.

    levels: of the whole image, where ``image`` is a part of it.

    Percentiles are taken channel by channel over the whole image, so a crop is to be cut after
    this. A channel whose percentiles coincide (a few small objects on a clean ground) goes from its
    minimum to its maximum instead; a constant one becomes 0.
    """
    if how.kind == "none":
        return image
    if how.kind == "fixed":
        mean, std = image.new_tensor(how.mean), image.new_tensor(how.std)
        return (image - mean[:, None, None]) / std[:, None, None]
    channels = image[:1] if image.stride(0) == 0 else image  # grey is one channel, repeated
    if levels is None:
        # torch.quantile refuses more than 16 million values.
        values = channels.flatten(1).numpy()  # (1 or 3, H W)
        low, high = np.percentile(values, (how.low, how.high), axis=1)
        levels = Levels(low, high, values.min(1), values.max(1))
        if how.noise_floor:
            noise = quiet_noise(channels.permute(1, 2, 0).numpy())
            levels = _floored(levels, lambda c: _histogram(values[c]), noise, how)
    return _stretch(channels, levels, how).expand(image.shape)


def _floored(
    levels: Levels,
    histogram: Callable[[int], tuple[np.ndarray, np.ndarray]],
    noise: np.ndarray,
    how: Normalization,
) -> Levels:
    """The levels, apart by what the noise (C,) asks for; histogram: of a channel, where needed."""
    low, high = (np.array(v, np.float64) for v in levels[:2])
    for c, width in enumerate((how.noise_floor * noise).tolist()):
        if high[c] - low[c] < width:
            low[c], high[c] = out_of_noise(low[c], high[c], *histogram(c), width)
    return levels._replace(low=low, high=high)


def _histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, ascending, and how often."""
    there, counts = np.unique(values, return_counts=True)
    return there, counts


def _stretch(channels: Tensor, levels: Levels, how: Normalization) -> Tensor:
    """(C, ., .) with ``low`` to 0 and ``high`` to 1; where they coincide, least and most."""
    low, high, least, most = levels
    apart = high > low
    low, high = np.where(apart, low, least), np.where(apart, high, most)
    first, last = (torch.from_numpy(v.astype(np.float32))[:, None, None] for v in (low, high))
    spread = last - first
    stretched = torch.where(spread > 0, (channels - first) / spread.clamp_min(1e-20), 0.0)
    return stretched if how.ceiling is None else stretched.clamp_max(how.ceiling)


def network_input(image: np.ndarray, how: Normalization, levels: Levels | None = None) -> Tensor:
    """One whole image, (H, W) or (H, W, 3), as the network sees it: (3, H, W) float32.

    levels: of the whole image, where ``image`` is a window of it: its pixels are then the same.

    Raises SpatialEmbedError ``value_range``: floats have no range of their own, and without
    percentiles they must come in [0, 1].
    """
    few_levels = image.dtype == np.uint8 or (image.dtype == np.uint16 and how.kind == "percentile")
    if few_levels and image.size:
        return _by_level(image, how, levels)
    if image.dtype.kind == "f" and how.kind != "percentile":
        check_range(image)
    return normalize(to_tensor(image), how, levels)


def check_range(image: np.ndarray, where: str = "") -> None:
    """Refuse floats beyond [0, 1]: ``value_range``, with ``where`` before the message."""
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        raise SpatialEmbedError(
            "value_range",
            f"{where}float pixels from {low:g} to {high:g}; this model takes them in [0, 1]",
            "divide them by their largest possible value, or train with percentiles",
        )


def _by_level(image: np.ndarray, how: Normalization, known: Levels | None) -> Tensor:
    """``normalize(to_tensor(image), how)`` of uint8 or uint16, to the last bit, but quicker.

    They have few levels: each is normalised once and looked up, and counts give the percentiles.
    """
    # numba: 0.4 s, and not needed to import the package
    from spatialembed.method.kernels.pixels import count_levels, look_up

    flat = np.ascontiguousarray(image).reshape(image.shape[0] * image.shape[1], -1)  # (P, 1 or 3)
    levels = to_tensor(np.arange(int(flat.max()) + 1, dtype=image.dtype)[None])  # (3, 1, L)
    if how.kind == "percentile":
        if known is None:
            counts = count_levels(flat, levels.shape[-1])  # (1 or 3, L)
            known = levels_of_counts(counts, levels[0, 0].numpy(), how, noise_of(image, how))
        table = _stretch(levels[: flat.shape[1]], known, how)
    else:
        table = normalize(levels, how)
        table = table[:1] if flat.shape[1] == 1 and table.stride(0) == 0 else table
    looked_up = torch.from_numpy(look_up(flat, table.flatten(1).contiguous().numpy()))
    return looked_up.view(-1, *image.shape[:2]).expand(3, -1, -1)


def noise_of(image: np.ndarray, how: Normalization) -> np.ndarray | None:
    """Noise (C,) of (H, W) or (H, W, C) in the values of ``to_tensor``; None if nothing asks."""
    if how.kind != "percentile" or not how.noise_floor:
        return None
    scale = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
    return quiet_noise(image) / scale


def levels_of_counts(
    counts: np.ndarray, values: np.ndarray, how: Normalization, noise: np.ndarray | None = None
) -> Levels:
    """Levels of an image by how often, counts (C, L), each of the ascending values (L,) occurs.

    noise: (C,) as ``noise_of`` tells it, for a normalisation with a floor.
    """
    low, high = _percentiles_of_counts(counts, values, (how.low, how.high))
    least, most = (values[i] for i in _first_and_last(counts))
    levels = Levels(low, high, least, most)
    if noise is None:
        return levels
    return _floored(levels, lambda c: (values, counts[c]), noise, how)


def _first_and_last(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest level (C,) that occurs, of counts (C, L)."""
    there = counts > 0
    return there.argmax(1), there.shape[1] - 1 - there[:, ::-1].argmax(1)


def _percentiles_of_counts(
    counts: np.ndarray, levels: np.ndarray, percents: tuple[float, float]
) -> np.ndarray:
    """``np.percentile`` (Q, C), linear, of values given as counts (C, L) of levels (L,)."""
    up_to = counts.cumsum(axis=1)
    last = up_to[0, -1] - 1  # rank of the highest value
    rank = last * np.true_divide(percents, 100)  # (Q,)
    below = np.floor(rank)
    share = (rank - below)[:, None]

    def value(ranks: np.ndarray) -> np.ndarray:
        at = [np.searchsorted(row, np.minimum(ranks, last), side="right") for row in up_to]
        return levels[np.stack(at, axis=1)]  # (Q, C)

    a, b = value(below), value(below + 1)
    # From the nearer end, as numpy does it: the result is the same to the last bit.
    return np.where(share < 0.5, a + (b - a) * share, b - (b - a) * (1 - share))
