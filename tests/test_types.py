"""The result type: selecting, boxes, areas; on numpy and on torch."""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spatialembed import Instances, SpatialEmbedError
from spatialembed.results.overlay import write_overlay

LABELS = np.array(
    [
        [1, 1, 0, 0, 3],
        [1, 0, 2, 2, 3],
        [0, 0, 2, 0, 0],
    ],
    np.int32,
)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)
CLASSES = np.array([0, 1, 0])
NAMES = ("round", "square")


def found(kind: str = "numpy") -> Instances:
    arrays: list[Any] = [LABELS, SCORES, CLASSES]
    if kind == "torch":
        arrays = [torch.from_numpy(array) for array in arrays]
    return Instances(*arrays, NAMES, truncated=True)


both = pytest.mark.parametrize("kind", ["numpy", "torch"])


@both
def test_length_boxes_areas_masks(kind: str) -> None:
    instances = found(kind)
    assert len(instances) == 3
    assert instances.boxes.tolist() == [[0, 0, 2, 2], [2, 1, 4, 3], [4, 0, 5, 2]]
    assert instances.areas.tolist() == [3, 3, 2]
    for i in range(3):
        x1, y1, x2, y2 = instances.boxes[i]
        mask = np.asarray(instances.mask(i))
        assert np.array_equal(mask, i + 1 == LABELS)
        assert mask[y1:y2, x1:x2].sum() == instances.areas[i]


@both
@pytest.mark.parametrize("i", [-1, 3])
def test_a_mask_out_of_range_is_refused(kind: str, i: int) -> None:
    with pytest.raises(IndexError, match=f"instance {i} of 3"):
        found(kind).mask(i)


@both
@pytest.mark.parametrize(
    "which",
    [[0, 2], np.array([True, False, True]), [0, -1], slice(None, None, 2), np.array([0, 2], "u1")],
    ids=["index", "mask", "from the end", "slice", "bytes"],
)
def test_selecting_numbers_anew(kind: str, which: Any) -> None:
    chosen = found(kind)[which]
    assert type(chosen.labels) is type(found(kind).labels)
    assert np.asarray(chosen.labels).tolist() == [[1, 1, 0, 0, 2], [1, 0, 0, 0, 2], [0] * 5]
    assert np.asarray(chosen.labels).dtype == np.int32
    assert np.asarray(chosen.scores).tolist() == pytest.approx([0.9, 0.7])
    assert np.asarray(chosen.scores).dtype == np.float32
    assert np.asarray(chosen.classes).tolist() == [0, 0]
    assert (chosen.class_names, chosen.truncated) == (NAMES, True)


@both
@pytest.mark.parametrize("which", [[2, 0, 1], [-1, 0, -2], torch.tensor([2, 0, 1])])
def test_the_order_asked_for_is_kept(kind: str, which: Any) -> None:
    chosen = found(kind)[which]
    assert np.asarray(chosen.scores).tolist() == pytest.approx([0.7, 0.9, 0.8])
    assert np.asarray(chosen.labels).tolist() == [[2, 2, 0, 0, 1], [2, 0, 3, 3, 1], [0, 0, 3, 0, 0]]
    assert chosen.areas.tolist() == [2, 3, 3]
    assert chosen.boxes.tolist() == found(kind).boxes[[2, 0, 1]].tolist()


@both
def test_sorting_and_single_ones(kind: str) -> None:
    instances = found(kind)
    assert instances[np.argsort(instances.areas, kind="stable")].areas.tolist() == [2, 3, 3]
    assert instances[::-1].areas.tolist() == [2, 3, 3]
    assert instances[1].boxes.tolist() == [[2, 1, 4, 3]]
    assert [len(one) for one in instances] == [1, 1, 1]  # type: ignore[attr-defined]


def test_selecting_by_a_condition() -> None:
    instances = found()
    assert instances[instances.areas > 2].areas.tolist() == [3, 3]
    assert instances[instances.scores > 0.75].areas.tolist() == [3, 3]


@both
@pytest.mark.parametrize("which", [[], np.zeros(3, bool)])
def test_selecting_nothing(kind: str, which: Any) -> None:
    none = found(kind)[which]
    assert len(none) == 0
    assert not np.asarray(none.labels).any()
    assert none.boxes.shape == (0, 4)
    assert none.areas.shape == (0,)


@both
@pytest.mark.parametrize(
    "which",
    [[3], [-4], 3, np.ones(2, bool), [0.0], np.array([1.5]), 1.0, [0, 2, 2], [0, -3], [[0], [1]]],
)
def test_selecting_what_is_not_there_is_refused(kind: str, which: Any) -> None:
    with pytest.raises(IndexError):
        found(kind)[which]


def test_boxes_and_areas_are_computed_once_and_cannot_be_changed() -> None:
    instances = found()
    for values in (instances.boxes, instances.areas):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0
    assert instances.boxes is instances.boxes
    assert instances.areas is instances.areas
    other = replace(instances, labels=(LABELS == 2) * np.int32(2))
    assert other.areas.tolist() == [0, 3, 0]
    assert other.boxes.tolist() == [[0] * 4, [2, 1, 4, 3], [0] * 4]


