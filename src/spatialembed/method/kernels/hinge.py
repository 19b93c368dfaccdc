"""The instance term of the loss on the CPU, float32: value and gradient in one go.

The same arithmetic as the batched torch form in ``loss.py``, which tests hold it against; fused,
since there a pair costs some thirty passes over memory and here one.
"""

from __future__ import annotations

import numpy as np

from spatialembed.method.kernels.jit import compiled, radix_sort

MOST_ACROSS = 2048
"""Bins along an axis at most; of maps that reach farther than this many cells, wider ones."""
LOG_2 = np.float32(np.log(2))
TWICE_ONE_BITS = np.uint32(2 * 0x3F800000)  # of the float32 1.0


@compiled
def instance_term(
    embedding: np.ndarray,
    centers: np.ndarray,
    precisions: np.ndarray,
    number: np.ndarray,
    own_pixels: np.ndarray,
    counts: np.ndarray,
    cell: float,
    limit_cap: float,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean over K instances of the Lovasz hinge of 2 phi - 1, its gradients, and the own phi.

    embedding (2, P), centers (2, K), precisions (2, K) float32 (x, y), in units and 1/unit^2;
    number (P,) int32: instance of the pixel, -1 none, -2 not valid; own_pixels (M,) int64 sorted
    by instance; counts (K,) int64; cell: least side of a bin in units; limit_cap: exponent from
    which on phi counts as 0.
    -> value, gradients by embedding (2, P), centers (2, K) and precisions (2, K), phi (M,).
    """
    starts, columns, cell, low_x, low_y, points = _bin(embedding, number, cell)
    rows = (len(starts) - 1) // columns
    grad_embedding = np.zeros_like(embedding)
    grad_centers = np.zeros(centers.shape, np.float64)
    grad_precisions = np.zeros(precisions.shape, np.float64)
    phi = np.empty(len(own_pixels), np.float32)
    capacity = len(points) + 1
    pixels, exponents = np.empty(capacity, np.int64), np.empty(capacity, np.float32)
    keys, order = np.empty((2, capacity), np.uint32), np.empty((2, capacity), np.int64)
    value = 0.0
    first_own = 0
    for k in range(len(counts)):
        cx, cy, px, py = centers[0, k], centers[1, k], precisions[0, k], precisions[1, k]
        total = counts[k]
        least = np.float32(np.inf)
        for n in range(total):
            pixel = own_pixels[first_own + n]
            dx, dy = embedding[0, pixel] - cx, embedding[1, pixel] - cy
            d = px * dx * dx + py * dy * dy
            least = min(least, d)
            phi[first_own + n] = np.exp(-d)
            pixels[n], exponents[n] = pixel, d
            keys[0, n] = _descending(d, True)
        first_own += total

        # Others from here on have no weight: their error is below that of the last own pixel.
        rest = -np.expm1(-np.float64(least))
        limit = np.float32(min(-np.log(rest) if rest > 0 else np.inf, limit_cap))
        found = total
        reach_x = np.sqrt(limit / px) * 1.00001 + 1e-7
        reach_y = np.sqrt(limit / py) * 1.00001 + 1e-7
        x1, x2 = _span(cx - reach_x, cx + reach_x, low_x, cell, columns)
        y1, y2 = _span(cy - reach_y, cy + reach_y, low_y, cell, rows)
        for row in range(y1, y2 + 1):
            for n in range(starts[row * columns + x1], starts[row * columns + x2 + 1]):
                pixel = points[n]
                dx, dy = embedding[0, pixel] - cx, embedding[1, pixel] - cy
                d = px * dx * dx + py * dy * dy
                if d < limit and number[pixel] != k:
                    pixels[found], exponents[found] = pixel, d
                    keys[0, found] = _descending(d, False)
                    found += 1

        side = radix_sort(keys, order, found)
        own = (cx, cy, px, py)
        gradients = (grad_embedding, grad_centers[:, k], grad_precisions[:, k])
        value += _sum_up(
            embedding, own, total, pixels, exponents, order[side, :found], len(counts), gradients
        )
    return (
        value / max(len(counts), 1),
        grad_embedding,
        grad_centers.astype(np.float32),
        grad_precisions.astype(np.float32),
        phi,
    )


@compiled
def _sum_up(
    embedding: np.ndarray,
    own: tuple[float, float, float, float],
    total: int,
    pixels: np.ndarray,
    exponents: np.ndarray,
    order: np.ndarray,
    instances: int,
    gradients: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> float:
    """Hinge of one instance; adds to the gradients by embedding (2, P), center and precision (2,).

    own: center and precision (x, y). total: its pixels, which stand first in pixels and exponents.
    order: of these, by descending error. The gradients are those of the mean over ``instances``.
    """
    cx, cy, px, py = own
    grad_embedding, grad_center, grad_precision = gradients
    value = 0.0
    own_before = other_before = 0
    for i in order:
        if own_before == total:
            break
        pixel, d = pixels[i], exponents[i]
        union = total + other_before
        if i < total:
            step = 1.0 / union
            error, slope = -2.0 * np.expm1(-d), 2.0 * step * np.exp(-d)
            own_before += 1
        else:
            step = (total - own_before) / (union * (union + 1.0))
            error = 2.0 * np.exp(-d)
            slope = -step * error
            other_before += 1
        value += error * step
        slope /= instances
        dx, dy = embedding[0, pixel] - cx, embedding[1, pixel] - cy
        pull_x, pull_y = 2 * slope * px * dx, 2 * slope * py * dy
        grad_embedding[0, pixel] += pull_x
        grad_embedding[1, pixel] += pull_y
        grad_center[0] -= pull_x
        grad_center[1] -= pull_y
        grad_precision[0] += slope * dx * dx
        grad_precision[1] += slope * dy * dy
    return value


@compiled
def _descending(d: float, own: bool) -> np.uint32:
    """Key that sorts upwards as the error e (own 2 - 2 exp(-d), other 2 exp(-d)) sorts downwards.

    It is made of e or 2 - e, whichever is below 1: near 2, e has lost the digits that tell
    thousands of pixels under a wide bandwidth apart.
    """
    near = d < LOG_2
    part = np.float32(-2) * np.expm1(-d) if near else np.float32(2) * np.exp(-d)
    bits = np.float32(part).view(np.uint32)
    return ~np.uint32(bits if near == own else TWICE_ONE_BITS - bits)


@compiled
def _span(low: float, high: float, origin: float, cell: float, size: int) -> tuple[int, int]:
    """First and last bin of [low, high] on one axis; clamped as floats, a reach can be 1e9."""
    first = min(max(np.floor((low - origin) / cell), 0.0), float(size))
    last = min(max(np.floor((high - origin) / cell), -1.0), size - 1.0)
    return int(first), int(last)


@compiled
def _bin(
    embedding: np.ndarray, number: np.ndarray, cell: float
) -> tuple[np.ndarray, int, float, float, float, np.ndarray]:
    """Valid pixels ordered by cell: starts (cells + 1,), columns, cell, origin, pixels (V,)."""
    low_x = low_y = np.inf
    high_x = high_y = -np.inf
    for i in range(embedding.shape[1]):
        if number[i] != -2:
            low_x, high_x = min(low_x, embedding[0, i]), max(high_x, embedding[0, i])
            low_y, high_y = min(low_y, embedding[1, i]), max(high_y, embedding[1, i])
    cell = max(cell, max(high_x - low_x, high_y - low_y) / MOST_ACROSS)
    columns = int(np.floor((high_x - low_x) / cell)) + 1
    rows = int(np.floor((high_y - low_y) / cell)) + 1
    starts = np.zeros(columns * rows + 2, np.int64)
    where = np.empty(embedding.shape[1], np.int64)
    for i in range(embedding.shape[1]):
        if number[i] != -2:
            column = int(np.floor((embedding[0, i] - low_x) / cell))
            row = int(np.floor((embedding[1, i] - low_y) / cell))
            where[i] = row * columns + column
            starts[where[i] + 2] += 1
    starts = np.cumsum(starts)
    points = np.empty(starts[-1], np.int64)
    for i in range(embedding.shape[1]):
        if number[i] != -2:
            points[starts[where[i] + 1]] = i
            starts[where[i] + 1] += 1
    return starts[:-1], columns, cell, low_x, low_y, points
