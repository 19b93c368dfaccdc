"""The doctor: data sets that are broken in one known way each, held against training itself."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image
from scipy import ndimage

from drawn_labels import discs
from spatialembed.command.arguments import parse
from spatialembed.command.main import main
from spatialembed.data.folder import SPLITS, open_folder
from spatialembed.doctor.doctor import Diagnosis, doctor, examine
from spatialembed.doctor.findings import Finding
from spatialembed.doctor.recommend import Advice, Setting
from spatialembed.doctor.trial import Timing, quick
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.listing import mark_results
from spatialembed.inference.bundled import bundled_models
from spatialembed.inference.model_file import load
from spatialembed.options import DataOptions
from spatialembed.training.options import TrainOptions
from spatialembed.training.train import open_split, train

IMAGES = 12
SIDE = 96
CENTRES = [(24, 24), (24, 72), (72, 24), (72, 72), (48, 48)]
"""Of five discs of radius 8, which touch nothing."""


def labels_of(_: int) -> np.ndarray:
    return discs(SIDE, CENTRES, 8).astype(np.uint16)


def image_of(i: int, labels: np.ndarray) -> np.ndarray:
    """Grey levels 20 to 220, no two images alike."""
    rng = np.random.default_rng(i)
    blocks = rng.integers(20, 90, (-(-labels.shape[0] // 8), -(-labels.shape[1] // 8)))
    ground = blocks.repeat(8, 0).repeat(8, 1)[: labels.shape[0], : labels.shape[1]]
    return (ground + 100 * (labels > 0) + rng.integers(0, 30, labels.shape)).astype(np.uint8)


def write(root: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    for kind, array in (("images", image), ("masks", mask)):
        path = root / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, compress_level=1)


def data_set(root: Path, numbers: range = range(IMAGES)) -> Path:
    for i in numbers:
        write(root, f"{i:02d}", image_of(i, labels_of(i)), labels_of(i))
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_set(tmp_path / "data")


def mask(root: Path, i: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Write a mask, or read it."""
    path = root / "masks" / f"{i:02d}.png"
    if labels is not None:
        Image.fromarray(labels).save(path)
    return np.asarray(Image.open(path)).copy()


def image(root: Path, i: int, pixels: np.ndarray | None = None) -> np.ndarray:
    path = root / "images" / f"{i:02d}.png"
    if pixels is not None:
        Image.fromarray(pixels).save(path)
    return np.asarray(Image.open(path)).copy()


def finding(result: Diagnosis, code: str) -> Finding:
    found = [f for f in result.findings if f.code == code]
    assert len(found) == 1, f"{code}: {[f.code for f in result.findings]}"
    return found[0]


# ---------------------------------------------------------------- what nothing is wrong with


def test_clean(data: Path) -> None:
    result = examine(data, progress=False)
    assert result.exit_code == 0
    assert [f for f in result.findings if f.grade != "note"] == []
    assert result.tally == "0 errors, 0 warnings, 0 notes"
    assert result.survey.layout == "images/ and masks/"
    assert result.survey.counts.tolist() == [5] * IMAGES
    assert result.survey.near_duplicates == ()


# ---------------------------------------------------------------- broken in one way each

Damage = Callable[[Path], None]
CASES: dict[str, tuple[Damage, str, str, int]] = {}
"""By name: what is done to a data set; code, grade and count of the finding that it must give."""


def case(code: str, grade: str, count: int, fault: str = "") -> Callable[[Damage], Damage]:
    def keep(damage: Damage) -> Damage:
        CASES[fault or damage.__name__] = (damage, code, grade, count)
        return damage

    return keep


@case("empty_file", "error", 2)
def zero_bytes(root: Path) -> None:
    (root / "images/01.png").write_bytes(b"")
    (root / "masks/02.png").write_bytes(b"")


@case("truncated", "error", 1)
def cut_short(root: Path) -> None:
    path = root / "images/01.png"
    path.write_bytes(path.read_bytes()[:-2000])


@case("not_an_image", "error", 1)
def text_for_image(root: Path) -> None:
    (root / "images/01.png").write_text("no picture at all, but sixteen bytes and more")


