"""The one console: text that any terminal can show, warnings kept, progress of a long job."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")


def printable(text: str) -> str:
    """Safe on a terminal, whatever a file is called: control and broken characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def console(*, stderr: bool = True) -> Console:
    """Where bars are drawn: in a notebook as plain lines, though its streams say terminal."""
    from rich.console import Console

    plain = False if "ipykernel" in sys.modules else None
    return Console(stderr=stderr, force_jupyter=False, force_terminal=plain)


@contextmanager
def noted_warnings(said: list[str]) -> Iterator[None]:
    """Add the package's warnings to a list, logged ones and others; they are shown all the same."""

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.WARNING:
                said.append(record.getMessage())

    shown_before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if category.__module__.startswith("spatialembed"):
            said.append(str(message))
        shown_before(message, category, *where)

    logger, note = logging.getLogger("spatialembed"), Note()
    logger.addHandler(note)
    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        logger.removeHandler(note)
        warnings.showwarning = shown_before


class Stages(AbstractContextManager["Stages"]):
    """The one progress bar: name, stage, how far, a note, the time left. Not ``shown``: nothing.

    total: steps, where there is but one stage. stderr: or standard output.
    """

    def __init__(
        self, shown: bool, name: str, total: float | None = None, *, stderr: bool = True
    ) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
        )
        self._bar = Progress(*columns, console=console(stderr=stderr), disable=not shown)
        self._name = "".join(c for c in name if c.isprintable() and c not in "[]")
        self._task = self._bar.add_task(self._name, total=total, note="")

    def begin(self, stage: str, total: float | None) -> None:
        """Name the stage and how many steps it has; None: not known."""
        self._bar.reset(self._task, total=total, description=f"{self._name}: {stage}")

    def advance(self, steps: float = 1) -> None:
        """Count steps of the stage."""
        self._bar.advance(self._task, steps)

    def note(self, text: str) -> None:
        """Say a word beside the bar, until the next one."""
        self._bar.update(self._task, note=text)

    def passed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, each counted when the next one is requested."""
        for item in items:
            yield item
            self.advance()

    def __enter__(self) -> Stages:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def track(
    items: Iterable[Item], name: str, *, total: float | None = None, shown: bool = True
) -> Iterator[Item]:
    """The same items, counted by a bar on standard error; total: by default ``len(items)``."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Stages(shown, name, total) as stages:
        yield from stages.passed(items)
