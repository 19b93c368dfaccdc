"""Threads: as many as the process may use, and work done ahead, handed out in order.

Threads, not processes: Pillow, zlib, tifffile, torch and our kernels all let go of the interpreter
while they work, and pixels need not be copied to another process. numba's own parallel loops are
not used: they may not be entered from two Python threads at once, and hang after a fork.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_HELPERS = 8
"""More threads than this would wait for the interpreter, and hold more images in memory."""


def usable(threads: int | None = None) -> int:
    """``threads``, at least 1; None: as many cores as the process may use."""
    if threads is not None:
        return max(1, threads)
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: what taskset and cgroups leave
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def helpers() -> int:
    """How many threads may read or write beside the network: half of the usable cores, 1 to 8."""
    return max(1, min(MOST_HELPERS, usable() // 2))


def spread(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], threads: int) -> list:
    """``function(*job)`` of each job, in the order of the jobs."""
    if threads == 1 or len(jobs) < 2:
        return [function(*job) for job in jobs]
    with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
        return list(pool.map(lambda job: function(*job), jobs))


def prefetch(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    room: Callable[[Result], int],
) -> Iterator[Result]:
    """``work(item)`` of each item, in order, while the caller looks at the ones before.

    items are taken in the caller's thread. room: how many results may wait or be under way, told
    from the latest result; until there is one, a single item is. An exception of ``work`` or of
    ``items`` is raised in its turn. A caller that stops early does not wait for what runs: if it
    left that to the garbage collector, any thread may be here, also one that starts and holds the
    lock that is needed to join another one.
    """
    source = iter(items)
    fault: BaseException | None = None
    most, stopped = 0, False
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    pending: deque[Future[Result]] = deque()
    try:
        while fault is None or pending:
            if fault is None and len(pending) <= most:
                try:
                    pending.append(pool.submit(work, next(source)))
                except BaseException as error:  # what is under way comes before it
                    fault = error
                continue
            result = pending.popleft().result()
            most = max(1, room(result))
            yield result
    except GeneratorExit:
        stopped = True
        raise
    finally:
        pool.shutdown(wait=not stopped, cancel_futures=True)
    if not isinstance(fault, StopIteration):
        assert fault is not None
        raise fault
