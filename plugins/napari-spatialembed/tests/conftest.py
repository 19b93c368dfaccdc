"""Which tests need a window, and why they are left out where there is none."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Two cores are what the tests are promised; more threads only make them slower there.
os.environ.setdefault("OMP_NUM_THREADS", "2")


def no_window() -> str:
    """Why no window can be opened; empty: it can."""
    for package in ("napari", "qtpy", "pytestqt"):
        if find_spec(package) is None:
            return f"{package} is not installed (make plugin installs it)"
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        return "no display: run it under xvfb-run (Qt's offscreen has no QOpenGLWidget)"
    return ""


def alive(pid: int) -> bool:
    """Whether a process runs; on Linux."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


needs_window = pytest.mark.skipif(bool(no_window()), reason=no_window())
