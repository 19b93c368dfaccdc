"""Masks without instances are told of before training and scoring."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from drawn_labels import discs
from spatialembed.data.folder import open_folder
from spatialembed.data.label_checks import warn_of_labels
from spatialembed.doctor.doctor import examine
from spatialembed.options import DataOptions


def bordered(labels: np.ndarray) -> np.ndarray:
    inner = ndimage.binary_erosion(labels > 0)
    return np.where((labels > 0) & ~inner, 255, labels)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda labels: labels, None),
        (lambda labels: np.where(labels > 0, 1 + labels % 2, 0), "class_maps"),
        (lambda labels: labels + 1, "background_id"),
        (bordered, "void_id"),
    ],
    ids=["instances", "classes", "background", "void"],
)
def test_said_once_for_the_data_set(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[np.ndarray], np.ndarray],
    code: str | None,
) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for n in range(6):
        labels = change(
            discs(96, [(16 + n, 20), (20, 60), (50, 25 + n), (52, 70), (78, 40)], 9)
        ).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / "images" / f"{n}.png")
        Image.fromarray(labels).save(tmp_path / "masks" / f"{n}.png")
    caplog.set_level(logging.WARNING, "spatialembed")
    warn_of_labels(open_folder(tmp_path))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [code] * bool(
        code
    )
    if code == "void_id":  # its remedy helps
        caplog.clear()
        warn_of_labels(open_folder(tmp_path, reading=DataOptions(ignore_id=255)))
        assert not caplog.records
        found = [fault.code for fault in examine(tmp_path, progress=False).findings]
        assert "void_id" in found
        helped = examine(tmp_path, DataOptions(ignore_id=255), progress=False)
        assert "void_id" not in [fault.code for fault in helped.findings]
        assert helped.advice is not None
        assert "ignore_id" in [setting.key for setting in helped.advice.settings]
