"""Folders of images and masks: pairing, tables, truth, splitting."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spatialembed.data.folder import FolderDataset, Pair, open_folder, splits
from spatialembed.data.splitting import duplicates, split_dataset
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.images.listing import SUFFIXES
from spatialembed.options import DataOptions

RNG = np.random.default_rng(0)
IDS = np.zeros((9, 11), np.uint16)
IDS[1:4, 1:4], IDS[5:8, 6:10], IDS[5, 5] = 7, 300, 12  # 9, 12 and 1 px


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pair(root: Path, name: str, ids: np.ndarray = IDS, suffix: str = ".png") -> None:
    """An image and a mask of one name."""
    save(root / "images" / f"{name}.png", RNG.integers(0, 256, ids.shape, np.uint8))
    save(root / "masks" / f"{name}{suffix}", ids)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pairs: a, and deep/b with a TIFF mask."""
    pair(tmp_path, "a")
    pair(tmp_path, "deep/b", suffix=".tif")
    return tmp_path


def write(root: Path, name: str, text: str) -> Path:
    (root / name).write_text(text)
    return root


def table(root: Path, *rows: str) -> Path:
    """A classes.csv of these rows."""
    return write(root, "classes.csv", "\n".join(("image,id,class", *rows, "")))


def test_pairs_by_name(root: Path) -> None:
    dataset = open_folder(root)
    assert dataset.names == ["a", "deep/b"]
    assert dataset.class_names == ("object",)
    assert dataset.image_path(1) == root / "images" / "deep" / "b.png"
    assert [sample.name for sample in dataset] == dataset.names  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in (".gif", ".jpg", ".jpeg")])