@case("label_format", "error", 1, "LBL-06")
def jpeg_mask(root: Path) -> None:
    Image.fromarray(mask(root, 1).astype(np.uint8)).save(root / "masks/01.jpg")
    (root / "masks/01.png").unlink()


@case("colour_labels", "error", 1, "LBL-04")
def rgb_mask(root: Path) -> None:
    mask(root, 1, np.repeat(mask(root, 1).astype(np.uint8)[..., None], 3, axis=2))


@case("label_values", "error", 1, "LBL-07")
def nan_in_mask(root: Path) -> None:
    labels = mask(root, 1).astype(np.float32)
    labels[0, 0] = np.nan
    (root / "masks/01.png").unlink()
    tifffile.imwrite(root / "masks/01.tif", labels)


@case("label_scheme", "error", IMAGES, "LBL-05 class and number")
def class_and_number(root: Path) -> None:
    for i in range(IMAGES):
        labels = labels_of(i).astype(np.int32)
        mask(root, i, np.where(labels, 1000 * (1 + labels % 2) + labels // 2, 0).astype(np.uint16))


@case("size_mismatch", "error", 1, "LBL-03")
def one_px_less(root: Path) -> None:
    mask(root, 1, mask(root, 1)[:-1])


@case("oriented_image", "error", 1, "IMG-23")
def turned_image(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image(root, 1)).save(root / "images/01.jpg", exif=exif, quality=95)
    (root / "images/01.png").unlink()


@case("bad_channels", "error", 1, "IMG-24")
def five_channels(root: Path) -> None:
    pixels = np.repeat(image(root, 1)[..., None], 5, axis=2)
    (root / "images/01.png").unlink()
    tifffile.imwrite(
        root / "images/01.tif", pixels, photometric="minisblack", planarconfig="contig"
    )


@case("non_finite", "error", 1, "IMG-20")
def nan_in_image(root: Path) -> None:
    pixels = image(root, 1).astype(np.float32)
    pixels[3, 4] = np.nan
    (root / "images/01.png").unlink()
    tifffile.imwrite(root / "images/01.tif", pixels)


@case("missing_pairs", "error", 3, "LBL-02")
def no_partner(root: Path) -> None:
    for name in ("01", "02"):
        (root / f"masks/{name}.png").unlink()
    shutil.copy(root / "masks/03.png", root / "masks/other.png")


@case("duplicate_name", "error", 1)
def same_name_twice(root: Path) -> None:
    tifffile.imwrite(root / "images/01.tif", image(root, 1))


@case("binary_mask", "error", 3, "LBL-09")
def zero_and_255(root: Path) -> None:
    for i in (1, 2, 3):
        mask(root, i, ((mask(root, i) > 0) * 255).astype(np.uint8))


@case("no_objects", "error", 1, "LBL-13")
def all_empty(root: Path) -> None:
    for i in range(IMAGES):
        mask(root, i, np.zeros((SIDE, SIDE), np.uint8))


@case("too_few_images", "error", 1)
def one_image(root: Path) -> None:
    for path in (*root.glob("images/*"), *root.glob("masks/*")):
        if path.stem != "03":
            path.unlink()


@case("few_images", "warning", 2)
def two_images(root: Path) -> None:
    for path in (*root.glob("images/*"), *root.glob("masks/*")):
        if path.stem not in ("03", "04"):
            path.unlink()


@case("constant_image", "warning", 1, "IMG-25")
def all_grey(root: Path) -> None:
    image(root, 1, np.full((SIDE, SIDE), 77, np.uint8))


@case("saturated", "note", 1)
def over_exposed(root: Path) -> None:
    pixels = image(root, 1)
    pixels[:10] = 255
    image(root, 1, pixels)


@case("mixed_kinds", "warning", 2)
def one_of_sixteen_bits(root: Path) -> None:
    image(root, 1, image(root, 1).astype(np.uint16) * 257)


@case("read_warning", "note", 1, "IMG-04")
def wrong_ending(root: Path) -> None:
    (root / "images/01.png").rename(root / "images/01.tif")


def squares(rows: int) -> np.ndarray:
    """Twenty in a row, apart from each other."""
    y, x = np.mgrid[: 8 * rows, :160]
    return (y // 8 * 20 + x // 8 + 1) * ((y % 8 > 1) & (x % 8 > 1))


@case("ids_wrapped", "error", 1)
def ids_wrapped(root: Path) -> None:
    write(root, "01", image_of(1, squares(20)), squares(20).astype(np.uint8))


@case("void_id", "error", IMAGES)
def void_outlines(root: Path) -> None:
    for i in range(IMAGES):
        labels = labels_of(i).astype(np.uint8)
        edge = (labels > 0) & (ndimage.grey_erosion(labels, 3) != labels)
        mask(root, i, np.where(edge, 255, labels).astype(np.uint8))


@case("soft_labels", "error", IMAGES)
def soft_edges(root: Path) -> None:
    for i in range(IMAGES):
        soft = ndimage.gaussian_filter(255.0 * (labels_of(i) > 0), 1)
        mask(root, i, soft.astype(np.uint8))


@case("background_id", "error", IMAGES)
def background_is_one_everywhere(root: Path) -> None:
    for i in range(IMAGES):
        mask(root, i, labels_of(i) + 1)


@case("class_maps", "error", IMAGES, "LBL-05")
def classes_for_ids(root: Path) -> None:
    for i in range(IMAGES):
        mask(root, i, np.where(labels_of(i) > 0, 1 + labels_of(i) % 2, 0).astype(np.uint8))


@case("empty_masks", "note", 1)
def one_empty(root: Path) -> None:
    mask(root, 1, np.zeros((SIDE, SIDE), np.uint8))


@case("background_object", "warning", 1)
def background_is_one(root: Path) -> None:
    mask(root, 1, labels_of(1) + 1)


@case("bare_strip", "note", 1)
def half_labelled(root: Path) -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = (y // 8 * 12 + x // 8 + 1) * ((y % 8 > 2) & (x % 8 > 2) & (y < 48))
    write(root, "01", image_of(1, labels), labels.astype(np.uint16))


@case("split_objects", "warning", 1, "LBL-10")
def id_in_two_places(root: Path) -> None:
    labels = mask(root, 1)
    labels[labels == 5] = 1
    mask(root, 1, labels)


@case("hollow_objects", "warning", 2, "LBL-11")
def rings(root: Path) -> None:
    for i in (1, 2):
        labels = mask(root, i)
        labels[46:51, 46:51] = 0
        mask(root, i, labels)


@case("concentric_objects", "warning", 4, "LBL-11 concentric")
def rings_around_discs(root: Path) -> None:
    for i in (1, 2):
        labels = mask(root, i)
        labels[44:53, 44:53] = 0
        labels[46:51, 46:51] = 6
        mask(root, i, labels)


@case("specks", "warning", 2)
def slips_of_the_pen(root: Path) -> None:
    labels = mask(root, 1)
    labels[0, 5] = 6
    labels[90, 50:53] = 7
    mask(root, 1, labels)


@case("below_stride", "warning", 40)
def tiny_objects(root: Path) -> None:
    for i in range(4):
        labels = mask(root, i)
        labels[2:4, 4:84:8] = np.arange(6, 16)
        mask(root, i, labels)
    for i in range(IMAGES, 120):  # else they are what the scale is made for
        write(root, f"{i:02d}", image_of(i, labels_of(i)), labels_of(i))


@case("beyond_reach", "warning", 1)
def longer_than_offsets(root: Path) -> None:
    labels = np.zeros((16, 9000), np.uint16)
    labels[4:12, 10:8990] = 1
    write(root, "01", image_of(1, labels), labels)


@case("wider_than_crop", "note", 1)
def wider_than_crop(root: Path) -> None:
    labels = np.zeros((64, 600), np.uint16)
    labels[10:50, 10:590] = 1
    write(root, "01", image_of(1, labels), labels)


@case("twins", "warning", 2, "LBL-20 flat")
def same_pixels(root: Path) -> None:
    shutil.copy(root / "images/01.png", root / "images/02.png")  # the same bytes
    pixels = image(root, 1)
    (root / "images/03.png").unlink()
    tifffile.imwrite(root / "images/03.tif", pixels)


@case("twins", "warning", 1, "nearly the same")
def saved_as_jpeg(root: Path) -> None:
    Image.fromarray(image(root, 1)).save(root / "images/02.jpg", quality=60)
    (root / "images/02.png").unlink()


@case("twins_disagree", "warning", 1)
def other_mask_for_a_twin(root: Path) -> None:
    shutil.copy(root / "images/01.png", root / "images/02.png")
    mask(root, 2, np.where(mask(root, 2) == 5, 0, mask(root, 2)))


def classes_csv(root: Path, change: dict[tuple[int, int], str | None] | None = None) -> None:
    """A table of two classes, changed at (image, id); None: the row is left out."""
    rows = {(i, k): "round" if k % 2 else "square" for i in range(IMAGES) for k in range(1, 6)}
    lines = [f"{i:02d},{k},{name}" for (i, k), name in {**rows, **(change or {})}.items() if name]
    (root / "classes.csv").write_text("\n".join(("image,id,class", *lines)) + "\n")


@case("ids_without_class", "error", 2)
def not_in_the_table(root: Path) -> None:
    classes_csv(root, {(1, 2): None, (3, 5): None})


@case("ids_without_pixels", "error", 2)
def only_in_the_table(root: Path) -> None:
    classes_csv(root, {(1, 7): "round", (1, 9): "round"})


@case("rare_classes", "warning", 1)
def one_of_a_kind(root: Path) -> None:
    classes_csv(root, {(1, 5): "oddity"})


@case("bad_table", "error", 1, "LBL-15")
def id_that_is_no_number(root: Path) -> None:
    classes_csv(root)
    with (root / "classes.csv").open("a") as file:
        file.write("01,many,round\n")


@case("bad_table", "error", 1, "name that is no image's")
def unknown_image(root: Path) -> None:
    classes_csv(root)
    with (root / "classes.csv").open("a") as file:
        file.write("elsewhere,1,round\n")


@case("group_columns", "note", 1)
def wells(root: Path) -> None:
    rows = [f"{i:02d},{SIDE},{SIDE},5,{i // 3}" for i in range(IMAGES)]
    header = "image,height,width,objects,well"
    (root / "index.csv").write_text("\n".join((header, *rows)) + "\n")


def in_parts(root: Path) -> None:
    """The first eight to train, the others to val."""
    for i in range(IMAGES):
        part = root / ("train" if i < 8 else "val")
        for kind in ("images", "masks"):
            (part / kind).mkdir(parents=True, exist_ok=True)
            (root / kind / f"{i:02d}.png").rename(part / kind / f"{i:02d}.png")
    shutil.rmtree(root / "images")
    shutil.rmtree(root / "masks")


@case("twins_across_splits", "warning", 1, "LBL-20")
def same_in_both_parts(root: Path) -> None:
    in_parts(root)
    shutil.copy(root / "train/images/01.png", root / "val/images/09.png")


@case("group_across_splits", "warning", 1)
def well_in_both_parts(root: Path) -> None:
    wells(root)  # 6, 7 | 8 share well 2
    in_parts(root)


@case("no_validation", "error", 1)
def no_val_folder(root: Path) -> None:
    in_parts(root)
    (root / "val").rename(root / "test")


@case("no_objects", "error", 1, "nothing in training")
def train_empty(root: Path) -> None:
    in_parts(root)
    for path in (root / "train/masks").iterdir():
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(path)


@case("parts_differ", "warning", 1)
def larger_in_val(root: Path) -> None:
    in_parts(root)
    for path in (root / "val/masks").iterdir():
        Image.fromarray(discs(SIDE, [(24, 24), (24, 72)], 18).astype(np.uint8)).save(path)


@case("class_mismatch", "error", 1)
def class_in_val_only(root: Path) -> None:
    classes_csv(root, {(9, 3): "oddity"})
    lines = (root / "classes.csv").read_text().splitlines()
    in_parts(root)
    (root / "classes.csv").unlink()
    for part, numbers in (("train", range(8)), ("val", range(8, IMAGES))):
        rows = [line for line in lines[1:] if int(line.split(",")[0]) in numbers]
        (root / part / "classes.csv").write_text("\n".join((lines[0], *rows)) + "\n")


NO_INSTANCES = ("class_maps", "void_id", "soft_labels", "background_id", "ids_wrapped")
"""Errors of masks that can be read, and would teach something wrong."""


def trainable(root: Path) -> bool:
    """Whether training would take it, by the code of training itself."""
    try:
        parts = open_split(TrainOptions(data=str(root)))
        objects = [sum(len(part[i].target.classes) for i in range(len(part))) for part in parts]
    except SpatialEmbedError:
        return False
    return min(objects) > 0


@pytest.mark.parametrize("name", CASES)
def test_one_fault(name: str, data: Path, recwarn: pytest.WarningsRecorder) -> None:
    damage, code, grade, count = CASES[name]
    damage(data)
    result = examine(data, progress=False)
    found = finding(result, code)
    assert (found.grade, found.count) == (grade, count), found
    assert not re.search(re.escape(str(data)), " ".join(found.cases)), "paths are short"
    assert len(found.examples) <= 5
    assert [f.code for f in result.findings if f.grade == "error" and f.code != code] == []
    assert result.exit_code == (3 if grade == "error" else 0)
    assert trainable(data) == (result.exit_code == 0) or code in NO_INSTANCES


def test_goes_on_at_every_fault(data: Path) -> None:
    """All that break one file, in one data set, each on files of its own."""
    broken = [zero_bytes, jpeg_mask, nan_in_image, one_px_less, turned_image]
    for i, damage in enumerate(broken):
        part = data.parent / f"part{i}"
        damage(data_set(part))
        for kind in ("images", "masks"):
            for path in (part / kind).iterdir():
                shutil.move(path, data / kind / f"{i}-{path.name}")
    result = examine(data, progress=False)
    for damage in broken:
        _, code, grade, count = next(case for case in CASES.values() if case[0] is damage)
        assert (finding(result, code).grade, finding(result, code).count) == (grade, count)
    readable = 6 * IMAGES - 2  # less a mask of zero bytes and one of JPEG
    assert len(result.survey.measured) == readable
    assert result.survey.counts.sum() == 5 * readable
    assert result.advice is not None


# ---------------------------------------------------------------- what training will be told


def test_flags_turn_errors_into_what_training_does(data: Path) -> None:
    zero_and_255(data)
    (data / "masks/05.png").unlink()
    assert examine(data, progress=False).exit_code == 3
    result = examine(data, DataOptions(allow_missing=True, split_components=True), progress=False)
    assert result.exit_code == 0
    assert finding(result, "missing_pairs").grade == "warning"
    assert result.survey.counts.tolist() == [5] * (IMAGES - 1)
    assert result.advice is not None
    settings = {setting.key: setting.value for setting in result.advice.settings}
    assert (settings["allow_missing"], settings["split_components"]) == (True, True)


def test_ids_may_be_taken_as_numbers(data: Path) -> None:
    class_and_number(data)
    result = examine(data, DataOptions(plain_ids=True), progress=False)
    assert result.exit_code == 0
    assert result.survey.counts.tolist() == [5] * IMAGES
    assert ("plain_ids", True) in settings_of(result).items()


def test_void_may_be_ignored(data: Path) -> None:
    void_outlines(data)
    result = examine(data, DataOptions(ignore_id=255), progress=False)
    assert result.exit_code == 0
    assert result.survey.counts.tolist() == [5] * IMAGES
    assert settings_of(result)["ignore_id"] == 255


def test_ending_of_mask_names_is_told(data: Path) -> None:
    for path in (data / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_cp_masks.png"))
    found = finding(examine(data, progress=False), "missing_pairs")
    assert found.count == 2 * IMAGES == len(found.cases)
    assert "'_cp_masks'" in found.remedy


def test_an_id_to_ignore_must_exist(data: Path) -> None:
    found = finding(examine(data, DataOptions(ignore_id=200), progress=False), "no_such_id")
    assert found.grade == "error"
    mask(data, 1, np.where(labels_of(1) == 5, 200, labels_of(1)).astype(np.uint8))
    assert examine(data, DataOptions(ignore_id=200), progress=False).exit_code == 0


def test_classes_may_be_taken_as_instances(data: Path) -> None:
    classes_for_ids(data)
    result = examine(data, DataOptions(plain_ids=True), progress=False)
    assert (finding(result, "class_maps").grade, result.exit_code) == ("warning", 0)


@pytest.mark.parametrize(
    ("entries", "code", "words"),
    [
        ((), "no_layout", "make images and masks"),
        (("Images", "labels"), "no_layout", "rename labels"),
        (("gtFine", "leftImg8bit"), "no_layout", "Cityscapes"),
        (("images", "instances.json"), "no_layout", "COCO"),
        (("images", "masks"), "no_images", "images/"),
    ],
)
def test_no_data_set(entries: tuple[str, ...], code: str, words: str, tmp_path: Path) -> None:
    for name in entries:
        (tmp_path / name).mkdir()
    with pytest.raises(SpatialEmbedError, match=words) as caught:
        examine(tmp_path, progress=False)
    assert (caught.value.code, caught.value.exit_code) == (code, 3)


# ---------------------------------------------------------------- recommended settings


def settings_of(result: Diagnosis) -> dict[str, Any]:
    assert result.advice is not None
    return {setting.key: setting.value for setting in result.advice.settings}


@pytest.mark.parametrize(
    ("radius", "side", "scale"), [(2, 96, 4.0), (4, 96, 2.0), (8, 96, 1.0), (80, 512, 0.5)]
)
def test_scale_follows_the_smallest(radius: int, side: int, scale: float, tmp_path: Path) -> None:
    for i in range(3):
        labels = discs(side, [(side // 4, side // 4), (3 * side // 4, 3 * side // 4)], radius)
        write(tmp_path, str(i), image_of(i, labels), labels.astype(np.uint16))
    settings = settings_of(examine(tmp_path, progress=False))
    assert settings["scale"] == scale
    area = int((labels == 1).sum())
    assert settings["min_pixels"] == area // 2
    steps = settings["stage1.epochs"] * (settings["stage1.crops"] // settings["stage1.batch"])
    assert 4000 <= steps <= 6000


def test_medoid_for_rings(data: Path) -> None:
    assert settings_of(examine(data, progress=False))["center"] == "learnable"
    rings(data)
    assert settings_of(examine(data, progress=False))["center"] == "medoid"


def test_weights_of_classes(data: Path) -> None:
    classes_csv(data)
    disc = (labels_of(0) == 1).sum() / SIDE**2
    expected = [1 / np.log(1.02 + 3 * disc), 1 / np.log(1.02 + 2 * disc)]  # round, square
    weights = settings_of(examine(data, progress=False))["foreground_weight"]
    np.testing.assert_allclose(weights, expected, atol=0.05)


def test_settings_are_parsed_by_training(data: Path, tmp_path: Path) -> None:
    classes_csv(data, {(1, 5): "no", (2, 5): "a: b # c\n"[:-1]})
    wells(data)
    (data / "index.csv").write_text((data / "index.csv").read_text().replace("well", "yes"))
    result = doctor(data, tmp_path / "out", timing=False, progress=False)
    words = ["--config", str(tmp_path / "out/recommended.yaml"), "--data", str(data)]
    options = parse(TrainOptions, words, verb="train", help="")
    for key, value in settings_of(result).items():
        taken: Any = options
        for part in key.split("."):
            taken = getattr(taken, part)
        assert taken == value, key
    assert options.group_by == "yes"  # a word that YAML takes for true
    for line in (tmp_path / "out/recommended.yaml").read_text().splitlines():
        setting, _, reason = line.partition("#")
        assert not setting.strip() or setting.rstrip().endswith(":") or len(reason.split()) > 2


@pytest.mark.slow
def test_settings_train(data: Path, tmp_path: Path) -> None:
    doctor(data, tmp_path / "out", timing=False, progress=False)
    words = ["--config", str(tmp_path / "out/recommended.yaml"), "--data", str(data)]
    words += ["--out", str(tmp_path / "runs"), "--name", "a", "--device", "cpu", "--workers", "0"]
    words += ["--stage1.epochs", "1", "--stage1.crops", "2", "--stage1.batch", "2"]
    run = train(parse(TrainOptions, words, verb="train", help=""))
    assert (run / "model" / "model.json").is_file()


# ---------------------------------------------------------------- what is written


class Tags(HTMLParser):
    """Tags of a page, each closed in its turn."""

    EMPTY = ("meta", "img", "rect", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_page_and_report(data: Path, tmp_path: Path) -> None:
    rings(data)
    id_in_two_places(data)
    (data / "masks/03.png").unlink()
    (data / "images/03.png").rename(data / "images/<b>&.png")
    result = doctor(data, tmp_path / "out", timing=False, progress=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "index.html", "quick.yaml", "recommended.yaml", "report.json",
    ]  # fmt: skip
    page = (tmp_path / "out/index.html").read_text("utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = [name for name, _ in tags.seen]
    assert not {"script", "link", "iframe", "object"} & set(names)
    assert "&lt;b&gt;&amp;" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import", page)
    for name, attributes in tags.seen:
        assert name != "img" or attributes["alt"]
        assert name != "svg" or attributes["aria-label"]
    assert min(names.count("img"), names.count("svg")) >= 5
    assert names.count("article") == len(result.findings)

    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["trainable"] is False
    assert (report["images"], report["objects"]) == (IMAGES - 1, 5 * (IMAGES - 1) - 1)
    assert (report["hollow"], report["split"]) == (1, 1)  # the ring of image 1 is split now
    assert report["recommended"] == settings_of(result)
    assert [f["code"] for f in report["findings"]] == [f.code for f in result.findings]
    assert report["findings"][0]["grade"] == "error"


def test_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["doctor", str(data), "--out", str(out), "--timing", "false"]) == 0
    assert "0 errors" in capsys.readouterr().out
    all_empty(data)
    assert main(["doctor", str(data), "--out", str(out), "--timing", "false"]) == 3
    assert "no_objects" in capsys.readouterr().out
    assert not (out / "recommended.yaml").exists()  # that of the first look is no longer true
    assert main(["doctor", str(tmp_path / "nowhere")]) == 3


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the data was read")

    monkeypatch.setattr("spatialembed.doctor.doctor.examine", read)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SpatialEmbedError) as caught:
            doctor(data, out, progress=False)
        assert (caught.value.code, caught.value.exit_code) == ("not_writable", 2)


def test_parts_of_a_data_set_are_told_apart(data: Path, tmp_path: Path) -> None:
    in_parts(data)
    result = doctor(data, tmp_path / "out", timing=False, progress=False)
    assert result.survey.splits == SPLITS[:2]
    rows = re.findall(
        r"<tr><td>(\w+)</td><td>(\d+)</td><td>(\d+)", (tmp_path / "out/index.html").read_text()
    )
    assert rows == [("train", "8", "40"), ("val", "4", "20")]
    assert len(open_folder(data, split="train")) == 8


def test_odd_names_and_things_in_the_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("images", "masks"):
        (data / kind / "01.png").rename(data / kind / "a\x1b[31m\nb\udcff.png")
        (data / kind / "folder.png").mkdir()
        (data / kind / "loop").symlink_to(data / kind, target_is_directory=True)
    os.mkfifo(data / "images/pipe.png")
    os.mkfifo(data / "masks/pipe.png")
    (data / "images/gone.png").symlink_to(data / "nowhere.png")
    assert main(["doctor", str(data), "--out", str(tmp_path / "out"), "--timing", "false"]) == 3
    screen = capsys.readouterr().out
    assert "\x1b[31m" not in screen
    assert "not_a_file" in screen
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["objects"] == 5 * IMAGES
    assert "missing_pairs" in {f["code"] for f in report["findings"]}


# ---------------------------------------------------------------- the recommendation, tried


def test_nearest_model_is_the_one_that_sees_the_objects(tmp_path: Path) -> None:
    """Bright discs in the dark: nuclei."""
    for i in range(4):
        bright = discs(SIDE, CENTRES, 8).astype(np.uint16)
        ground = np.random.default_rng(i).normal(20, 3, bright.shape)
        nuclei = ndimage.gaussian_filter(160.0 * (bright > 0), 1.5) + ground
        write(tmp_path / "bright", str(i), nuclei.astype(np.uint8), bright)
    found = doctor(tmp_path / "bright", tmp_path / "out", timing=False, progress=False)
    settings = yaml.safe_load((tmp_path / "out/recommended.yaml").read_text())
    assert settings["init"] in bundled_models()
    assert settings["init"] == settings_of(found)["init"] == "nuclei"
    assert settings["network"] == load(settings["init"])[1].network
    words = ["--config", str(tmp_path / "out/recommended.yaml"), "--data", str(tmp_path)]
    options = parse(TrainOptions, words, verb="train", help="")
    assert options.normalization == load(settings["init"])[1].normalization
    assert found.advice is not None
    assert (found.advice.network, found.advice.stride) == ("lite", 16)


@pytest.mark.slow
def test_timing_and_the_quick_settings(data: Path, tmp_path: Path) -> None:
    result = doctor(data, tmp_path / "out", progress=False)
    assert result.advice is not None
    assert result.quick is not None
    assert result.timing is not None
    whole, quick = (result.timing.minutes(plan) for plan in (result.advice, result.quick))
    assert 0 < quick <= whole
    last = result.timing.validation_s / 60
    assert quick <= 10 + last + 1e-6
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["minutes"] == {"recommended": round(whole, 1), "quick": round(quick, 1)}
    assert "on this machine" in (tmp_path / "out/recommended.yaml").read_text()
    words = ["--config", str(tmp_path / "out/quick.yaml"), "--data", str(data)]
    assert parse(TrainOptions, words, verb="train", help="").max_time == 10


def test_quick_settings_fit_their_time(data: Path) -> None:
    """Known costs: 2 s a step are 4 steps a tenth of ten minutes less what validation takes."""
    advice = examine(data, progress=False).advice
    assert advice is not None
    for step_s in (0.01, 2.0, 60.0):
        timing = Timing(step_s, 5.0, "one core")
        cut = quick(advice, timing)
        assert timing.minutes(cut) <= 10 + 5 / 60 + 1e-6
        assert cut.steps <= advice.steps
        assert cut.epochs >= 10
    assert quick(advice, Timing(0.001, 0.1, "a GPU")).steps == advice.steps
    assert [s.value for s in quick(advice, None).settings if s.key == "max_time"] == [10]


def test_copies_are_shown_though_their_mask_is_broken(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", range(3))
    shutil.copy(root / "images" / "00.png", root / "images" / "99.png")
    (root / "masks" / "99.png").write_bytes(b"no image")
    result = doctor(root, tmp_path / "out", timing=False, progress=False)
    assert {"not_an_image", "twins"} <= {finding.code for finding in result.findings}
    assert "One image or two?" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_a_table_beside_the_parts_names_images_by_part(tmp_path: Path) -> None:
    lines = ["image,id,class"]
    for part, kind in (("train", "round"), ("val", "square")):
        data_set(tmp_path / part, range(3))
        lines += [f"{part}/{i:02d},{k},{kind}" for i in range(3) for k in range(1, 6)]
    (tmp_path / "classes.csv").write_text("\n".join(lines) + "\n")
    result = examine(tmp_path, progress=False)
    assert result.exit_code == 0
    assert {k: n for k, (n, _) in result.survey.classes_area().items()} == {
        "round": 15,
        "square": 15,
    }
    assert len(open_folder(tmp_path, split="train")[0].target.classes) == 5


def test_results_among_the_images_are_none(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", range(3))
    mark_results(root / "images" / "found")
    shutil.copy(root / "images" / "00.png", root / "images" / "found" / "00_overlay.png")
    assert len(open_folder(root)) == 3
    assert "missing_pairs" not in {f.code for f in examine(root, progress=False).findings}


def test_the_centre_is_that_of_the_model_to_start_from() -> None:
    rings = (Setting("scale", 1.0, ""), Setting("center", "medoid", "rings"))
    advice = Advice(1.0, 64, 10, 100, 10, rings, 50.0)
    model = (Setting("init", "worms", ""), Setting("center", "learnable", "that of the model"))
    settings = [(s.key, s.value) for s in advice.starting_from(model).settings]
    assert settings == [("init", "worms"), ("center", "learnable"), ("scale", 1.0)]
    assert advice.starting_from(()).settings == rings
