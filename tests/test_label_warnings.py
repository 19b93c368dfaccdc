"""Masks without instances are refused, or warned of, before training and scoring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from drawn_labels import discs
from spatialembed.command.main import main
from spatialembed.data.folder import open_folder
from spatialembed.data.label_checks import check_labels
from spatialembed.doctor.doctor import examine
from spatialembed.errors import SpatialEmbedError
from spatialembed.options import DataOptions


def bordered(labels: np.ndarray) -> np.ndarray:
    inner = ndimage.binary_erosion(labels > 0)
    return np.where((labels > 0) & ~inner, 255, labels)


def data_set(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Six images with five discs each."""
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for n in range(6):
        places = [(16 + n, 20), (20, 60), (50, 25 + n), (52, 70), (78, 40)]
        labels = change(discs(96, places, 9)).astype(np.uint8)
        Image.fromarray(labels).save(folder / "images" / f"{n}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{n}.png")
    return folder


def of_classes(labels: np.ndarray) -> np.ndarray:
    return np.where(labels > 0, 1 + labels % 2, 0)


def three_values(labels: np.ndarray) -> np.ndarray:
    inside = ndimage.binary_erosion(labels > 0, iterations=2)
    return np.where(inside, 128, 255 * (labels > 0))


def soft(labels: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(255.0 * (labels > 0), 1)


CERTAIN = {
    "classes": (of_classes, "class_maps"),
    "0, 128, 255": (three_values, "class_maps"),
    "background": (lambda labels: labels + 1, "background_id"),
    "soft": (soft, "soft_labels"),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_no_instance_for_certain_is_refused(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, code = CERTAIN[name]
    dataset = open_folder(data_set(tmp_path, change))
    with pytest.raises(SpatialEmbedError, match=r"--plain-ids") as caught:
        check_labels(dataset)
    assert (caught.value.code, caught.value.exit_code) == (code, 3)
    assert not caplog.records
    check_labels(dataset, refuse=False)  # a run that goes on
    check_labels(open_folder(tmp_path, reading=DataOptions(plain_ids=True)))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [code] * 2


def test_instances_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_folder(data_set(tmp_path, lambda labels: labels))
    check_labels(dataset)
    check_labels(dataset.subset([]))
    assert not caplog.records


def test_parts_of_a_foreground_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = data_set(tmp_path, lambda labels: 255 * (labels > 0))
    check_labels(open_folder(folder, reading=DataOptions(split_components=True)))
    check_labels(open_folder(folder))  # refused by whoever reads a mask
    assert not caplog.records


def test_a_void_id_is_warned_of_and_can_be_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_folder(data_set(tmp_path, bordered))
    check_labels(dataset)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["void_id"]
    caplog.clear()
    check_labels(open_folder(tmp_path, reading=DataOptions(ignore_id=255)))
    assert not caplog.records
    assert "void_id" in [f.code for f in examine(tmp_path, progress=False).findings]
    helped = examine(tmp_path, DataOptions(ignore_id=255), progress=False)
    assert "void_id" not in [finding.code for finding in helped.findings]
    assert helped.advice is not None
    assert "ignore_id" in [setting.key for setting in helped.advice.settings]


def test_an_id_to_ignore_must_be_in_a_mask(tmp_path: Path) -> None:
    dataset = open_folder(
        data_set(tmp_path, lambda labels: labels), reading=DataOptions(ignore_id=9)
    )
    with pytest.raises(SpatialEmbedError) as caught:
        check_labels(dataset)
    assert (caught.value.code, caught.value.exit_code) == ("no_such_id", 2)
    changed = np.asarray(Image.open(tmp_path / "masks" / "5.png")).copy()
    changed[0, 0] = 9  # in one mask of the validation part
    Image.fromarray(changed).save(tmp_path / "masks" / "5.png")
    check_labels(dataset.subset(range(5)), dataset.subset([5]))


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_commands_refuse_before_they_begin(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    data = data_set(tmp_path / "data", three_values)
    words = [verb, "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, *(["--model", "nuclei"] * (verb == "evaluate"))]) == 3
    assert "error class_maps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
