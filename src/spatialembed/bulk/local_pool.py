"""Workers of this machine: a process each, a thread here that asks it. No socket is opened."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator

from spatialembed.bulk.process import Died, Message, Process, started
from spatialembed.bulk.todo import Report, Todo
from spatialembed.concurrency import usable
from spatialembed.errors import MODEL, SpatialEmbedError

logger = logging.getLogger("spatialembed")


class LocalPool:
    """As many processes as are wanted; one that dies is replaced, and its shard done again."""

    def __init__(self, workers: int | None) -> None:
        self._wanted = workers
        self._processes: list[Process | None] = []
        self._closed = False
        self._gpus = 0
        self._settings: Message = {}
        self._lock = threading.Lock()

    def facts(self, settings: Message) -> Message:
        """What results follow from here; the process that says so stays.

        Raises SpatialEmbedError of loading, ``worker_died``.
        """
        self._settings = settings
        self._processes = [None]
        _, facts = self._start(0)
        on_gpu = facts["fingerprint"]["device"] != "cpu"
        self._gpus = facts["gpus"] if on_gpu else 0
        wanted = self._wanted or (max(1, self._gpus) if on_gpu else usable())
        self._processes += [None] * (wanted - 1)
        return facts

    def _start(self, i: int) -> tuple[Process, Message]:
        """Process ``i``, ready. Raises SpatialEmbedError of loading, ``worker_died``."""
        gpu = str(i % self._gpus) if self._gpus > 1 else None

        def new() -> Process:
            with self._lock:
                if self._closed:
                    raise SpatialEmbedError("worker_died", "the run has ended", "", MODEL)
                process = self._processes[i] = Process(self._settings, gpu)
                return process

        return started(new, self._settings["no_progress"] * 60)

    def reports(self, todo: Todo, settings: Message) -> Iterator[Report | None]:
        """Shards as they are done, and None about every second.

        Raises SpatialEmbedError that a worker met.
        """
        self._settings = settings
        done: queue.SimpleQueue[Report | BaseException] = queue.SimpleQueue()
        for i in range(min(len(self._processes), todo.left)):
            threading.Thread(target=self._serve, args=(i, todo, done), daemon=True).start()
        while todo.left:
            try:
                report = done.get(timeout=1)
            except queue.Empty:
                yield None
                continue
            if isinstance(report, BaseException):
                raise report
            if todo.done(report.shard):
                yield report

    def _serve(self, i: int, todo: Todo, done: queue.SimpleQueue[Report | BaseException]) -> None:
        """Ask process ``i`` for one shard after the other, in a thread."""
        try:
            while (number := todo.take(wait=True)) is not None and not self._closed:
                process = self._processes[i] or self._start(i)[0]
                try:
                    done.put(Report(**process.ask({"shard": number})[0]))
                except Died as death:
                    if not self._closed:
                        logger.warning("a worker ended (%s): shard %d again", death, number)
                    self._processes[i] = None
                    todo.back(number)
        except BaseException as error:
            done.put(error)

    def state(self) -> str:
        """Who is alive, in a few words."""
        alive = sum(process is not None for process in self._processes)
        return f"{alive} of {len(self._processes)} local processes are there"

    def close(self) -> None:
        """End all at once."""
        with self._lock:
            self._closed = True
        for process in self._processes:
            if process is not None:
                process.close()
