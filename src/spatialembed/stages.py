"""Progress of a job of several stages, on standard error, with the time that remains of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from spatialembed.terminal import console

Item = TypeVar("Item")


class Stages(AbstractContextManager["Stages"]):
    """A bar while it is open; ``name`` stands before it. Not ``shown``: nothing."""

    def __init__(self, shown: bool, name: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console(), disable=not shown)
        self._name = "".join(c for c in name if c.isprintable() and c not in "[]")
        self._task = self._bar.add_task(self._name)

    def begin(self, stage: str, total: float | None) -> None:
        """Name the stage and how many steps it has; None: not known."""
        self._bar.reset(self._task, total=total, description=f"{self._name}: {stage}")

    def advance(self, steps: float) -> None:
        """Count steps of the stage."""
        self._bar.advance(self._task, steps)

    def passed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.advance(1)

    def __enter__(self) -> Stages:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
