"""Compiled functions on several threads.

numba's own parallel loops are not used: they may not be entered from two Python threads at once,
and hang after a fork. A pool of our own for each call costs a tenth of a millisecond and does
neither; the functions release the interpreter lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def usable(threads: int | None) -> int:
    """``threads``, or if None as many as the process may use."""
    if threads is not None:
        return max(1, threads)
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: what taskset and cgroups leave
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def spread(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], threads: int) -> list:
    """``function(*job)`` of each job, in the order of the jobs."""
    if threads == 1 or len(jobs) < 2:
        return [function(*job) for job in jobs]
    with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
        return list(pool.map(lambda job: function(*job), jobs))