def test_any_image_format(suffix: str, tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a.png", IDS)
    image = RNG.integers(0, 256, (*IDS.shape, 3), np.uint8)
    path = tmp_path / "images" / f"a{suffix}"
    path.parent.mkdir()
    Image.fromarray(image).save(path, lossless=True)
    assert np.array_equal(open_folder(tmp_path)[0].image, image)


def test_ids_are_renumbered(root: Path) -> None:
    """LBL-08: gaps close, order stays, pixels stay where they are."""
    sample = open_folder(root)[0]
    assert sample.ids is not None
    assert sample.ids.tolist() == [7, 12, 300]
    target = sample.target
    assert target.labels.dtype == torch.int32
    assert target.classes.dtype == torch.int64
    assert target.ignore.dtype == torch.bool
    assert not target.ignore.any()
    assert target.classes.tolist() == [0, 0, 0]
    for new, old in enumerate((7, 12, 300), start=1):
        assert np.array_equal(target.labels.numpy() == new, old == IDS)


def rings() -> np.ndarray:
    """A ring around a disc of another id."""
    y, x = np.indices((40, 40)) - 20
    radius = np.hypot(y, x)
    return np.where(radius < 5, 2, np.where((radius > 9) & (radius < 15), 1, 0)).astype(np.uint16)


def parts() -> np.ndarray:
    """One instance in two parts beside another instance."""
    ids = np.zeros((20, 20), np.uint16)
    ids[:5, :5] = ids[15:, 15:] = 1
    ids[8:10, 8:10] = 2
    return ids


@pytest.mark.parametrize(("ids", "areas"), [
    pytest.param(np.arange(300 * 300, dtype=np.uint16).reshape(300, 300) % 301, None, id="LBL-01"),
    pytest.param(np.arange(70_000, dtype=np.uint32).reshape(700, 100), None, id="LBL-01-32-bit"),
    pytest.param(np.diag(np.array([1, 255, 3], np.uint8)), [1, 1, 1], id="LBL-08"),
    pytest.param(parts(), [50, 4], id="LBL-10"),
    pytest.param(rings(), None, id="LBL-11"),
    pytest.param(np.eye(1, 5, dtype=np.uint8), [1], id="LBL-12"),
    pytest.param(np.zeros((4, 6), np.uint8), [], id="LBL-13-none"),
    pytest.param(np.ones((4, 6), np.uint8), [24], id="LBL-13-all"),
])  # fmt: skip
def test_odd_masks(ids: np.ndarray, areas: list[int] | None, tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", np.zeros(ids.shape, np.uint8))
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "masks" / "a.tif", ids)
    target = open_folder(tmp_path)[0].target
    expected = np.unique(ids[ids > 0], return_counts=True)[1].tolist() if areas is None else areas
    assert len(target.classes) == len(expected)
    assert np.bincount(target.labels.ravel())[1:].tolist() == expected
    assert np.array_equal(target.labels > 0, ids > 0)


# ---------------------------------------------------------------- refusals when opening


def remove(path: Path) -> None:
    path.unlink()


def empty(root: Path) -> None:
    remove(root / "images" / "a.png")
    remove(root / "images" / "deep" / "b.png")


def rename(root: Path, old: str, new: str) -> None:
    (root / old).rename(root / new)


REFUSED: list[tuple[str, str, str, Callable[[Path], object]]] = [
    ("LBL-02-mask", "missing_pairs", "images/a.png", lambda r: remove(r / "masks" / "a.png")),
    ("LBL-02-image", "missing_pairs", "masks/a.png", lambda r: remove(r / "images" / "a.png")),
    ("no-masks", "no_layout", "masks/", lambda r: rename(r, "masks", "labels")),
    ("no-images", "no_layout", "images/", lambda r: rename(r, "images", "pictures")),
    ("empty", "no_images", "images", empty),
    ("twice", "duplicate_name", "a.tif", lambda r: save(r / "images" / "a.tif", np.uint8(IDS))),
    ("LBL-15-image", "bad_table", "'c'", lambda r: table(r, "c,1,x")),
    ("LBL-15-id", "bad_table", "line 2", lambda r: table(r, "a,x,x")),
    ("LBL-15-0", "bad_table", "line 2", lambda r: table(r, "a,0,x")),
    ("LBL-15-none", "bad_table", "line 3", lambda r: table(r, "a,7,x", "a,12,")),
    ("LBL-15-two", "bad_table", "line 3", lambda r: table(r, "a,7,x", "a,7,y")),
    ("columns", "bad_table", "name,class", lambda r: write(r, "classes.csv", "name,class\na,x\n")),
    ("utf-16", "bad_table", "classes.csv", lambda r: (
        (r / "classes.csv").write_bytes(b"\xff\xfea\0"))),
    ("index", "bad_table", "index.csv", lambda r: write(r, "index.csv", "name,group\na,1\n")),
    ("LBL-15-no-row", "bad_table", "classes.csv", table),
    ("LBL-15-long", "bad_table", "line 2", lambda r: table(r, f"a,{'9' * 5000},x")),
    ("LBL-15-dots", "bad_table", "'..png'", lambda r: table(r, "..png,7,x")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "names", "break_it"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(code: str, names: str, break_it: Callable[[Path], object], root: Path) -> None:
    break_it(root)
    with pytest.raises(SpatialEmbedError, match=re.escape(names)) as caught:
        open_folder(root)
    assert caught.value.code == code
    assert str(root) in caught.value.message
    assert caught.value.remedy


def test_all_missing_are_listed(root: Path) -> None:
    """LBL-02: every one of both sides, not the first."""
    for name in ("c", "d"):
        save(root / "images" / f"{name}.png", np.uint8(IDS))
    save(root / "masks" / "e.png", IDS)
    with pytest.raises(SpatialEmbedError, match=r"3 without partner.*c\.png.*d\.png.*e\.png"):
        open_folder(root)
    assert open_folder(root, reading=DataOptions(allow_missing=True)).names == ["a", "deep/b"]


def test_a_missing_mask_shifts_no_pair(root: Path) -> None:
    """LBL-02: pairs are made by name, never by position."""
    remove(root / "masks" / "a.png")
    dataset = open_folder(root, reading=DataOptions(allow_missing=True))
    assert dataset.names == ["deep/b"]
    assert np.array_equal(dataset[0].target.labels > 0, IDS > 0)


@pytest.mark.parametrize("what", ["gone", "a file"])
def test_no_folder(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if what == "a file":
        path.write_text("")
    with pytest.raises(SpatialEmbedError, match="not_found"):
        open_folder(path)


# ---------------------------------------------------------------- refusals when reading


def oriented(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.uint8(IDS)).save(root / "images" / "a.png", exif=exif)


def save_ids(root: Path, *ids: int) -> None:
    """Mask a with these ids, one a pixel."""
    mask = np.zeros(IDS.shape, np.uint16)
    mask.flat[: len(ids)] = ids
    save(root / "masks" / "a.png", mask)


READ_REFUSED: list[tuple[str, str, str, Callable[[Path], object]]] = [
    ("LBL-03", "size_mismatch", "9x11.*9x10", lambda r: save(r / "masks" / "a.png", IDS[:, 1:])),
    ("LBL-03-height", "size_mismatch", "9x11.*8x11", lambda r: save(
        r / "masks" / "a.png", IDS[1:])),
    ("LBL-04", "colour_labels", "3 chan", lambda r: save(
        r / "masks" / "a.png", np.dstack([np.uint8(IDS)] * 3))),
    ("LBL-09-255", "binary_mask", "3 parts", lambda r: save(
        r / "masks" / "a.png", np.uint8(255) * parts().astype(bool))),
    ("LBL-09-1", "binary_mask", "3 parts", lambda r: save(
        r / "masks" / "a.png", np.uint8(parts() > 0))),
    ("LBL-09-bit", "binary_mask", "3 parts", lambda r: save(r / "masks" / "a.png", parts() > 0)),
    ("LBL-15-no-class", "unknown_id", "id 12 is in", lambda r: table(r, "a,7,x", "a,300,x")),
    ("LBL-15-no-pixel", "unknown_id", "id 8 has a class", lambda r: table(
        r, "a,7,x", "a,300,x", "a,12,x", "a,8,x")),
    ("IMG-23", "oriented_image", "orientation 3", oriented),
    ("LBL-06", "label_format", "JPEG", lambda r: (
        save(r / "masks" / "a.jpg", np.uint8(IDS)).rename(r / "masks" / "a.png"))),
    ("LBL-07", "label_values", "-1", lambda r: (
        tifffile.imwrite(r / "masks" / "a.png", np.where(IDS > 7, np.int32(-1), 0)))),
    ("LBL-05-cityscapes", "label_scheme", "Cityscapes", lambda r: save_ids(
        r, 7, 11, 26, 24000, 26000, 26007)),
    ("LBL-05-cityscapes-one", "label_scheme", "Cityscapes", lambda r: save_ids(r, 23, 33999)),
    ("LBL-05-classes", "label_scheme", "1000 x class", lambda r: save_ids(
        r, 1001, 1002, 1003, 7000, 7001)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "says", "break_it"),
    [row[1:] for row in READ_REFUSED],
    ids=[row[0] for row in READ_REFUSED],
)
@pytest.mark.filterwarnings("ignore:.*named like PNG")
def test_read_refused(code: str, says: str, break_it: Callable[[Path], object], root: Path) -> None:
    break_it(root)
    if code == "binary_mask":
        save(root / "images" / "a.png", np.zeros(parts().shape, np.uint8))
    dataset = open_folder(root)
    with pytest.raises(SpatialEmbedError, match=says) as caught:
        dataset[0]
    assert caught.value.code == code
    assert str(root) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("ids", [
    pytest.param([], id="LBL-05-none"),
    pytest.param(range(1, 34), id="LBL-05-few"),
    pytest.param([33, 34, 24000], id="LBL-05-between"),
    pytest.param([24511, 24519, 25002], id="LBL-05-window-of-many"),
    pytest.param(range(1000, 1040), id="LBL-05-one-thousand"),
    pytest.param(range(1990, 2020), id="LBL-05-over-a-thousand"),
    pytest.param(range(1, 70), id="LBL-05-plain"),
])  # fmt: skip
def test_mere_numbers_are_taken(ids: Sequence[int], root: Path) -> None:
    save_ids(root, *ids)
    assert len(open_folder(root)[0].target.classes) == len(ids)


@pytest.mark.parametrize("way", ["LBL-05 plain_ids", "LBL-05 classes.csv"])
def test_ids_of_a_scheme_are_taken_when_told_so(way: str, root: Path) -> None:
    save_ids(root, 7, 24000, 26001)
    if "csv" in way:
        table(root, "a,7,road", "a,24000,person", "a,26001,car")
    sample = open_folder(root, reading=DataOptions(plain_ids="plain" in way)).subset([0])[0]
    assert sample.ids is not None
    assert sample.ids.tolist() == [7, 24000, 26001]


def test_sizes_are_limited(root: Path) -> None:
    """IMG-08 for training: the limit reaches images and masks of every part of the data set."""
    assert len(open_folder(root, reading=DataOptions(max_pixels=99)).subset([1])) == 1
    for i in range(2):
        open_folder(root, reading=DataOptions(max_pixels=99))[i]
        with pytest.raises(SpatialEmbedError, match="too_large"):
            open_folder(root, reading=DataOptions(max_pixels=98)).subset([i])[0]


def test_split_components(tmp_path: Path) -> None:
    """LBL-09: the remedy that the refusal names; masks of real instances stay as they are."""
    pair(tmp_path, "binary", np.uint8(255) * (parts() > 0))
    pair(tmp_path, "instances", parts())
    binary, instances = open_folder(tmp_path, reading=DataOptions(split_components=True))  # type: ignore[misc]
    assert np.bincount(binary.target.labels.ravel()).tolist() == [346, 25, 4, 25]
    assert len(instances.target.classes) == 2


# ---------------------------------------------------------------- tables and parts


def test_classes(root: Path) -> None:
    dataset = open_folder(
        table(root, "a,7,rider", "a.png,12,car", "a,300,rider",
              "deep/b,7,bus", "deep/b,12,car", "deep/b.tif,300,car")
    )  # fmt: skip
    assert dataset.class_names == ("bus", "car", "rider")
    assert dataset[0].target.classes.tolist() == [2, 1, 2]
    assert dataset[1].target.classes.tolist() == [0, 1, 1]


def test_classes_make_a_single_id_an_instance(tmp_path: Path) -> None:
    """LBL-09: an id that classes.csv names is an instance, however many parts it has."""
    pair(tmp_path, "a", np.uint8(parts() > 0))
    dataset = open_folder(table(tmp_path, "a,1,x"))
    assert len(dataset[0].target.classes) == 1


def test_parts_share_the_tables(tmp_path: Path) -> None:
    """One classes.csv beside train/ and val/ gives both the same class numbers."""
    for part, name in (("train", "a"), ("val", "b")):
        pair(tmp_path / part, name, np.eye(1, 4, dtype=np.uint8))
    table(tmp_path, "a,1,zebra", "b,1,ant")
    write(tmp_path, "index.csv", "image,field\na,f1\nb,f2\n")
    assert splits(tmp_path) == ("train", "val")
    train, val = open_folder(tmp_path, split="train"), open_folder(tmp_path, split="val")
    assert train.class_names == val.class_names == ("ant", "zebra")
    assert train[0].target.classes.tolist() == [1]
    assert val.index_row(0)["field"] == "f2"
    assert open_folder(tmp_path / "val").names == ["b"]


def test_part_is_named(tmp_path: Path) -> None:
    pair(tmp_path / "train", "a")
    with pytest.raises(SpatialEmbedError, match=r"no_layout.*its parts: train"):
        open_folder(tmp_path)
    with pytest.raises(SpatialEmbedError, match=r"no_split.*it has train"):
        open_folder(tmp_path, split="val")


# ---------------------------------------------------------------- splitting


@pytest.fixture
def many(tmp_path: Path) -> FolderDataset:
    """30 images in 10 groups of 1 to 5; ids of numbers only, as many real ones are."""
    rows = [f"{i:02d},{i * i // 90},x" for i in range(30)]
    for i in range(30):
        pair(tmp_path, f"{i:02d}")
    return open_folder(write(tmp_path, "index.csv", "\n".join(["id,group,other", *rows])))


@given(fraction=st.floats(0.01, 0.99), seed=st.integers(0, 10**6), grouped=st.booleans())
def test_split_is_a_partition(fraction: float, seed: int, grouped: bool) -> None:
    groups = [f"g{i * i // 90}" for i in range(30)]
    dataset = without_files(groups)
    column = "group" if grouped else None
    keys = groups if grouped else dataset.names
    key_of = dict(zip(dataset.names, keys, strict=True))
    total = len(set(keys))
    try:
        train, val = split_dataset(dataset, fraction=fraction, group_by=column, seed=seed)
    except SpatialEmbedError as error:
        assert error.code == "bad_split"  # noqa: PT017
        assert fraction * total > total - 1
        return
    assert sorted(train.names + val.names) == dataset.names
    assert train.names == sorted(train.names)
    its_groups = {key_of[name] for name in val.names}
    assert not its_groups & {key_of[name] for name in train.names}
    assert 0 <= len(its_groups) - fraction * total < 1 or len(its_groups) == 1


def without_files(groups: list[str]) -> FolderDataset:
    """A data set of names and a column only."""
    here = Path()
    pairs = [Pair(f"{i:02d}", here, here, row={"group": group}) for i, group in enumerate(groups)]
    return FolderDataset(pairs, ("object",))


def test_split_is_the_same_everywhere(many: FolderDataset) -> None:
    """A known answer, so that a figure on a validation part means the same part tomorrow."""
    _, val = split_dataset(many, fraction=0.2, group_by="group", seed=0)
    assert {many.index_row(int(name))["group"] for name in val.names} == {"6", "9"}
    again = split_dataset(many, fraction=0.2, group_by="group", seed=0)[1]
    assert again.names == val.names
    others = {tuple(split_dataset(many, group_by="group", seed=s)[1].names) for s in range(9)}
    assert len(others) > 3


@pytest.mark.parametrize(("settings", "says"), [
    ({"fraction": 0.0}, "bad_split"),
    ({"fraction": 1.0}, "bad_split"),
    ({"fraction": 0.999}, "bad_split"),
    ({"group_by": "groop"}, "did you mean 'group'"),
    ({"group_by": "patient"}, "it has "),
])  # fmt: skip
def test_split_refused(settings: dict, says: str, many: FolderDataset) -> None:
    with pytest.raises(SpatialEmbedError, match=says) as caught:
        split_dataset(many, **settings)
    assert caught.value.exit_code == USAGE


def test_group_of_every_image_is_asked_for(root: Path) -> None:
    with pytest.raises(SpatialEmbedError, match=r"no index\.csv"):
        split_dataset(open_folder(root), group_by="group")
    write(root, "index.csv", "image,group\na,1\n")
    with pytest.raises(SpatialEmbedError, match="no group for deep/b"):
        split_dataset(open_folder(root), group_by="group")


@pytest.mark.parametrize("fault", ["LBL-20"])
def test_duplicates_are_found_by_content(root: Path, fault: str) -> None:
    """The same picture under another name."""
    pair(root, "c")
    (root / "images" / "c.png").write_bytes((root / "images" / "a.png").read_bytes())
    dataset = open_folder(root)
    assert dataset.names == ["a", "c", "deep/b"]
    assert duplicates(dataset.subset([0, 2]), dataset.subset([1])) == [("a", "c")]
    assert duplicates(dataset.subset([0, 1]), dataset.subset([2])) == []
    kept = (root / "images" / "c.png").read_bytes()
    (root / "images" / "c.png").write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))  # of the same size
    assert duplicates(dataset.subset([0, 2]), dataset.subset([1])) == []


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no devices here")
@pytest.mark.parametrize("fault", ["IMG-28 duplicates"])
def test_duplicates_are_looked_for_in_files_only(fault: str, root: Path) -> None:
    """A pipe or /dev/zero would be read for ever, before training looks at any image."""
    image = root / "images" / "a.png"
    image.unlink()
    image.symlink_to("/dev/null")
    dataset = open_folder(root)
    with pytest.raises(SpatialEmbedError, match=r"not_a_file: .*a\.png"):
        duplicates(dataset.subset([0]), dataset.subset([1]))


def test_nuclei(data_root: Path) -> None:
    """The real data: every mosaic on one side, a fifth of them in validation, no twins."""
    dataset = open_folder(data_root / "nuclei")
    train, val = split_dataset(dataset, fraction=0.2, group_by="mosaic")
    mosaics = [{part.index_row(i)["mosaic"] for i in range(len(part))} for part in (train, val)]
    assert not mosaics[0] & mosaics[1]
    assert 0.2 <= len(mosaics[1]) / len(mosaics[0] | mosaics[1]) < 0.21
    assert len(train) + len(val) == 462
    assert duplicates(train, val) == []
    for i in range(0, len(dataset), 23):
        sample = dataset[i]
        assert len(sample.target.classes) == int(dataset.index_row(i)["instances"])


@pytest.mark.parametrize("prefix", ["", "images/", "./images/", "images\\"])
def test_tables_may_name_the_folder_of_the_images(prefix: str, root: Path) -> None:
    write(root, "index.csv", f"image,group\n{prefix}a.png,g1\n{prefix}deep/b.png,g2\n")
    table(root, *(f"{prefix}{name}.png,{i},cell" for name in ("a", "deep/b") for i in (7, 12, 300)))
    dataset = open_folder(root)
    assert [dataset.index_row(i)["group"] for i in range(2)] == ["g1", "g2"]
    assert dataset[1].target.classes.tolist() == [0, 0, 0]


def test_a_table_beside_the_parts_may_name_their_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        pair(tmp_path / part, "a")
    write(tmp_path, "index.csv", "image,group\ntrain/images/a.png,g1\nval/images/a.png,g2\n")
    for part, group in (("train", "g1"), ("val", "g2")):
        assert open_folder(tmp_path, split=part).index_row(0)["group"] == group


def test_a_table_of_other_images_is_told_of(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(root, "index.csv", "image,group\nx,g1\n")
    open_folder(root)
    assert "none of its names, such as 'x', is the name of an image, such as 'a'" in caplog.text
