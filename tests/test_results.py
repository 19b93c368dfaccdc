"""Result files, read back by others: Pillow, scikit-image, tifffile, csv, pycocotools."""

from __future__ import annotations

import csv
import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from skimage import io, measure

from spatialembed.errors import RESOURCE, SpatialEmbedError
from spatialembed.results.coco import CocoFile, describe
from spatialembed.results.folder import ResultFolder
from spatialembed.results.labels import write_labels
from spatialembed.results.measurements import measure as measured
from spatialembed.results.objects_csv import COLUMNS, ObjectTable, rows
from spatialembed.results.overlay import write_overlay
from spatialembed.types import Instances


def found_in(labels: np.ndarray, class_names: tuple[str, ...] = ("nucleus",)) -> Instances:
    """Instances with descending scores, classes in turn."""
    count = int(labels.max(initial=0))
    scores = np.linspace(0.99, 0.5, count, dtype=np.float32)
    return Instances(labels, scores, np.arange(count) % len(class_names), class_names)


def scattered(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Labels (height, width) int32 of ``count`` instances of 1 to 9 px, some in several parts."""
    random = np.random.default_rng(seed)
    size = random.integers(1, 10, count) if count * 9 < height * width else np.ones(count, int)
    labels = np.zeros(height * width, np.int32)
    places = random.permutation(height * width)[: size.sum()]
    labels[places] = np.repeat(np.arange(1, count + 1), size)
    return labels.reshape(height, width)


TWO = np.array([[0, 1, 1, 0, 0], [0, 1, 0, 2, 2], [0, 0, 0, 2, 0]], np.int32)


# --- label images ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "side", "suffix", "dtype"),
    [
        pytest.param(300, 64, ".png", np.uint16, id="LBL-01-300"),
        pytest.param(65_535, 256, ".png", np.uint16, id="LBL-01-65535"),
        pytest.param(65_536, 300, ".tif", np.uint32, id="LBL-01-65536"),
        pytest.param(70_000, 300, ".tif", np.uint32, id="LBL-01-INF-05-70000"),
    ],
)
def test_no_label_wraps(
    tmp_path: Path, count: int, side: int, suffix: str, dtype: type[np.integer]
) -> None:
    labels = scattered(count, side, side)
    path = write_labels(tmp_path / "cells", labels)
    assert path == tmp_path / f"cells_labels{suffix}"
    for reader in (io.imread, lambda p: np.asarray(Image.open(p))):
        read = reader(path)
        # Pillow has no unsigned 32-bit mode and gives the same values as int32.
        assert read.dtype == dtype or (read.dtype == np.int32 and suffix == ".tif")
        np.testing.assert_array_equal(read, labels)
    if suffix == ".tif":
        with tifffile.TiffFile(path) as tif:
            assert tif.pages[0].dtype == np.uint32
            assert tif.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (33, 17)])
def test_label_image_has_the_size_of_the_image(tmp_path: Path, shape: tuple[int, int]) -> None:
    labels = np.zeros(shape, np.int32)
    np.testing.assert_array_equal(io.imread(write_labels(tmp_path / "empty", labels)), labels)


def test_dots_in_a_name_stay(tmp_path: Path) -> None:
    assert write_labels(tmp_path / "a.b.c", TWO).name == "a.b.c_labels.png"
    assert write_overlay(tmp_path / "a.b.c", TWO * 50, found_in(TWO)).name == "a.b.c_overlay.png"


def test_a_rerun_leaves_one_label_image(tmp_path: Path) -> None:
    many = np.arange(1, 65_537, dtype=np.int32).reshape(256, 256)
    for labels in (many, TWO, many):
        path = write_labels(tmp_path / "cells", labels)
        assert list(tmp_path.iterdir()) == [path]


def test_the_same_labels_give_the_same_bytes(tmp_path: Path) -> None:
    many = np.arange(1, 65_537, dtype=np.int32).reshape(256, 256)
    for labels in (TWO, many):
        first, second = (write_labels(tmp_path / name, labels) for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


# --- overlays -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "zoom"), [((1, 1), 8), ((64, 48), 6), ((256, 200), 2), ((600, 20), 1)]
)
def test_overlay_of_a_small_image_is_enlarged(
    tmp_path: Path, shape: tuple[int, int], zoom: int
) -> None:
    labels = np.ones(shape, np.int32)
    path = write_overlay(tmp_path / "x", np.zeros(shape, np.uint8), found_in(labels))
    picture = io.imread(path)
    assert picture.shape == (shape[0] * zoom, shape[1] * zoom, 3)
    assert picture.max() > 0


def test_overlay_names_classes_only_where_there_are_several(tmp_path: Path) -> None:
    labels = np.zeros((200, 200), np.int32)
    labels[20:90, 20:180], labels[110:180, 20:180] = 1, 2
    grey = np.full((200, 200), 90, np.uint8)
    plain = io.imread(write_overlay(tmp_path / "one", grey, found_in(labels)))
    named = io.imread(write_overlay(tmp_path / "two", grey, found_in(labels, ("car", "person"))))
    differs = (plain != named).any(axis=2)
    assert 0 < differs.sum() < 0.1 * differs.size
    ys, xs = np.nonzero(differs)
    assert (labels[ys // 2, xs // 2] > 0).all()


# --- objects.csv ----------------------------------------------------------------------------


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def write_both(folder: Path, image: str, found: Instances) -> None:
    """objects.csv and instances.json of one image."""
    write_table(folder, image, found)
    file = CocoFile(folder / "instances.json", found.class_names)
    file.append(describe(image, found))
    file.write()


def write_table(folder: Path, image: str, found: Instances) -> None:
    table = ObjectTable(folder / "objects.csv")
    table.append(rows(image, found, measured(found.labels, len(found))))
    table.write()


def test_table_of_known_objects(tmp_path: Path) -> None:
    write_table(tmp_path, "a", found_in(TWO, ("car", "person")))
    header, *lines = (tmp_path / "objects.csv").read_text().splitlines()
    assert header == ",".join(COLUMNS)
    assert lines == [
        '"a",1,"car",0.99,"",1,0,3,2,3,1.33,0.33,3.41,0.8165' + 8 * ',""',
        '"a",2,"person",0.5,"",3,1,5,3,3,3.33,1.33,3.41,0.8165' + 8 * ',""',
    ]


def test_the_expected_iou_is_written_where_there_is_one(tmp_path: Path) -> None:
    plain = found_in(TWO, ("car", "person"))
    write_both(tmp_path, "a", replace(plain, expected_iou=np.array([0.81239, 0.4], np.float32)))
    assert [row["expected_iou"] for row in read_table(tmp_path / "objects.csv")] == [
        "0.8124",
        "0.4",
    ]
    written = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    assert [entry["expected_iou"] for entry in written] == [0.8124, 0.4]
    write_both(tmp_path, "a", plain)
    assert [row["expected_iou"] for row in read_table(tmp_path / "objects.csv")] == ["", ""]
    written = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    assert not any("expected_iou" in entry for entry in written)


def test_table_agrees_with_regionprops(tmp_path: Path) -> None:
    labels = scattered(300, 80, 70)
    write_table(tmp_path, "x", found_in(labels))
    lines, regions = read_table(tmp_path / "objects.csv"), measure.regionprops(labels)
    assert len(lines) == len(regions) == 300
    for row, region in zip(lines, regions, strict=True):
        assert int(row["id"]) == region.label
        assert tuple(int(row[c]) for c in ("y1", "x1", "y2", "x2")) == region.bbox
        assert int(row["area"]) == region.area
        at = [float(row["centroid_y"]), float(row["centroid_x"])]
        np.testing.assert_allclose(at, region.centroid, atol=0.0051)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("plain", id="plain"),
        pytest.param("0123", id="digits"),
        pytest.param("a,b;c\t", id="separators"),
        pytest.param('say "cell"', id="quotes"),
        pytest.param("two\nlines\r", id="IMG-29-newline"),
        pytest.param("-rf", id="IMG-29-dash"),
        pytest.param("caf\udce9", id="IMG-29-non-utf-8"),
        pytest.param("=1+1", id="formula"),
        pytest.param("\ta", id="formula-after-a-tab"),
        pytest.param("'=a", id="formula-quoted"),
        pytest.param("''a", id="quotes"),
        pytest.param("核/x", id="unicode"),
    ],
)
def test_names_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    write_both(tmp_path, name, found_in(TWO, (name,)))
    for row in read_table(tmp_path / "objects.csv"):
        # One leading ' keeps a spreadsheet from running the name as a formula.
        assert (row["image"].removeprefix("'"), row["class"].removeprefix("'")) == (name, name)
        assert row["image"][0] not in "=+-@\t"
    written = json.loads((tmp_path / "instances.json").read_text())
    assert written["images"][0]["file_name"] == written["categories"][0]["name"] == name


def test_images_without_objects(tmp_path: Path) -> None:
    nothing = found_in(np.zeros((5, 6), np.int32))
    write_both(tmp_path, "empty", nothing)
    assert (tmp_path / "objects.csv").read_text() == ",".join(COLUMNS) + "\n"
    written = json.loads((tmp_path / "instances.json").read_text())
    assert written["annotations"] == []
    assert [image["file_name"] for image in written["images"]] == ["empty"]


# --- instances.json -------------------------------------------------------------------------


def test_coco_file_is_read_by_pycocotools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {"a": scattered(300, 40, 90), "b/c": TWO, "none": np.zeros((4, 4), np.int32)}
    names = ("car", "person")
    file = CocoFile(tmp_path / "instances.json", names)
    for name, labels in images.items():
        file.append(describe(name, found_in(labels, names)))
    file.write()
    coco = COCO(tmp_path / "instances.json")
    assert [coco.cats[i]["name"] for i in sorted(coco.cats)] == list(names)
    for image in coco.dataset["images"]:
        labels = images[image["file_name"]]
        assert (image["height"], image["width"]) == labels.shape
        annotations = coco.imgToAnns[image["id"]]
        assert [a["label"] for a in annotations] == list(range(1, labels.max() + 1))
        rebuilt = np.zeros_like(labels)
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            assert annotation["area"] == mask.sum() == coco_mask.area(annotation["segmentation"])
            assert annotation["bbox"] == list(coco_mask.toBbox(annotation["segmentation"]))
            assert annotation["category_id"] == 1 + (annotation["label"] - 1) % 2
            rebuilt[mask] = annotation["label"]
        np.testing.assert_array_equal(rebuilt, labels)
    found = coco.loadRes(coco.dataset["annotations"])
    assert len(found.anns) == 302
    capsys.readouterr()  # pycocotools prints its progress


def test_truncated_images_are_marked(tmp_path: Path) -> None:
    whole = found_in(TWO)
    cut = Instances(TWO, whole.scores, whole.classes, whole.class_names, truncated=True)
    file = CocoFile(tmp_path / "instances.json", ["nucleus"])
    file.append(describe("whole", whole))
    file.append(describe("cut", cut))
    file.write()
    images = json.loads((tmp_path / "instances.json").read_text())["images"]
    assert [image["truncated"] for image in images] == [False, True]


@pytest.mark.slow
def test_seventy_thousand_instances_keep_distinct_ids(tmp_path: Path) -> None:
    labels = scattered(70_000, 300, 300)
    write_both(tmp_path, "x", found_in(labels))
    expected = list(range(1, 70_001))
    assert [int(row["id"]) for row in read_table(tmp_path / "objects.csv")] == expected
    annotations = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    assert [a["label"] for a in annotations] == [a["id"] for a in annotations] == expected


# --- folders --------------------------------------------------------------------------------


def test_folder_of_two_images(tmp_path: Path) -> None:
    with ResultFolder(tmp_path, ["nucleus"]) as results:
        for image, stem in (("deep/a.tif", "deep/a"), ("b", None)):
            path = results.add(image, TWO * 50, found_in(TWO), stem=stem)
            assert path == tmp_path / f"{stem or image}_overlay.png"
    for stem in ("deep/a", "b"):
        assert (tmp_path / f"{stem}_overlay.png").exists()
        np.testing.assert_array_equal(io.imread(tmp_path / f"{stem}_labels.png"), TWO)
    names = [row["image"] for row in read_table(tmp_path / "objects.csv")]
    assert names == ["deep/a.tif"] * 2 + ["b"] * 2
    images = json.loads((tmp_path / "instances.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["deep/a.tif", "b"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, ValueError])
def test_what_was_added_outlives_an_interruption(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    with pytest.raises(interruption), ResultFolder(tmp_path, ["nucleus"]) as results:  # noqa: PT012
        results.add("done", TWO * 50, found_in(TWO))
        raise interruption
    assert [row["image"] for row in read_table(tmp_path / "objects.csv")] == ["done", "done"]
    assert len(json.loads((tmp_path / "instances.json").read_text())["annotations"]) == 2


def test_a_table_that_cannot_be_written_does_not_take_the_other_along(tmp_path: Path) -> None:
    (tmp_path / "objects.csv").mkdir()
    with pytest.raises(IsADirectoryError), ResultFolder(tmp_path, ["nucleus"]) as results:
        results.add("done", TWO * 50, found_in(TWO))
    assert len(json.loads((tmp_path / "instances.json").read_text())["annotations"]) == 2


def test_writing_in_between_changes_nothing(tmp_path: Path) -> None:
    for name, early in (("early", True), ("late", False)):
        with ResultFolder(tmp_path / name, ["nucleus"]) as results:
            for image in ("a", "b", "c"):
                results.add(image, TWO * 50, found_in(TWO))
                if early:
                    results.write()
    assert len(read_table(tmp_path / "early" / "objects.csv")) == 6
    for file in ("objects.csv", "instances.json"):
        early, late = ((tmp_path / name / file).read_bytes() for name in ("early", "late"))
        assert early == late


@pytest.mark.parametrize("what", ["labels", "overlay", "table", "coco"])
def test_disk_full_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    table, coco = ObjectTable(tmp_path / "x.csv"), CocoFile(tmp_path / "x.json", ["nucleus"])
    writers = {
        "labels": lambda: write_labels(tmp_path / "x", TWO),
        "overlay": lambda: write_overlay(tmp_path / "x", TWO * 50, found_in(TWO)),
        "table": table.write,
        "coco": coco.write,
    }
    path = writers[what]()
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SpatialEmbedError) as caught:
        writers[what]()
    assert (caught.value.code, caught.value.exit_code) == ("disk_full", RESOURCE)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