def test_numpy_of_numpy_is_itself_and_of_torch_is_equal() -> None:
    instances = found()
    assert instances.numpy() is instances
    host = found("torch").numpy()
    assert np.array_equal(host.labels, LABELS)
    assert (host.scores.dtype, host.class_names, host.truncated) == (np.float32, NAMES, True)


@both
def test_the_expected_iou_goes_along(kind: str) -> None:
    values: Any = np.array([0.9, 0.5, 0.7], np.float32)
    calibrated = replace(
        found(kind), expected_iou=values if kind == "numpy" else torch.from_numpy(values)
    )
    chosen = calibrated[[0, 2]]
    assert type(chosen.expected_iou) is type(chosen.labels)
    assert np.asarray(chosen.expected_iou).tolist() == pytest.approx([0.9, 0.7])
    assert np.array_equal(calibrated.numpy().expected_iou, values)
    assert found(kind)[[0]].expected_iou is None
    assert found(kind).numpy().expected_iou is None


def test_an_empty_image() -> None:
    none = Instances(np.zeros((4, 5), np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert len(none) == len(none.boxes) == len(none.areas) == 0


def test_repr_is_a_line() -> None:
    found = Instances(np.zeros((3, 5), np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert repr(found) == "Instances(0 objects, 3 x 5 px)"


# ---------------------------------------------------------------- in a notebook


IMAGE = np.arange(15, dtype=np.uint8).reshape(3, 5)


@both
def test_plot_is_the_overlay(kind: str, tmp_path: Path) -> None:
    picture = found(kind).plot(IMAGE)
    assert picture._repr_png_()  # shown by a notebook
    written = write_overlay(tmp_path / "a", IMAGE, found())
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(written)))


@both
def test_a_notebook_shows_counts_and_a_picture(kind: str) -> None:
    html = replace(found(kind), class_names=("round", "<b>"))._repr_html_()
    assert 'src="data:image/png;base64,' in html
    text = " ".join(html[html.index("<figcaption>") :].split())
    shown = "3 objects (2 round, 1 &lt;b&gt;) in 3 x 5 px, median area 3 px; stopped at max_inst"
    assert shown in text
    plain = Instances(LABELS, SCORES, CLASSES * 0, ("cell",))._repr_html_()
    assert "cell" not in plain[plain.index("<figcaption>") :]
    assert "0 objects" in found(kind)[[]]._repr_html_()


@both
def test_data_frame_has_the_values_of_objects_csv(kind: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    found(kind).save(tmp_path, "csv", image=IMAGE)
    written = pandas.read_csv(tmp_path / "objects.csv", index_col="id").dropna(axis="columns")
    table = found(kind).to_dataframe(image=IMAGE)
    assert list(table.index) == [1, 2, 3]
    assert list(table["class"]) == ["round", "square", "round"]
    assert "expected_iou" not in table
    pandas.testing.assert_frame_equal(table, written.drop(columns="image"), check_dtype=False)
    sized = found(kind).to_dataframe(pixel_um=(0.5, 0.5))
    assert list(sized["area_um2"]) == [0.75, 0.75, 0.5]
    assert "mean_grey" not in sized
    assert list(found(kind)[[]].to_dataframe().columns) == list(found(kind).to_dataframe().columns)


@both
def test_geometries_have_the_areas_and_boxes_of_the_masks(kind: str) -> None:
    pytest.importorskip("geopandas")
    table = found(kind).to_geopandas()
    assert list(table.geometry.area) == [3, 3, 2]
    assert table.geometry.bounds.to_numpy().tolist() == found(kind).boxes.tolist()
    assert table.crs is None
    assert len(found(kind)[[]].to_geopandas()) == 0


@pytest.mark.parametrize("package", ["pandas", "geopandas"])
def test_a_table_without_its_package_names_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    make = found().to_dataframe if package == "pandas" else found().to_geopandas
    with pytest.raises(SpatialEmbedError, match=r"missing_extra.*\[tables\]"):
        make()


def test_another_image_is_refused(tmp_path: Path) -> None:
    for call in (found().plot, lambda image: found().save(tmp_path / "out", image=image)):
        with pytest.raises(SpatialEmbedError, match="size_mismatch"):
            call(IMAGE.T)
    assert not (tmp_path / "out").exists()


@both
def test_save_writes_the_files_of_predict(kind: str, tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "cells.png")
    found(kind).save(tmp_path / "out", image=tmp_path / "cells.png")
    found(kind).save(tmp_path / "bare", "labels,csv", name="b")
    assert sorted(os.listdir(tmp_path / "out")) == [
        ".spatialembed-results", "cells_labels.png", "cells_overlay.png", "instances.json",
        "objects.csv",
    ]  # fmt: skip
    assert sorted(os.listdir(tmp_path / "bare")) == [
        ".spatialembed-results", "b_labels.png", "objects.csv",
    ]  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(tmp_path / "bare" / "b_labels.png")), LABELS)
    with (tmp_path / "out" / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["cells.png"] * 3
    assert [float(row["mean_grey"]) for row in rows] == pytest.approx([2, 9, 6.5])


def test_save_without_an_image_needs_none(tmp_path: Path) -> None:
    found().save(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        ".spatialembed-results", "image_labels.png", "instances.json", "objects.csv",
    ]  # fmt: skip
    with pytest.raises(SpatialEmbedError, match="overlay without an image"):
        found().save(tmp_path / "none", ["overlay"])
    assert not (tmp_path / "none").exists()
