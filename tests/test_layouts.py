"""Foreign layouts: each converted to the same labels that COCO's own code draws; hostile ones."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from spatialembed.command.main import main
from spatialembed.data.coco import open_coco
from spatialembed.data.layouts.convert import convert
from spatialembed.data.layouts.detect import detect
from spatialembed.data.open import open_data
from spatialembed.doctor.survey import check_layout
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.write import write_png
from spatialembed.training.options import TrainOptions
from spatialembed.training.setup import open_split

H, W = 40, 60
SHAPES = [
    ("cell", [5.0, 5.0, 25.5, 4.0, 28.0, 20.0, 12.5, 24.0]),
    ("cell", [20.0, 10.0, 40.0, 10.0, 40.0, 30.0, 20.0, 30.0]),
    ("dirt", [44.2, 3.1, 55.9, 8.6, 47.0, 17.0]),
    ("cell", [30.0, 15.0, 34.0, 15.0, 34.0, 19.0, 30.0, 19.0]),
]
"""Class and polygon of each object; some overlap."""


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (H, W, 3)).astype(np.uint8)


def truth() -> np.ndarray:
    """(H, W) ids 1..4 by pycocotools, the smaller object on top."""
    from pycocotools import mask as coco

    masks = [coco.decode(coco.frPyObjects([xy], H, W))[..., 0].astype(bool) for _, xy in SHAPES]
    labels = np.zeros((H, W), np.int64)
    for i in sorted(range(len(masks)), key=lambda i: -masks[i].sum()):
        labels[masks[i]] = i + 1
    return labels


def as_labelme(at: Path) -> Path:
    shapes = [
        {"label": n, "points": np.reshape(xy, (-1, 2)).tolist(), "shape_type": "polygon"}
        for n, xy in SHAPES
    ]
    write_png(at / "a.png", picture())
    said = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "..\\x\\a.png"}
    said |= {"imageData": None, "imageHeight": H, "imageWidth": W}
    (at / "a.json").write_text(json.dumps(said))
    return at


def as_yolo(at: Path) -> Path:
    names = ["dirt", "cell"]
    write_png(at / "images" / "a.png", picture())
    (at / "labels").mkdir()
    lines = [
        " ".join(map(repr, [names.index(n), *(np.reshape(xy, (-1, 2)) / (W, H)).ravel().tolist()]))
        for n, xy in SHAPES
    ]
    (at / "labels" / "a.txt").write_text("\n".join(lines) + "\n\n")
    (at / "data.yaml").write_text("train: images\nnc: 2\nnames: [dirt, cell]\n")
    return at


def as_cvat(at: Path) -> Path:
    def points(xy: list[float]) -> str:
        return ";".join(f"{x},{y}" for x, y in np.reshape(xy, (-1, 2)))

    shapes = "".join(
        f'<polygon label="{n}" source="manual" occluded="0" points="{points(xy)}" z_order="0"/>'
        for n, xy in SHAPES
    )
    write_png(at / "images" / "a.png", picture())
    (at / "annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task>'
        f'<name>t</name></task></meta><image id="0" name="a.png" width="{W}" height="{H}">'
        f'{shapes}<points label="cell" points="1,1"/></image></annotations>'
    )
    return at


def as_label_studio(at: Path) -> Path:
    result = [
        {
            "id": f"r{i}", "type": "polygonlabels", "original_width": W, "original_height": H,
            "image_rotation": 0,
            "value": {"points": (np.reshape(xy, (-1, 2)) / (W, H) * 100).tolist(), "closed": True,
                      "polygonlabels": [n]},
        }
        for i, (n, xy) in enumerate(SHAPES)
    ]  # fmt: skip
    write_png(at / "images" / "a.png", picture())
    task = {"id": 7, "data": {"image": "/data/upload/3/0a1b2c3d-a.png"}, "annotations": [
        {"id": 1, "was_cancelled": True, "result": []}, {"id": 2, "result": result}]}  # fmt: skip
    skipped = {"id": 8, "data": {"image": "/x/b.png"}, "annotations": []}
    path = at / "project.json"
    path.write_text(json.dumps([task, skipped]))
    return path


def as_coco(at: Path) -> Path:
    """Beside its image, with a name of another machine."""
    write_png(at / "a.png", picture())
    categories = [{"id": i, "name": n} for i, n in enumerate(("cell", "dirt", "unused"), start=1)]
    image = {"id": 1, "file_name": "C:\\data\\set\\a.png", "height": H, "width": W}
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1 + (n == "dirt"), "segmentation": [xy]}
        for i, (n, xy) in enumerate(SHAPES)
    ]
    path = at / "instances.json"
    path.write_text(
        json.dumps({"images": [image], "categories": categories, "annotations": annotations})
    )
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "labelme": as_labelme, "yolo": as_yolo, "cvat": as_cvat, "label-studio": as_label_studio,
    "coco": as_coco,
}  # fmt: skip


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "classes.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", WRITERS)
def test_polygons_become_the_pixels_of_coco(kind: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = WRITERS[kind](tmp_path / "in")
    assert detect(path) == kind
    out = tmp_path / "out"
    done = convert(path, out, progress=False)
    assert (done.kind, done.images, done.exit_code, done.failed) == (kind, 1, 0, [])
    assert dict(done.classes) == {"cell": 3, "dirt": 1}
    assert done.overlapped == 1  # the largest, under two others
    dataset = open_data(out)
    assert dataset.class_names == ("cell", "dirt")
    sample = dataset[0]
    np.testing.assert_array_equal(sample.target.labels.numpy(), truth())
    assert sample.target.classes.tolist() == [0, 0, 1, 0]
    np.testing.assert_array_equal(sample.image, picture())
    assert [row["source"] != "" for row in rows(out)] == [True] * 4


@pytest.mark.parametrize("kind", WRITERS)
def test_the_command(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    path, out = WRITERS[kind](tmp_path / "in"), tmp_path / "out"
    assert main(["data", "convert", str(path), "--out", str(out), "--kind", kind]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 1 image, 4 objects ({kind})" in said
    assert "classes: cell 3, dirt 1" in said
    assert "1 object lies partly under a smaller one" in said
    assert main(["data", "convert", str(path), "--out", str(out)]) == 2
    assert "not_empty" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["labelme", "yolo", "cvat", "label-studio"])
def test_each_refusal_names_the_command(kind: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = WRITERS[kind](tmp_path / "in")
    wanted = f"this looks like {kind}: spatialembed data convert {path} --out DIR"
    with pytest.raises(SpatialEmbedError) as caught:
        open_data(path)
    assert caught.value.remedy == wanted
    with pytest.raises(SpatialEmbedError) as caught:
        check_layout(path)
    assert caught.value.remedy == wanted


def test_the_doctor_wants_coco_converted(tmp_path: Path) -> None:
    path = as_coco(tmp_path)
    with pytest.raises(SpatialEmbedError, match="data convert"):
        check_layout(path)
    with pytest.raises(SpatialEmbedError, match="for COCO annotations name their file"):
        open_data(tmp_path)


def test_a_mask_for_each_object(tmp_path: Path) -> None:
    """Two parts; one mask lies within another and one is empty."""
    labels = truth()
    for part in ("train", "val"):
        folder = tmp_path / "in" / f"{part}" / "0ab1"
        write_png(folder / "images" / "0ab1.png", picture())
        for i in range(1, 5):
            write_png(folder / "masks" / f"m{i}.png", ((labels == i) * 255).astype(np.uint8))
        write_png(folder / "masks" / "m5.png", np.zeros((H, W), np.uint8))
    with pytest.raises(SpatialEmbedError, match="looks like one-mask-each: spatialembed data"):
        open_data(tmp_path / "in")
    done = convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert (done.kind, done.splits, done.hidden) == ("one-mask-each", ("train", "val"), 2)
    for part in ("train", "val"):
        dataset = open_data(tmp_path / "out", split=part)  # type: ignore[arg-type]
        assert dataset.names == ["0ab1"]
        np.testing.assert_array_equal(dataset[0].target.labels.numpy(), labels)


def test_labelme_with_folders_of_its_own_and_odd_names(tmp_path: Path) -> None:
    """annotations/ beside images/, a JSON file called a.png.json, parts, an own folder by flag."""
    shape = {"label": "a", "points": [[1, 1], [9, 1], [9, 9], [1, 9]]}
    for part in ("train", "val"):
        write_png(tmp_path / "in" / "images" / part / "a.png", picture())
        (tmp_path / "in" / "annotations" / part).mkdir(parents=True)
        said = {"shapes": [shape], "imagePath": f"..\\..\\images\\{part}\\a.png"}
        (tmp_path / "in" / "annotations" / part / "a.png.json").write_text(json.dumps(said))
    done = convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert (done.images, done.splits) == (2, ("train", "val"))
    dataset = open_data(tmp_path / "out", split="val")
    assert (dataset.names, dataset.class_names) == (["annotations/a.png"], ("a",))
    assert dataset[0].target.labels.sum() == 64
    source, images = tmp_path / "in" / "annotations" / "val", tmp_path / "in" / "images" / "val"
    with pytest.raises(SpatialEmbedError, match=r"missing_pairs.*--images"):
        convert(source, tmp_path / "out2")
    assert convert(source, tmp_path / "out2", images=images, progress=False).images == 1


def test_yolo_of_ultralytics(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_png(tmp_path / "images" / part / "a.png", picture())
        (tmp_path / "labels" / part).mkdir(parents=True)
        (tmp_path / "labels" / part / "a.txt").write_text("1 0 0 0.5 0 0.5 0.5 0 0.5\n")
    (tmp_path / "data.yaml").write_text("path: ../x\ntrain: images/train\nnames: {0: a, 1: b}\n")
    done = convert(tmp_path, tmp_path / "out", progress=False)
    assert (done.splits, dict(done.classes)) == (("train", "val"), {"b": 2})
    assert open_data(tmp_path / "out", split="train")[0].target.labels.sum() == H * W // 4
    (tmp_path / "labels" / "val" / "b.txt").write_text("")
    shutil.rmtree(tmp_path / "out")  # it has images, and lies below the source
    done = convert(tmp_path, tmp_path / "out2", progress=False)
    assert (done.images, done.exit_code) == (2, 6)
    assert [(name, error.code) for name, error in done.failed] == [("b", "missing_pairs")]


def test_our_own_folders_are_no_foreign_layout(tmp_path: Path) -> None:
    for at in (tmp_path / "flat", tmp_path / "parts" / "train", tmp_path / "parts" / "val"):
        for folder in ("images", "masks"):
            write_png(at / folder / "a.png", np.zeros((4, 4), np.uint8))
    assert detect(tmp_path / "flat") is None
    assert detect(tmp_path / "parts") is None


def disk(cx: float, cy: float, radius: float) -> np.ndarray:
    """(H, W) bool: pixels whose middle is inside."""
    y, x = np.mgrid[:H, :W] + 0.5
    return np.hypot(x - cx, y - cy) < radius


def labelme_of(at: Path, shapes: list[dict[str, Any]], **more: Any) -> np.ndarray:
    """Labels that a labelme file becomes."""
    (at / "in").mkdir(parents=True)
    write_png(at / "in" / "a.png", picture())
    said = {"shapes": shapes, "imagePath": "a.png", "imageHeight": H, "imageWidth": W} | more
    (at / "in" / "a.json").write_text(json.dumps(said))
    done = convert(at / "in", at / "out", progress=False)
    for _, error in done.failed:
        raise error
    return open_data(at / "out")[0].target.labels.numpy()


def png(mask: np.ndarray) -> str:
    stream = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_labelme_rectangles_circles_masks_and_groups(tmp_path: Path) -> None:
    ring = disk(12, 12, 6)[6:18, 6:18] & ~disk(12, 12, 3)[6:18, 6:18]
    shapes = [
        {"label": "a", "points": [[30, 5], [20, 15]], "shape_type": "rectangle"},
        {"label": "a", "points": [[45, 25], [45, 33]], "shape_type": "circle"},
        {"label": "a", "points": [[6, 6], [17, 17]], "shape_type": "mask", "mask": png(ring)},
        {"label": "a", "points": [[1, 1]], "shape_type": "point"},
        {"label": "b", "points": [[0, 30], [5, 30], [5, 35], [0, 35]], "group_id": 3},
        {"label": "b", "points": [[8, 30], [12, 30], [12, 35], [8, 35]], "group_id": 3},
    ]
    labels = labelme_of(tmp_path, shapes)
    wanted = np.zeros((H, W), int)
    wanted[5:15, 20:30] = 1
    wanted[6:18, 6:18][ring] = 3
    wanted[30:35, 0:5] = wanted[30:35, 8:12] = 4
    circle = disk(45, 25, 8)
    assert ((labels == 2) ^ circle).sum() <= 8  # a polygon by COCO's rule, which rounds outwards
    np.testing.assert_array_equal(np.where(circle | (labels == 2), 0, labels),
                                  np.where(circle | (labels == 2), 0, wanted))  # fmt: skip


def test_an_embedded_image_and_its_class_with_a_comma(tmp_path: Path) -> None:
    stream = BytesIO()
    Image.fromarray(picture()).save(stream, "JPEG")
    said = {
        "shapes": [{"label": "a, b", "points": [[1, 1], [9, 1], [9, 9]]}], "imagePath": "gone.jpg",
        "imageData": base64.b64encode(stream.getvalue()).decode(),
    }  # fmt: skip
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.json").write_text(json.dumps(said))
    done = convert(tmp_path / "in" / "x.json", tmp_path / "out", progress=False)
    assert done.images == 1
    assert (tmp_path / "out" / "images" / "x.jpg").read_bytes() == stream.getvalue()
    assert open_data(tmp_path / "out").class_names == ("a, b",)


def brush(mask: np.ndarray) -> list[int]:
    """Run lengths of Label Studio, as its own converter writes them: RGBA of 0 or 255."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}{8 - 1:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    at = 0
    while at < len(values):
        run = 1
        while at + run < len(values) and values[at + run] == values[at] and run < 65536:
            run += 1
        bits += f"1{3:02b}{run - 1:016b}{values[at]:08b}"
        at += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_label_studio_brush_boxes_and_ellipses(tmp_path: Path) -> None:
    ring = disk(12, 12, 8) & ~disk(12, 12, 4)
    size = {"original_width": W, "original_height": H}
    result = [
        size | {"id": "b", "type": "brushlabels",
                "value": {"format": "rle", "rle": brush(ring), "brushlabels": ["ring"]}},
        size | {"id": "r", "type": "rectangle",
                "value": {"x": 50, "y": 50, "width": 10, "height": 25, "rotation": 0}},
        size | {"id": "r", "type": "labels", "value": {"labels": ["box"]}},
        size | {"id": "t", "type": "rectanglelabels",  # turned around its corner, to the left
                "value": {"x": 80, "y": 50, "width": 10, "height": 25, "rotation": 90,
                          "rectanglelabels": ["box"]}},
        size | {"id": "k", "type": "keypointlabels", "value": {"x": 1, "y": 1}},
    ]  # fmt: skip
    write_png(tmp_path / "a.png", picture())
    task = {"id": 1, "data": {"image": "/data/local-files/?d=set%2Fa.png"},
            "annotations": [{"result": result}]}  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps([task]))
    done = convert(tmp_path / "p.json", tmp_path / "out", progress=False)
    assert dict(done.classes) == {"ring": 1, "box": 2}
    wanted = np.zeros((H, W), int)
    wanted[ring] = 1
    wanted[20:30, 30:36] = 2
    wanted[20:26, 38:48] = 3
    np.testing.assert_array_equal(open_data(tmp_path / "out")[0].target.labels.numpy(), wanted)


