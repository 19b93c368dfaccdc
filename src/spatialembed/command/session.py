"""How a command reports and stops: messages of one line, warnings, signals, system faults."""

from __future__ import annotations

import _thread
import errno
import io
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from spatialembed.console import listening, printable
from spatialembed.errors import INPUT, RESOURCE, SpatialEmbedError


def tell(error: SpatialEmbedError) -> int:
    """Print a fault as one line; returns its exit code."""
    _print("error", str(error))
    return error.exit_code


def _print(level: str, text: str) -> None:
    print(f"{level} {printable(text)}", file=sys.stderr)  # on what is that at this moment


def escape_output() -> None:
    """Text that the encoding of the output cannot hold is escaped, where it would end the command.

    Names of files are of any script, a terminal or a log may be of a single one.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def of_system(error: OSError | MemoryError) -> SpatialEmbedError:
    """A fault of the operating system as one of ours."""
    if isinstance(error, MemoryError):
        return SpatialEmbedError("out_of_memory", "no memory left", "", RESOURCE)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    where = f"{error.filename}: " if error.filename is not None else ""
    message = f"{where}{error.strerror or error}"
    return SpatialEmbedError(
        "disk_full" if full else "system", message, "", RESOURCE if full else INPUT
    )


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that what is done gets written; neither gets lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before, hook_before = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = _again(hook_before)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook_before


def _again(otherwise: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A hook that sends a signal once more if it was lost.

    Python drops what is raised in a finaliser or the callback of a weak reference, of which
    compiling runs many: the command would continue as if nobody had pressed Ctrl-C.
    """
    numbers = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}

    def hook(lost: Any) -> None:
        number = numbers.get(lost.exc_type)
        if number is None:
            otherwise(lost)
        else:  # later and from a thread: raised in here it would be lost again
            threading.Timer(0.05, _thread.interrupt_main, (number,)).start()

    return hook


@contextmanager
def plain_messages() -> Iterator[None]:
    """Log records and warnings of the package as one line each, above a progress bar too."""
    logger = logging.getLogger("spatialembed")
    # tifffile's complaints about a broken header: our refusal repeats them with the file's name.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with listening(_print, alone=True):
            yield
    finally:
        logger.setLevel(level)
