"""The manifest as npe2 reads it; each command is there and the samples open; no window."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

npe2 = pytest.importorskip("npe2", reason="npe2 is not installed (make plugin installs it)")
MANIFEST = Path(__file__).resolve().parents[1] / "src" / "napari_spatialembed" / "napari.yaml"


def test_the_manifest_is_valid_and_its_commands_are_there() -> None:
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    contributed = manifest.contributions
    known = {command.id for command in contributed.commands}
    named = [*contributed.widgets, *contributed.sample_data]
    assert {each.command for each in named} == known
    for command in contributed.commands:
        module, _, name = command.python_name.partition(":")
        if module.endswith("samples"):
            ((pixels, meta, kind),) = getattr(import_module(module), name)()
            assert pixels.dtype == np.uint8
            assert min(pixels.shape) > 100
            assert meta["name"]
            assert kind == "image"
