"""The COCO reader: real annotations against pycocotools, overlaps, crowds, broken files."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spatialembed.data.coco import annotation_runs, open_coco
from spatialembed.data.open import open_data
from spatialembed.errors import SpatialEmbedError
from spatialembed.method import labels
from spatialembed.options import DataOptions

SIZE = (20, 30)


def square(x1: int, y1: int, x2: int, y2: int) -> list[list[int]]:
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def annotation(number: int, segmentation: Any, category: int = 7, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": number, "image_id": 1, "category_id": category, "iscrowd": crowd,
        "segmentation": segmentation,
    }  # fmt: skip


def write(folder: Path, annotations: list[Any], **changes: Any) -> Path:
    """A data set of one image; returns its JSON file."""
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": annotations,
    }
    data |= changes
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (SIZE[1], SIZE[0])).save(folder / "images" / "a.png")
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path


def test_objects_classes_and_ids(tmp_path: Path) -> None:
    dataset = open_coco(
        write(
            tmp_path,
            [annotation(50, square(0, 0, 10, 10)), annotation(40, square(15, 5, 25, 15), 9)],
        )
    )
    assert dataset.class_names == ("cat", "dog")
    assert (dataset.names, len(dataset)) == (["a"], 1)
    sample = dataset[0]
    assert sample.target.labels[5, 5] == 1
    assert sample.target.labels[10, 20] == 2
    assert sample.target.classes.tolist() == [0, 1]
    assert sample.ids is not None
    assert sample.ids.tolist() == [50, 40]
    assert not sample.target.ignore.any()


def test_the_smaller_object_is_on_top(tmp_path: Path) -> None:
    small, large = square(5, 5, 9, 9), square(0, 0, 15, 15)
    for order in ([small, large], [large, small]):
        dataset = open_coco(write(tmp_path, [annotation(n, s) for n, s in enumerate(order)]))
        areas = np.bincount(dataset[0].target.labels.numpy().ravel())[1:]
        assert sorted(areas.tolist()) == [16, 15 * 15 - 16]


def test_a_hidden_object_is_not_there(tmp_path: Path) -> None:
    same = square(5, 5, 9, 9)
    sample = open_coco(write(tmp_path, [annotation(1, same), annotation(2, same, 9)]))[0]
    assert sample.target.classes.tolist() == [1]
    assert sample.ids is not None
    assert sample.ids.tolist() == [2]


def test_a_crowd_is_ignored_but_not_what_stands_before_it(tmp_path: Path) -> None:
    crowd = np.zeros(SIZE, bool)
    crowd[:, 10:] = True
    rle = {"size": list(SIZE), "counts": [10 * SIZE[0], 20 * SIZE[0]]}
    sample = open_coco(
        write(tmp_path, [annotation(1, rle, crowd=1), annotation(2, square(12, 2, 18, 8))])
    )[0]
    inside = sample.target.labels.numpy() > 0
    assert inside.sum() == 36
    np.testing.assert_array_equal(sample.target.ignore.numpy(), crowd & ~inside)


def test_both_kinds_of_run_lengths(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random(SIZE) < 0.5
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    plain = {"size": list(SIZE), "counts": [0, *counts] if flat[0] else counts}
    for rle in (plain, labels.encode(mask)):
        sample = open_coco(write(tmp_path, [annotation(1, rle)]))[0]
        np.testing.assert_array_equal(sample.target.labels.numpy() == 1, mask)


def test_real_annotations_are_as_pycocotools_has_them(data_root: Path) -> None:
    from pycocotools.coco import COCO

    path = data_root / "coco" / "instances.json"
    official, dataset = COCO(str(path)), open_coco(path)
    assert len(dataset) == 62
    used = {a["category_id"] for a in official.anns.values()}
    assert list(dataset.class_names) == [c["name"] for c in official.loadCats(sorted(used))]
    compared = 0
    for i in range(20):
        height, width = dataset.truth(i).labels.shape
        for mine in dataset.annotations(i):
            expected = official.annToMask(official.anns[mine.id]).astype(bool)
            drawn = np.zeros(height * width, bool)
            for start, end in annotation_runs(mine, height, width):
                drawn[start:end] = True
            np.testing.assert_array_equal(drawn.reshape(width, height).T, expected)
            compared += 1
    assert compared > 100
    sample = dataset[0]
    assert sample.target.labels.shape == sample.image.shape[:2]


BROKEN: dict[str, Callable[[Path], Path]] = {
    "two coordinates": lambda d: write(d, [annotation(31, [[1, 2, 3, 4]])]),
    "odd coordinates": lambda d: write(d, [annotation(31, [[1, 2, 3, 4, 5, 6, 7]])]),
    "text for coordinates": lambda d: write(d, [annotation(31, [[1, 2, 3, "x", 5, 6]])]),
    "no polygon": lambda d: write(d, [annotation(31, [])]),
    "null": lambda d: write(d, [annotation(31, None)]),
    "size of run lengths": lambda d: write(d, [annotation(31, {"size": [1, 2], "counts": [2]})]),
    "sum of run lengths": lambda d: write(
        d, [annotation(31, {"size": list(SIZE), "counts": [2, 3]})]
    ),
    "compressed run lengths": lambda d: write(
        d, [annotation(31, {"size": list(SIZE), "counts": "zz~"})]
    ),
    "text as numbers": lambda d: write(d, [annotation(31, [["0", "0", "9", "0", "9", "9"]])]),
    "points as pairs": lambda d: write(d, [annotation(31, [[[0, 0], [9, 0], [9, 9]] * 2])]),
    "a polygon as long as the equator": lambda d: write(
        d, [annotation(31, [[0, 0, 1e9, 0, 1e9, 1e9]])]
    ),
    "an integer beyond all floats": lambda d: write(
        d, [annotation(31, [[0, 0, 9, 0, 9, 10**400]])]
    ),
    "half a pixel of run length": lambda d: write(
        d, [annotation(31, {"size": list(SIZE), "counts": [0.5, 599.5]})]
    ),
    "a size of one number": lambda d: write(d, [annotation(31, {"size": 5, "counts": [600]})]),
    "run lengths of no text": lambda d: write(
        d, [annotation(31, {"size": list(SIZE), "counts": "\ud800"})]
    ),
    "a crowd in words": lambda d: write(d, [annotation(31, square(0, 0, 4, 4)) | {"iscrowd": "0"}]),
    "no such image": lambda d: write(d, [annotation(31, square(0, 0, 4, 4)) | {"image_id": 5}]),
    "image of a wrong type": lambda d: write(d, [annotation(31, []) | {"image_id": [1]}]),
    "category of a wrong type": lambda d: write(
        d, [annotation(31, square(0, 0, 4, 4)) | {"category_id": {}}]
    ),
    "no such category": lambda d: write(d, [annotation(31, square(0, 0, 4, 4), 8)]),
    "no segmentation": lambda d: write(d, [{"id": 31, "image_id": 1, "category_id": 7}]),
    "same id": lambda d: write(d, [annotation(31, square(0, 0, 4, 4))] * 2),
}


@pytest.mark.parametrize("name", BROKEN)
def test_names_the_annotation_that_is_broken(name: str, tmp_path: Path) -> None:
    """LBL-21."""
    with pytest.raises(SpatialEmbedError, match="annotation 31") as caught:
        open_coco(BROKEN[name](tmp_path))  # before any image is read
    assert caught.value.code == "bad_annotation"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"annotations": 3}, "bad_json"),
        ({"annotations": [4]}, "bad_annotation"),
        ({"annotations": [{"\ud8f6": 1}]}, "bad_annotation"),
        ({"categories": [{"\ud8f6": 1}]}, "bad_json"),
        ({"categories": [{"id": 1}]}, "bad_json"),
        ({"images": [{"id": 1, "file_name": "b.png", "height": 2, "width": 2}]}, "missing_pairs"),
        ({"images": []}, "no_images"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": "x", "width": 2}]}, "bad_json"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 20.5, "width": 2}]}, "bad_json"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": None, "width": 2}]}, "bad_json"),
        ({"images": [{"id": 1, "file_name": "", "height": 2, "width": 2}]}, "missing_pairs"),
        ({"images": [{"id": 1, "file_name": "a" * 999, "height": 2, "width": 2}]}, "missing_pairs"),
        ({"annotations": [annotation(1 << 70, square(0, 0, 4, 4))]}, "bad_annotation"),
        ({"categories": []}, "bad_json"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "bad_json"),
        ({"categories": [{"id": 1, "name": "\ud800"}]}, "bad_json"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 3, "width": 2}]}, "size_mismatch"),
    ],
)
def test_refuses(changes: dict[str, Any], code: str, tmp_path: Path) -> None:
    with pytest.raises(SpatialEmbedError) as caught:
        open_coco(
            write(
                tmp_path,
                changes.get("annotations", []),
                **{k: v for k, v in changes.items() if k != "annotations"},
            )
        )[0]
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_refuses_what_is_no_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(SpatialEmbedError, match="bad_json"):
        open_coco(path)


def test_missing_images_are_left_out_if_told_so(tmp_path: Path) -> None:
    images = [
        {"id": n, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]}
        for n, name in ((1, "a"), (2, "b"))
    ]
    path = write(tmp_path, [], images=images)
    assert open_coco(path, reading=DataOptions(allow_missing=True)).names == ["a"]
    assert open_coco(path, reading=DataOptions(allow_missing=True)).subset([0]).names == ["a"]
    with pytest.raises(SpatialEmbedError, match=r"b\.png"):
        open_coco(path)


def test_all_broken_annotations_are_told_of_at_once(tmp_path: Path) -> None:
    broken = [annotation(n, [[1, 2, 3, 4]]) for n in range(100, 130)]
    good = annotation(5, square(0, 0, 4, 4))
    with pytest.raises(SpatialEmbedError) as caught:
        open_coco(write(tmp_path, [broken[0], good, *broken[1:]]))
    assert all(f"annotation {n}:" in caught.value.message for n in range(100, 110))
    assert "annotation 5:" not in caught.value.message
    assert "and 20 more" in caught.value.message


CRAFTED: dict[str, Any] = {
    # Counts of 2^62 four times: their sum wraps to 0 in 64 bits.
    "counts that wrap": "PPPPPPPPPPPP4PPPPPPPPPPPP4PPPPPPPPPPPP44",
    "negative counts": "PPPPPPPPP`04PPPPPPPPP@",
    "plain counts that wrap": [2**62, 2**62, 2**62, 2**62 + 600],
    "plain counts beyond 64 bits": [2**64, 600 - 2**64],
    "a negative count": [700, -100],
    "counts that are infinite": [float("inf")],
    "counts in lists": [[600]],
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_run_lengths_are_refused(name: str, tmp_path: Path) -> None:
    rle = {"size": list(SIZE), "counts": CRAFTED[name]}
    with pytest.raises(SpatialEmbedError, match="bad_annotation"):
        open_coco(write(tmp_path, [annotation(1, rle)]))


def test_an_endless_outline_is_refused(tmp_path: Path) -> None:
    """A small file may not ask for hours: outlines are followed pixel by pixel."""
    zigzag = [v for _ in range(2000) for v in (-SIZE[1], -SIZE[0], 2 * SIZE[1], 2 * SIZE[0])]
    with pytest.raises(SpatialEmbedError, match="outline"):
        open_coco(write(tmp_path, [annotation(1, [zigzag])]))


def test_an_image_of_impossible_size_is_refused(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "height": 1 << 40, "width": 1 << 20}]
    with pytest.raises(SpatialEmbedError, match="too_large"):
        open_coco(write(tmp_path, [], images=images))


def test_reading_twice_gives_the_same_and_what_was_changed_is_not_kept(tmp_path: Path) -> None:
    crowd = annotation(1, square(0, 0, 6, 6), crowd=1)
    dataset = open_coco(write(tmp_path, [crowd, annotation(2, square(12, 2, 18, 8), 9)]))
    first = dataset[0]
    parts = ("labels", "classes", "ignore")
    expected = {name: getattr(first.target, name).clone() for name in parts}
    for name in parts:
        getattr(first.target, name).zero_()
    for again in (dataset[0].target, dataset.subset([0]).truth(0)):
        for name in parts:
            torch.testing.assert_close(getattr(again, name), expected[name], rtol=0, atol=0)


def test_many_objects_cost_no_mask_of_the_image_each(tmp_path: Path) -> None:
    """2,000 objects on 1,500 x 1,500 px: masks alone would take 4.5 GB."""
    side, count = 1500, 2000
    places = [(30 * (i % 45), 30 * (i // 45)) for i in range(count)]
    annotations = [annotation(i, square(x, y, x + 20, y + 20)) for i, (x, y) in enumerate(places)]
    images = [{"id": 1, "file_name": "a.png", "height": side, "width": side}]
    dataset = open_coco(write(tmp_path, annotations, images=images))
    tracemalloc.start()
    target = dataset.truth(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(np.bincount(target.labels.numpy().ravel())[1:], 400)
    assert len(target.classes) == count
    assert peak < 32 * side * side


def test_crowds_are_counted_aloud_and_can_be_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(
        tmp_path, [annotation(1, square(0, 0, 4, 4), crowd=1), annotation(2, square(9, 9, 14, 14))]
    )
    ignored = open_coco(path)
    assert "1 of 2 annotations are crowds" in caplog.text
    assert "--crowd-as-objects" in caplog.text
    assert len(ignored[0].target.classes) == 1
    caplog.clear()
    taken = open_data(path, reading=DataOptions(crowd_as_objects=True))
    assert "are crowds" not in caplog.text
    assert len(taken[0].target.classes) == 2
    assert not taken[0].target.ignore.any()


def test_a_parent_of_categories_without_objects_is_no_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "cell", "supercategory": "cells"},
        {"id": 2, "name": "person", "supercategory": "person"},
    ]
    path = write(tmp_path, [annotation(1, square(0, 0, 4, 4), 1)], categories=categories)
    assert open_coco(path).class_names == ("cell",)
    assert "2 of 3 categories have no object and are no classes: cells, person" in caplog.text
    path = write(tmp_path, [], categories=categories)  # nothing says which are meant
    assert open_coco(path).class_names == ("cell", "person")
