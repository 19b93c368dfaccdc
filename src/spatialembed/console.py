"""The one console: text that any terminal can show, warnings kept, progress of a long job."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")


def printable(text: str) -> str:
    """Safe on a terminal, whatever a file is called: control and broken characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def console(*, stderr: bool = True) -> Console:
    """Where bars are drawn: in a notebook by ipywidgets, as plain lines where that is missing."""
    from rich.console import Console

    notebook = "ipykernel" in sys.modules  # its streams say terminal
    widgets = notebook and find_spec("ipywidgets") is not None
    plain = False if notebook else None
    return Console(stderr=stderr, force_jupyter=widgets, force_terminal=plain)


@contextmanager
def listening(take: Callable[[str, str], None], *, alone: bool) -> Iterator[None]:
    """Pass the package's log records and warnings to ``take(level, text)``, level in small letters.

    alone: its warnings are not shown beside that. Those of others are shown as usual.
    """

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            take(record.levelname.lower(), record.getMessage())

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        own = category.__module__.startswith("spatialembed")
        if own:
            take("warning", str(message))
        if not (own and alone):
            shown_before(message, category, *where)

    logger, listener = logging.getLogger("spatialembed"), Listener()
    shown_before = warnings.showwarning
    logger.addHandler(listener)
    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        logger.removeHandler(listener)
        warnings.showwarning = shown_before


def noted_warnings(said: list[str]) -> AbstractContextManager[None]:
    """Add the package's warnings to a list, logged ones and others; they are shown all the same."""
    return listening(
        lambda level, text: said.append(text) if level == "warning" else None, alone=False
    )


class Stages(AbstractContextManager["Stages"]):
    """The one progress bar: name, stage, how far, a note, the time left. Not ``shown``: nothing.

    total: steps, where there is but one stage. stderr: or standard output.
    """

    def __init__(
        self, shown: bool, name: str, total: float | None = None, *, stderr: bool = True
    ) -> None:
        from rich import progress

        columns = (
            "{task.description}",
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            "{task.fields[note]}",
            progress.TimeRemainingColumn(compact=True),
        )
        self._bar = progress.Progress(*columns, console=console(stderr=stderr), disable=not shown)
        self._name = "".join(c for c in name if c.isprintable() and c not in "[]")
        self._task = self._bar.add_task(self._name, total=total, note="")

    def begin(self, stage: str, total: float | None) -> None:
        """Name the stage and how many steps it has; None: not known."""
        self._bar.tasks[0].total = total  # None, to ``reset``, means: as before
        self._bar.reset(self._task, description=f"{self._name}: {stage}")

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
