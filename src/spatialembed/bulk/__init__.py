"""Millions of images: a fixed plan, shards that any process may do, the same bytes at the end."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatialembed.bulk.driver import BulkResult, run
    from spatialembed.bulk.options import BulkOptions

__all__ = ["BulkOptions", "BulkResult", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # late: a worker has no use for the driver
        module = "options" if name == "BulkOptions" else "driver"
        return getattr(import_module(f"spatialembed.bulk.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
