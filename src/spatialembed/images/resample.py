"""Images at another size, window by window: what a window gives is what the whole would give there.

    place     output px i stands at (i + 1/2) / factor - 1/2 in px of the source
    filter    a triangle of half-width max(1, 1 / factor): bilinear when enlarged, antialiased when
              reduced; what falls outside the source is left out, and the weights sum to 1
    back      px i of the image takes its label from px floor((i + 1/2) factor) of the small one

numpy and scipy only. The weights follow from the place in the whole image, and are added in one
order, so that windows fit together to the last bit.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import sparse


def scaled_side(side: int, factor: float) -> int:
    """Length of an axis of ``side`` px at ``factor``, at least 1."""
    return max(1, round(side * factor))


def source_span(begin: int, end: int, side: int, factor: float) -> tuple[int, int]:
    """Source px that the output px begin:end of an axis of ``side`` source px depend on."""
    reach = max(1.0, 1 / factor)
    first = (begin + 0.5) / factor - 0.5 - reach
    last = (end - 0.5) / factor - 0.5 + reach
    return max(0, math.floor(first)), min(side, math.ceil(last) + 1)


def resample(
    source: np.ndarray,
    source_corner: tuple[int, int],
    source_hw: tuple[int, int],
    window: tuple[int, int, int, int],
    factor: float,
) -> np.ndarray:
    """One window of an image at ``factor``: (h, w) or (h, w, C), the dtype of the source.

    source: the part of the image, (., .) or (., ., C), that ``source_span`` asks for along both
    axes. source_corner: its y, x in the image, source_hw: the size of the image. window: y0, y1,
    x0, x1 of the wanted output. Integers are rounded to the nearest.
    """
    y0, y1, x0, x1 = window
    down = _weights(y0, y1, source_hw[0], factor, source_corner[0], source.shape[0])  # (h, h_s)
    across = _weights(x0, x1, source_hw[1], factor, source_corner[1], source.shape[1])  # (w, w_s)
    planes = source[..., None] if source.ndim == 2 else source
    result = np.empty((y1 - y0, x1 - x0, planes.shape[2]), source.dtype)
    for c in range(planes.shape[2]):
        values = across @ (down @ planes[..., c].astype(np.float32)).T  # (w, h)
        result[..., c] = np.rint(values.T) if source.dtype.kind in "iu" else values.T
    return result[..., 0] if source.ndim == 2 else result


def reduced(image: np.ndarray, factor: float) -> np.ndarray:
    """A whole image (H, W) or (H, W, C) at ``factor`` of its size."""
    size_hw = (image.shape[0], image.shape[1])
    height, width = (scaled_side(side, factor) for side in size_hw)
    return resample(image, (0, 0), size_hw, (0, height, 0, width), factor)


def _weights(
    begin: int, end: int, side: int, factor: float, corner: int, length: int
) -> sparse.csr_array:
    """Weights (end - begin, length) float32 of source px corner.. for the output px begin:end."""
    reach = max(1.0, 1 / factor)
    centre = (np.arange(begin, end) + 0.5) / factor - 0.5  # (n,) in source px
    first = np.floor(centre - reach).astype(np.int64) + 1
    taps = math.ceil(2 * reach) + 1
    at = first[:, None] + np.arange(taps)  # (n, taps)
    weight = np.maximum(0, 1 - np.abs(at - centre[:, None]) / reach)
    weight[(at < 0) | (at >= side)] = 0
    weight /= weight.sum(1, keepdims=True)
    kept = weight > 0
    rows = np.broadcast_to(np.arange(end - begin)[:, None], at.shape)[kept]
    entries = (weight[kept].astype(np.float32), (rows, at[kept] - corner))
    return sparse.csr_array(entries, shape=(end - begin, length))


def nearest_index(begin: int, end: int, small: int, factor: float) -> np.ndarray:
    """Which px of an axis of ``small`` px the full-size px begin:end take their label from."""
    at = ((np.arange(begin, end) + 0.5) * factor).astype(np.int64)
    return np.minimum(at, small - 1)


def enlarged(values: np.ndarray, size_hw: tuple[int, int], factor: float) -> np.ndarray:
    """Labels, or another map, (h, w) found at ``factor``, at the size (H, W) of the image itself.

    factor is at most 1, so that every label is there again.
    """
    rows, columns = (
        nearest_index(0, side, small, factor)
        for side, small in zip(size_hw, values.shape, strict=True)
    )
    return values[rows[:, None], columns]
