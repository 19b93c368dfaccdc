"""One exception for every foreseen fault: a stable code, a line on the fault, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.util import find_spec

USAGE, INPUT, MODEL, RESOURCE, PARTIAL = 2, 3, 4, 5, 6
"""Exit codes: usage or configuration, input, model or checkpoint, disk or memory, some failed."""


class SpatialEmbedError(Exception):
    """A foreseen fault.

    Attributes:
        code: Stable lower_snake name, for programs.
        message: What is wrong and where (path first).
        remedy: What the user can do; may be empty.
        exit_code: Of the command line, 2 to 6.
    """

    def __init__(self, code: str, message: str, remedy: str = "", exit_code: int = INPUT) -> None:
        super().__init__(code, message, remedy, exit_code)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" ({self.remedy})" if self.remedy else "")


def missing_extra(package: str, extra: str, purpose: str) -> SpatialEmbedError:
    """The error of an optional dependency that is not installed."""
    return SpatialEmbedError(
        "missing_extra",
        f"{purpose} needs {package}, which is not installed",
        f"pip install 'spatialembed[{extra}]'",
        USAGE,
    )


def require(package: str, extra: str, purpose: str) -> None:
    """Raise SpatialEmbedError ``missing_extra`` (exit 2) where a package is not installed."""
    if find_spec(package) is None:
        raise missing_extra(package.replace("_", "-"), extra, purpose)


def check(fine: bool, message: str, remedy: str) -> None:
    """Raise SpatialEmbedError ``bad_setting`` (exit 2) unless all is ``fine``."""
    if not fine:
        raise SpatialEmbedError("bad_setting", message, remedy, USAGE)


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The one of ``names`` most like ``name``, a last part alone counts; none: nothing is alike."""

    def alike(other: str) -> float:
        return max(
            difflib.SequenceMatcher(None, name, whole).ratio()
            for whole in (other, other.rpartition(".")[2])
        )

    best = max(names, key=alike)
    return best if alike(best) >= 0.5 else None  # "image" is no "model", "foo" no "doctor"
