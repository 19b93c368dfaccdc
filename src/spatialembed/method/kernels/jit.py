"""The one way kernels are compiled, and the sort that loss and clustering share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

RADIX_BITS = 11
"""Of one sorting pass: its 2048 counters stay in the first-level cache."""
RADIX = 1 << RADIX_BITS


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call; keep that on disk where a cache folder can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba's "no locator available"
        return numba.njit(nogil=True)(function)


@compiled
def radix_sort(keys: np.ndarray, order: np.ndarray, count: int) -> int:
    """Stable order of keys[0, :count] uint32 upwards -> the row of ``order`` that holds it.

    keys, order (2, >= count): the other rows are room to work in. Small keys need fewer passes.
    """
    most = np.uint32(0)
    for n in range(count):
        order[0, n] = n
        most = max(most, keys[0, n])
    side = 0
    for shift in range(0, 32, RADIX_BITS):
        if most >> np.uint32(shift) == 0:
            break
        places = np.zeros(RADIX + 1, np.int64)
        for n in range(count):
            places[((keys[side, n] >> np.uint32(shift)) & np.uint32(RADIX - 1)) + 1] += 1
        places = np.cumsum(places)
        for n in range(count):
            digit = (keys[side, n] >> np.uint32(shift)) & np.uint32(RADIX - 1)
            keys[1 - side, places[digit]] = keys[side, n]
            order[1 - side, places[digit]] = order[side, n]
            places[digit] += 1
        side = 1 - side
    return side
