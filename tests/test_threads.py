"""Threads and processes: a result, or an error that names the remedy; never a hang or a crash."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ENGINES = [name for name in ("openvino", "onnxruntime") if find_spec(name)]


@pytest.mark.slow
def test_every_way_to_use_a_model() -> None:
    """In a process of its own, which a fault would end; see ``thread_uses``."""
    script = Path(__file__).with_name("thread_uses.py")
    ended = subprocess.run(
        [sys.executable, str(script), *ENGINES],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert "WRONG" not in ended.stdout, said
    assert f"tried {10 + 2 * len(ENGINES)}" in ended.stdout, said
