"""The driver: plan, shards on some engine, merge. It imports no torch, and of itself no Ray.

Correctness lies in plan and shards. An engine carries numbers; it may lose them, or do them twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from spatialembed.bulk.ledger import Ledger
from spatialembed.bulk.local_pool import LocalPool
from spatialembed.bulk.merge import merge
from spatialembed.bulk.options import THRESHOLDS, BulkOptions
from spatialembed.bulk.plan import Plan, make_or_check, read_plan
from spatialembed.bulk.process import Message
from spatialembed.bulk.sources import list_inputs
from spatialembed.bulk.store import Bucket, Folder, open_store
from spatialembed.bulk.todo import Report, Todo
from spatialembed.console import Stages, console
from spatialembed.errors import PARTIAL, RESOURCE, SpatialEmbedError, check
from spatialembed.files import locked
from spatialembed.images.listing import mark_results

logger = logging.getLogger("spatialembed")
SAY_EVERY_S = 60
"""How often progress is said where no terminal shows it."""


class Pool(Protocol):
    """An engine: ``LocalPool`` or ``RayPool``."""

    def facts(self, settings: Message) -> Message:
        """What results follow from there."""

    def reports(self, todo: Todo, settings: Message) -> Iterator[Report | None]:
        """Shards as they are done, and None about every second."""

    def state(self) -> str:
        """What it is doing, in a few words."""

    def close(self) -> None:
        """End all that it started."""


@dataclass
class BulkResult:
    """What ``run`` did, over all runs on one plan."""

    out: str
    images: int  # with results
    objects: int
    failed: int

    @property
    def exit_code(self) -> int:
        """Of the command line: 0, or 6 if some inputs failed."""
        return PARTIAL if self.failed else 0


def run(options: BulkOptions, *, progress: bool = True) -> BulkResult:
    """Predict any number of images; the same call continues after whatever ended the one before.

    Args:
        options: See ``BulkOptions``.
        progress: Whether to draw a bar on stderr, or to log a line a minute where that is no
            terminal.

    Returns:
        Counts of the results, which lie in ``options.out``.

    Raises:
        SpatialEmbedError: those of ``list_inputs``, ``predictor.load``, ``make_or_check``,
            ``files.locked`` and ``merge``; ``no_progress`` (exit 5), ``store_failed``,
            ``shard_differs`` and ``worker_died``. What is done stays done.
    """
    check(options.shard >= 1, f"shard is {options.shard}", "give 1 or more")
    check(options.no_progress > 0, f"no_progress is {options.no_progress}", "give some minutes")
    check(bool(options.on), "on is empty", "give local, ray or the address of a cluster")
    workers = options.workers
    check(workers is None or workers >= 1, f"workers is {workers}", "give 1 or more")
    store, images = open_store(options.out), list_inputs(options.sources, options.out)
    with _held(store):
        settings = _settings(options, store, len(images), read_plan(store))
        pool = _pool(options)
        try:
            facts = pool.facts(settings)["fingerprint"]
            facts |= {"parquet": settings["parquet"]}
            plan = make_or_check(store, images, facts, options.shard, options.append)
            del images
            _do(pool, store, plan, settings, progress)
        finally:
            pool.close()
        tally = merge(store, plan, settings["parquet"])
        store.tidy()
    return BulkResult(options.out, tally.images, tally.objects, tally.failed)


@contextmanager
def _held(store: Folder | Bucket) -> Iterator[None]:
    """A folder is for one driver at a time; in a bucket a second one does no harm."""
    with locked(store.root) if isinstance(store, Folder) else nullcontext():
        if isinstance(store, Folder):
            mark_results(store.root)
            store.check()
        yield


def _settings(
    options: BulkOptions, store: Folder | Bucket, images: int, plan: Plan | None
) -> Message:
    """What a worker is started with; what was chosen once stays chosen."""
    then: dict[str, Any] = {} if plan is None else plan.fingerprint
    chosen = {
        name: then.get(name, "auto") if getattr(options, name) == "auto" else getattr(options, name)
        for name in ("device", "engine", "precision")
    }
    model = Path(options.model)
    return {
        **chosen,
        "threads": options.threads,
        "out": str(store.root.absolute()) if isinstance(store, Folder) else store.url,
        "model": str(model.absolute()) if model.exists() and model.parts[1:] else options.model,
        "diameter": options.diameter,
        "channel": options.channel,
        "max_pixels": options.max_pixels,
        "labels": options.labels,
        "thresholds": {name: getattr(options, name) for name in THRESHOLDS},
        "no_progress": options.no_progress,
        "images": images,
        "parquet": then.get("parquet", find_spec("pyarrow") is not None),
    }


def _pool(options: BulkOptions) -> Pool:
    if options.on == "local":
        return LocalPool(options.workers)
    from spatialembed.bulk.ray_pool import RayPool

    return RayPool(None if options.on == "ray" else options.on, options.workers)


def _do(pool: Pool, store: Folder | Bucket, plan: Plan, settings: Message, progress: bool) -> None:
    """All shards that are not done. Raises SpatialEmbedError, ``no_progress`` too."""
    parts = {name for name in store.names() if name.startswith("part-")}
    done = {n for n in range(plan.shards) if f"{plan.part(n)}.jsonl" in parts}
    limit = settings["no_progress"] * 60
    todo = Todo((n for n in range(plan.shards) if n not in done), limit / 2)
    settings = {**settings, **{n: plan.fingerprint[n] for n in ("device", "engine", "precision")}}
    try:
        with _Shown(progress, plan, len(done)) as shown:
            latest = time.monotonic()
            for report in pool.reports(todo, settings) if todo.left else ():
                if report is not None:
                    latest = time.monotonic()
                    shown.add(report.images)
                elif time.monotonic() - latest > limit:
                    what = f"no shard was finished in {limit / 60:g} minutes: {pool.state()}"
                    remedy = (
                        f"shards {todo.begun} are begun; the same command continues; slow images "
                        "need a larger --no-progress"
                    )
                    raise SpatialEmbedError("no_progress", what, remedy, RESOURCE)
                shown.say()
    except (KeyboardInterrupt, SystemExit):  # stopped on purpose: no image is suspect for that
        pool.close()
        for number in todo.begun:
            Ledger(store, plan.part(number)).withdraw()
        raise


class _Shown:
    """Progress: a bar with rate and the time left, or a line a minute."""

    def __init__(self, wanted: bool, plan: Plan, done: int) -> None:
        terminal = console().is_terminal
        self._lines = wanted and not terminal
        self._bar = Stages(wanted and terminal, "images", plan.images)
        self._all = plan.images
        self._before = min(done * plan.shard, plan.images)  # nearly: the last ones are smaller
        self._now, self._begun = 0, time.monotonic()
        self._said = self._begun

    def __enter__(self) -> _Shown:
        self._bar.__enter__()
        self._bar.advance(self._before)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()

    def add(self, images: int) -> None:
        self._now += images
        self._bar.advance(images)
        self._bar.note(f"{self._rate():.1f}/s")

    def _rate(self) -> float:
        return self._now / max(1e-3, time.monotonic() - self._begun)

    def say(self) -> None:
        """A line, if it is time for one."""
        if not self._lines or time.monotonic() - self._said < SAY_EVERY_S:
            return
        self._said = time.monotonic()
        left, rate = self._all - self._before - self._now, self._rate()
        eta = f"{left / rate / 60:.0f} min left" if rate else "none yet"
        done = self._before + self._now
        logger.info("%d of %d images, %.1f/s, %s", done, self._all, rate, eta)
