"""Passes over the pixels of an image as it is read: its levels, its blocks, PNG's filters."""

from __future__ import annotations

import numpy as np

from spatialembed.method.kernels.jit import compiled


@compiled
def count_levels(image: np.ndarray, levels: int) -> np.ndarray:
    """How often each level occurs: image (P, C) uint8 or uint16 below ``levels`` -> (C, levels)."""
    pixels, channels = image.shape
    # Neighbours have the same level, and a counter waits for its last increment: four take turns.
    lanes = 4 if levels <= 256 else 1
    counts = np.zeros((lanes, channels, levels), np.int64)
    for i in range(pixels):
        lane = i % lanes
        for c in range(channels):
            counts[lane, c, image[i, c]] += 1
    return counts.sum(axis=0)


@compiled
def look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each pixel by a table: image (P, C) uint8 or uint16, table (K, levels) float32 -> (K, P).

    C is K, or 1: then one channel goes through K tables.
    """
    pixels, channels = image.shape
    result = np.empty((len(table), pixels), np.float32)
    for k in range(len(table)):
        c = k if channels > 1 else 0
        for i in range(pixels):
            result[k, i] = table[k, image[i, c]]
    return result


@compiled
def block_sums(image: np.ndarray, side: int, first: int, step: int) -> np.ndarray:
    """Sums of blocks and of their squares: (H, W, C) uint8 or uint16 -> (2, blocks, C) int64.

    Whole blocks of ``side`` px, row by row: rows of blocks from the ``first`` on and columns from
    0, both by ``step``.
    """
    height, width, channels = image.shape
    rows = range(first, height // side, step)
    columns = range(0, width // side, step)
    sums = np.zeros((2, len(rows) * len(columns), channels), np.int64)
    block = 0
    for row in rows:
        for column in columns:
            for y in range(row * side, (row + 1) * side):
                for x in range(column * side, (column + 1) * side):
                    for c in range(channels):
                        value = np.int64(image[y, x, c])
                        sums[0, block, c] += value
                        sums[1, block, c] += value * value
            block += 1
    return sums


@compiled
def unfilter(rows: np.ndarray, before: np.ndarray, step: int) -> int:
    """Undo the filters of PNG rows (N, 1 + W) uint8, in place (ISO/IEC 15948, 9).

    The first byte of each names its filter. before: (W,) the row above, undone; zeros above the
    first. step: bytes of a pixel. Returns the first row whose filter does not exist, -1 where all
    do.
    """
    count, width = rows.shape[0], rows.shape[1] - 1
    for n in range(count):
        kind, row = rows[n, 0], rows[n, 1:]
        if kind > 4:
            return n
        for i in range(width if kind else 0):
            left = np.int64(row[i - step]) if i >= step else 0
            up = np.int64(before[i])
            guess = left  # 1: sub
            if kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) >> 1  # seven times as quick as // 2
            elif kind == 4:  # Paeth: the nearest of three to left + up - corner
                corner = np.int64(before[i - step] if i >= step else 0)
                to_left, to_up = abs(up - corner), abs(left - corner)
                to_corner = abs(left + up - 2 * corner)
                if to_left > to_up or to_left > to_corner:
                    guess = up if to_up <= to_corner else corner
            row[i] = np.uint8((np.int64(row[i]) + guess) & 255)
        before = row
    return -1