def test_cvat_boxes_masks_layers_and_parts(tmp_path: Path) -> None:
    shapes = (
        '<box label="a" xtl="2" ytl="3" xbr="12" ybr="9" z_order="1"/>'
        '<polygon label="a" points="4,4;8,4;8,8;4,8" z_order="0"/>'
        '<mask label="b" rle="1, 2, 1, 4" left="20" top="30" width="4" height="2" z_order="0"/>'
        '<box label="b" xtl="30" ytl="10" xbr="40" ybr="14" rotation="90" z_order="0"/>'
    )
    said = "".join(
        f'<image id="{i}" name="{name}" subset="{part}" width="{W}" height="{H}">{shapes}</image>'
        for i, (name, part) in enumerate([("a.png", "Train"), ("b.png", "Validation")])
    )
    (tmp_path / "annotations.xml").write_text(f"<annotations>{said}</annotations>")
    for name in ("a.png", "Validation/b.png"):
        write_png(tmp_path / "images" / name, picture())
    done = convert(tmp_path, tmp_path / "out", progress=False)
    assert (done.splits, done.images, done.hidden) == (("train", "val"), 2, 2)
    wanted = np.zeros((H, W), int)
    wanted[3:9, 2:12] = 1  # on top of the smaller one, by its z_order
    wanted[30, 21:23] = 2
    wanted[31, 20:24] = 2
    wanted[7:17, 33:37] = 3
    for part in ("train", "val"):
        dataset = open_data(tmp_path / "out", split=part)  # type: ignore[arg-type]
        np.testing.assert_array_equal(dataset[0].target.labels.numpy(), wanted)
        assert dataset[0].target.classes.tolist() == [0, 1, 1]


def test_yolo_of_roboflow_with_boxes_and_empty_images(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        for name in ("a", "b"):
            write_png(tmp_path / part / "images" / f"{name}.png", picture())
        (tmp_path / part / "labels").mkdir()
        (tmp_path / part / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.2\n")
    (tmp_path / "data.yaml").write_text("names:\n  0: thing\n")
    with pytest.raises(SpatialEmbedError, match="looks like yolo: spatialembed data convert"):
        open_data(tmp_path, split="train")
    done = convert(tmp_path / "data.yaml", tmp_path / "out", progress=False)
    assert (done.splits, done.images, done.empty) == (("train", "val"), 4, 2)
    labels = open_data(tmp_path / "out", split="val")[0].target.labels.numpy()
    wanted = np.zeros((H, W), int)
    wanted[16:24, 27:33] = 1
    np.testing.assert_array_equal(labels, wanted)
    assert len(open_data(tmp_path / "out", split="train")[1].target.classes) == 0


def test_an_object_in_parts_alone_in_its_image_is_read_again(tmp_path: Path) -> None:
    parts = [[[1, 1], [5, 1], [5, 5], [1, 5]], [[20, 20], [30, 20], [30, 30], [20, 30]]]
    shapes = [{"label": "a", "points": points, "group_id": 1} for points in parts]
    assert labelme_of(tmp_path, shapes).max() == 1


def test_a_turned_image_becomes_upright(tmp_path: Path) -> None:
    """labelme and the others show images upright, and outlines lie on that."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.zeros((H, W, 3), np.uint8)
    upright[:10, :10] = 200
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    shape = {"label": "a", "points": [[0, 0], [10, 0], [10, 10], [0, 10]]}
    said = {"shapes": [shape], "imagePath": "a.png", "imageHeight": H, "imageWidth": W}
    (tmp_path / "a.json").write_text(json.dumps(said))
    convert(tmp_path, tmp_path / "out", progress=False)
    sample = open_data(tmp_path / "out")[0]
    np.testing.assert_array_equal(sample.image[..., 0] > 0, sample.target.labels.numpy() == 1)


def test_a_turned_image_of_several_pages_is_refused(tmp_path: Path) -> None:
    """Upright it would have its first page alone."""
    pages = np.zeros((2, W, H), np.uint8)
    turn = [(274, "H", 1, 6, True)]
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack", extratags=turn)
    shape = {"label": "a", "points": [[0, 0], [10, 0], [10, 10], [0, 10]]}
    said = {"shapes": [shape], "imagePath": "a.tif", "imageHeight": H, "imageWidth": W}
    (tmp_path / "a.json").write_text(json.dumps(said))
    done = convert(tmp_path, tmp_path / "out", progress=False)
    ((_, error),) = done.failed
    assert (error.code, "6 of 2 pages" in error.message) == ("oriented_image", True)


def test_a_broken_image_does_not_end_the_others(tmp_path: Path) -> None:
    as_labelme(tmp_path)
    said = json.loads((tmp_path / "a.json").read_text()) | {"imagePath": "b.png"}
    (tmp_path / "b.json").write_text(json.dumps(said))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    done = convert(tmp_path, tmp_path / "out", progress=False)
    assert (done.images, done.exit_code) == (1, 6)
    assert [(name, error.code) for name, error in done.failed] == [("b", "truncated")]
    assert len(open_data(tmp_path / "out")) == 1


BAD_LABELME: dict[str, tuple[str, Any]] = {
    "points of words": ("bad_annotation", {"points": [["a", "b"]]}),
    "two corners": ("bad_annotation", {"points": [[1, 1], [2, 2]]}),
    "a key that is no UTF-8": ("bad_annotation", {"\ud8f6": 1}),
    "NaN": ("bad_annotation", {"points": [[1, 1], [float("nan"), 2], [3, 3]]}),
    "far outside": ("bad_annotation", {"points": [[1, 1], [1e9, 2], [3, 3]]}),
    "no label": ("bad_annotation", {"label": " "}),
    "control characters": ("bad_annotation", {"label": "a\x1b[31m"}),
    "a mask beyond the image": (
        "bad_annotation", {"shape_type": "mask", "points": [[55, 1], [65, 9]],
                           "mask": png(np.ones((8, 10)))},
    ),
    "a mask that is no PNG": (
        "not_an_image", {"shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "AAAA"},
    ),
    "no base64": (
        "bad_annotation", {"shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "!"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_LABELME)
def test_broken_labelme(fault: str, tmp_path: Path) -> None:
    code, changes = BAD_LABELME[fault]
    shape = {"label": "a", "points": [[1, 1], [9, 1], [9, 9]]} | changes
    with pytest.raises(SpatialEmbedError) as caught:
        labelme_of(tmp_path, [shape])
    assert caught.value.code == code


def test_an_image_of_another_size_or_none(tmp_path: Path) -> None:
    shape = {"label": "a", "points": [[1, 1], [9, 1], [9, 9]]}
    for i, (code, more) in enumerate(
        {"size_mismatch": {"imageWidth": 9}, "too_large": {"imageHeight": 10**9}}.items()
    ):
        with pytest.raises(SpatialEmbedError) as caught:
            labelme_of(tmp_path / str(i), [shape], **more)
        assert caught.value.code == code
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "../a.png"}))
    with pytest.raises(SpatialEmbedError, match=r"missing_pairs.*--images"):
        convert(tmp_path / "in", tmp_path / "out")


BAD_XML = {
    "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations><image/></annotations>": "a document type",
    "<annotations><image width='3'": "not XML",
    "<other/>": "its root is 'other'",
    "<annotations><track/></annotations>": "a video of CVAT",
    "<annotations><image name='a.png' width='-1' height='5'/></annotations>": "size",
    "<annotations/>": "no image in it",
}


@pytest.mark.parametrize("text", BAD_XML)
def test_broken_cvat(text: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(SpatialEmbedError, match=BAD_XML[text]):
        convert(tmp_path / "annotations.xml", tmp_path / "out", kind="cvat", progress=False)


@pytest.mark.parametrize(
    ("rle", "box"),
    [
        ("1, 2", "left='0' top='0' width='2' height='2'"),
        ("4", "left='59' top='0' width='2' height='2'"),
        ("4", "left='-1' top='0' width='2' height='2'"),
        ("1,-1,4", "left='0' top='0' width='2' height='2'"),
        ("9999999999", "left='0' top='0' width='2' height='2'"),
        ("4", "left='0' top='0' width='1e9' height='1e9'"),
    ],
)
def test_broken_masks_of_cvat(rle: str, box: str, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture())
    (tmp_path / "annotations.xml").write_text(
        f"<annotations><image name='a.png' width='{W}' height='{H}'>"
        f"<mask label='a' rle='{rle}' {box}/></image></annotations>"
    )
    done = convert(tmp_path, tmp_path / "out", progress=False)
    assert [error.code for _, error in done.failed] == ["bad_annotation"]
    assert done.exit_code == 3


@pytest.mark.parametrize(
    "line", ["a 0 0 1 0 1 1", "0 0 0 1 0 1 x", "0 0 0 5 0 1 1", "0 0 0 1", "9 0 0 1 0 1 1"]
)
def test_broken_lines_of_yolo(line: str, tmp_path: Path) -> None:
    as_yolo(tmp_path)
    (tmp_path / "labels" / "a.txt").write_text(line)
    done = convert(tmp_path, tmp_path / "out", progress=False)
    assert [error.code for _, error in done.failed] == ["bad_annotation"]


@pytest.mark.parametrize("rle", [[], [0] * 30, [255] * 400, "x", [256], brush(np.ones((H, W + 1)))])
def test_broken_brushes(rle: Any, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture())
    one = {"id": "b", "type": "brushlabels", "original_width": W, "original_height": H,
           "value": {"rle": rle, "brushlabels": ["a"]}}  # fmt: skip
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [one]}]}
    (tmp_path / "p.json").write_text(json.dumps([task]))
    done = convert(tmp_path / "p.json", tmp_path / "out", progress=False)
    assert [error.code for _, error in done.failed] == ["bad_annotation"]


def test_brushes_of_a_false_size_take_no_memory(tmp_path: Path) -> None:
    """Stated 10,000 x 10,000 px, the image has 40 x 60; or a second brush of another size."""
    write_png(tmp_path / "a.png", picture())
    small = {"type": "brushlabels", "original_width": W, "original_height": H,
             "value": {"rle": brush(np.ones((H, W))), "brushlabels": ["a"]}}  # fmt: skip
    side = 10_000
    rle = [*(4 * side**2).to_bytes(4, "big"), *brush(np.ones((H, W)))[4:]]
    large = small | {"original_width": side, "original_height": side, "value": {"rle": rle}}
    for results, code in (([large], "size_mismatch"), ([small, large], "bad_annotation")):
        named = [result | {"id": str(i)} for i, result in enumerate(results)]
        task = {"data": {"image": "a.png"}, "annotations": [{"result": named}]}
        (tmp_path / "p.json").write_text(json.dumps([task]))
        tracemalloc.start()
        done = convert(tmp_path / "p.json", tmp_path / "out", progress=False)
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()
        assert [error.code for _, error in done.failed] == [code]


def test_a_zip_is_to_be_unpacked(tmp_path: Path) -> None:
    as_cvat(tmp_path / "in")
    path = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "in")
    with pytest.raises(SpatialEmbedError, match=r"unknown_layout.*unpack it"):
        convert(path, tmp_path / "out")


def test_unknown_layouts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(SpatialEmbedError, match=r"unknown_layout.*--kind: labelme"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(SpatialEmbedError, match="not_found"):
        convert(tmp_path / "b", tmp_path / "out")
    (tmp_path / "m.json").write_text('[{"image": "a.png", "label": [{"original_width": 3}]}]')
    with pytest.raises(SpatialEmbedError, match="not as JSON-MIN"):
        convert(tmp_path / "m.json", tmp_path / "out")


def test_a_folder_of_several_coco_files_is_converted_whole(tmp_path: Path) -> None:
    """train/ and valid/ with a file each, as Roboflow; or both in annotations/, named by part."""
    for part in ("train", "valid"):
        as_coco(tmp_path / "in" / part).rename(tmp_path / "in" / part / "_annotations.coco.json")
    done = convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert (done.kind, done.splits, done.images) == ("coco", ("train", "val"), 2)
    flat = tmp_path / "flat"
    for part in ("train", "val"):
        path = as_coco(flat)
        said = json.loads(path.read_text())
        said["images"][0]["file_name"] = f"{part}.png"
        write_png(flat / "images" / f"{part}.png", picture())
        (flat / "annotations").mkdir(exist_ok=True)
        (flat / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(said))
        path.unlink()
    done = convert(flat, tmp_path / "out2", progress=False)
    assert (done.splits, done.images) == (("train", "val"), 2)
    for split in ("train", "val"):
        dataset = open_data(tmp_path / "out2", split=split)  # type: ignore[arg-type]
        assert dataset.names == [split]
        np.testing.assert_array_equal(dataset[0].target.labels.numpy(), truth())


@pytest.mark.parametrize("kind", ["labelme", "one-mask-each"])
def test_images_without_annotation_are_told_of(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_labelme(tmp_path)
    if kind == "one-mask-each":
        (tmp_path / "a.json").unlink()
        (tmp_path / "a.png").rename(tmp_path / "z.png")
        write_png(tmp_path / "a" / "masks" / "m.png", np.ones((H, W), np.uint8))
        write_png(tmp_path / "a" / "images" / "a.png", picture())
    write_png(tmp_path / "b" / "images" / "b.png", picture())
    done = convert(tmp_path, tmp_path / "out", progress=False)
    assert (done.kind, done.images) == (kind, 1)
    count = 1 + (kind != "labelme")
    assert f"{count} images that no annotation names are left out" in caplog.text


def test_masks_without_image_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        write_png(tmp_path / name / "masks" / "m.png", np.ones((H, W), np.uint8))
    write_png(tmp_path / "a" / "images" / "a.png", picture())
    with pytest.raises(SpatialEmbedError, match=r"no_layout.*b.images: 0 images"):
        convert(tmp_path, tmp_path / "out", progress=False)


def test_odd_names_keep_their_classes(tmp_path: Path) -> None:
    """Blanks at the ends, dots, suffixes in capitals; a name that no CSV file can hold fails."""
    corners = [[[1, 1], [9, 1], [9, 9]], [[20, 1], [29, 1], [29, 9]]]
    shapes = [{"label": n, "points": xy} for n, xy in zip(("ü, é", "b"), corners, strict=True)]
    names = [" a ", "v1.5", "-x", "b.PNG", "n" * 246, "zelle\n2", os.fsdecode(b"\xff")]
    (tmp_path / "in").mkdir()
    for name in names:
        write_png(tmp_path / "in" / "a.png", picture())
        (tmp_path / "in" / "a.png").rename(tmp_path / "in" / f"{name}.PNG")
        said = {"shapes": shapes, "imagePath": "gone"}
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(said))
    done = convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert [(name, error.code) for name, error in done.failed] == [(names[-1], "bad_annotation")]
    dataset = open_data(tmp_path / "out")
    assert sorted(dataset.names) == sorted(names[:-1])
    assert dataset.class_names == ("b", "ü, é")
    assert all(dataset[i].target.classes.tolist() == [1, 0] for i in range(len(dataset)))


def test_a_full_disk_ends_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SpatialEmbedError("disk_full", "no space left", "make room", 5)

    as_yolo(tmp_path / "in")
    monkeypatch.setattr("spatialembed.data.layouts.convert.write_png", full)
    with pytest.raises(SpatialEmbedError, match="disk_full"):
        convert(tmp_path / "in", tmp_path / "out", progress=False)


def test_label_studio_uploads_of_names_with_blanks(tmp_path: Path) -> None:
    path = as_label_studio(tmp_path)
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "my cell (1).png")
    path.write_text(path.read_text().replace("0a1b2c3d-a.png", "0a1b2c3d-my_cell_1.png"))
    convert(path, tmp_path / "out", progress=False)
    assert open_data(tmp_path / "out").names == ["my cell (1)"]
    write_png(tmp_path / "images" / "my_cell_(1).png", picture())  # which of the two?
    with pytest.raises(SpatialEmbedError, match="missing_pairs"):
        convert(path, tmp_path / "out2", progress=False)


def test_a_pipe_is_no_file_of_annotations(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    for kind in ("coco", "labelme", "label-studio"):
        with pytest.raises(SpatialEmbedError, match="not_a_file"):
            convert(tmp_path / "a.json", tmp_path / "out", kind=kind)


def test_coco_finds_images_by_any_prefix_and_only_in_its_folders(tmp_path: Path) -> None:
    for name in ("images/a.png", "/mnt/x/a.png", "C:\\x\\a.png", "../../a.png", "deep/a.png"):
        path = as_coco(tmp_path)
        said = json.loads(path.read_text())
        said["images"][0]["file_name"] = name
        path.write_text(json.dumps(said))
        assert open_coco(path).names == ["a"]
    (tmp_path / "deep").mkdir()
    path = as_coco(tmp_path / "deep")
    (tmp_path / "deep" / "a.png").unlink()
    said["images"][0]["file_name"] = "../a.png"
    path.write_text(json.dumps(said))
    with pytest.raises(SpatialEmbedError, match="missing_pairs"):
        open_coco(path)


@pytest.mark.parametrize("images", ["val2017", "images/val2017"])
def test_coco_finds_images_in_the_folder_of_its_part(images: str, tmp_path: Path) -> None:
    """annotations/instances_val2017.json beside val2017/ as COCO comes, or images/NAME/ by CVAT."""
    (tmp_path / "annotations").mkdir()
    path = as_coco(tmp_path).rename(tmp_path / "annotations" / "instances_val2017.json")
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / "a.png").rename(tmp_path / images / "a.png")
    np.testing.assert_array_equal(open_coco(path)[0].image, picture())


def test_missing_images_of_coco_are_named_by_the_flag_that_helps(tmp_path: Path) -> None:
    path = as_coco(tmp_path / "in")
    (tmp_path / "in" / "a.png").rename(tmp_path / "a.png")
    with pytest.raises(SpatialEmbedError, match=r"missing_pairs.*--allow-missing"):
        open_coco(path)
    with pytest.raises(SpatialEmbedError, match=r"missing_pairs.*the images with --images"):
        convert(path, tmp_path / "out")
    assert convert(path, tmp_path / "out", images=tmp_path, progress=False).images == 1


def test_unused_categories_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_coco(as_coco(tmp_path)).class_names == ("cell", "dirt")
    assert "1 of 3 categories have no object and are no classes: unused" in caplog.text


def test_training_and_validation_have_their_own_files(tmp_path: Path) -> None:
    """The categories of each name more than it uses; the training file's are the classes."""
    files = []
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        path = as_coco(tmp_path / part)
        write_png(tmp_path / part / "a.png", picture() + (part == "val"))
        files.append(path)
    said = json.loads(files[1].read_text())
    said["annotations"] = [a for a in said["annotations"] if a["category_id"] == 1]
    files[1].write_text(json.dumps(said))
    options = TrainOptions(data=str(files[0]), val_data=str(files[1]))
    train, val = open_split(options)
    assert train.class_names == val.class_names == ("cell", "dirt")
    assert [train.image_path(0).parent.name, val.image_path(0).parent.name] == ["train", "val"]
    said["annotations"][0]["category_id"] = 3
    files[1].write_text(json.dumps(said))
    with pytest.raises(SpatialEmbedError, match="class_mismatch"):
        open_split(options)
    with pytest.raises(SpatialEmbedError, match="val_data and group_by"):
        TrainOptions(data="a", val_data="b", group_by="c")


def lose_one(kind: str, at: Path, path: Path) -> None:
    """A second image in the annotations, whose file is not there."""
    if kind == "labelme":
        said = json.loads((at / "a.json").read_text()) | {"imagePath": "b.png"}
        (at / "b.json").write_text(json.dumps(said))
    elif kind == "yolo":
        shutil.copy(at / "labels" / "a.txt", at / "labels" / "b.txt")
    elif kind == "cvat":
        text = (at / "annotations.xml").read_text()
        more = f'<image id="1" name="b.png" width="{W}" height="{H}"/></annotations>'
        (at / "annotations.xml").write_text(text.replace("</annotations>", more))
    elif kind == "label-studio":
        tasks = json.loads(path.read_text())
        tasks.append(tasks[0] | {"id": 9, "data": {"image": "/x/b.png"}})
        path.write_text(json.dumps(tasks))
    else:
        said = json.loads(path.read_text())
        said["images"].append({"id": 2, "file_name": "b.png", "height": H, "width": W})
        path.write_text(json.dumps(said))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_image_does_not_end_the_others(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    path = WRITERS[kind](tmp_path / "in")
    lose_one(kind, tmp_path / "in", path)
    done = convert(path, tmp_path / "out", progress=False)
    assert (done.images, done.exit_code) == (1, 6)
    assert [error.code for _, error in done.failed] == ["missing_pairs"]
    assert re.search(r"missing_pairs.*'(/x/)?b\.(png|\*)'.*--images", caplog.text)
    np.testing.assert_array_equal(open_data(tmp_path / "out")[0].target.labels.numpy(), truth())


def test_label_studio_bitmasks(tmp_path: Path) -> None:
    """A PNG in the JSON file, black where the object is, on transparent ground."""
    mask = disk(8.0, 7.0, 5.0)

    def said(pixels: np.ndarray, head: str = "data:image/png;base64,") -> str:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        value = {
            "imageDataURL": head + base64.b64encode(file.getvalue()).decode(),
            "bitmasklabels": ["cell"],
        }
        result = {"id": "a", "type": "bitmasklabels", "original_width": W, "original_height": H,
                  "image_rotation": 0, "value": value}  # fmt: skip
        task = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [result]}]}
        return json.dumps([task])

    write_png(tmp_path / "images" / "a.png", picture())
    rgba = np.zeros((H, W, 4), np.uint8)
    rgba[..., 3] = mask * 255
    path = tmp_path / "project.json"
    path.write_text(said(rgba))
    assert convert(path, tmp_path / "out", progress=False).classes == {"cell": 1}
    np.testing.assert_array_equal(open_data(tmp_path / "out")[0].target.labels.numpy(), mask)
    for i, (wrong, code) in enumerate(
        (
            (said(rgba[1:]), "bad_annotation"),
            (said(np.zeros((H * 9, W, 4), np.uint8)), "too_large"),
            (said(rgba, "data:image/webp;base64,"), "bad_annotation"),
            (said(rgba, "data:image/png;base64,?"), "bad_annotation"),
            (said(rgba, "data:image/png;base64,AAAA"), "truncated"),
        )
    ):
        path.write_text(wrong)
        done = convert(path, tmp_path / f"bad{i}", progress=False)
        assert [error.code for _, error in done.failed] == [code]


def test_coco_names_below_images_lose_that_folder(tmp_path: Path) -> None:
    path = as_coco(tmp_path)
    path.write_text(path.read_text().replace("C:\\\\data\\\\set\\\\a.png", "images/a.png"))
    write_png(tmp_path / "images" / "a.png", picture())
    convert(path, tmp_path / "out", progress=False)
    assert open_data(tmp_path / "out").names == ["a"]
