"""Cityscapes: what each id becomes, which files belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spatialembed.command import main
from spatialembed.data.cityscapes import CityscapesDataset, Groups, open_cityscapes
from spatialembed.data.open import described, layout_of, open_data, select, splits
from spatialembed.errors import SpatialEmbedError
from spatialembed.generated.streets import write_streets
from spatialembed.inference import model_file
from spatialembed.inference.model_file import ModelInfo
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.options import DataOptions, PartOptions
from spatialembed.training.options import TrainOptions
from spatialembed.training.train import open_split
from spatialembed.types import Normalization, Target

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
RNG = np.random.default_rng(0)


def add(
    root: Path, ids: np.ndarray, name: str = "aachen_0_0", *, split: str = "train", city: str = ""
) -> tuple[Path, Path]:
    """One frame of a root: noise as the image, and these ids (H, W)."""
    city = city or name.split("_", maxsplit=1)[0]
    image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    truth = root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png"
    for path in (image, truth):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*ids.shape, 3), np.uint8)).save(image)
    Image.fromarray(ids.astype(np.uint16)).save(truth)
    return image, truth


def one(
    root: Path, ids: np.ndarray, classes: list[str] | None = None, groups: Groups = "ignore"
) -> CityscapesDataset:
    """A root with these ids alone, opened."""
    add(root, ids)
    return open_cityscapes(root, split="train", classes=classes, groups=groups)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six generated streets, one of them val."""
    root = tmp_path_factory.mktemp("data") / "streets"
    write_streets(root, 6, (96, 192), seed=4, progress=False)
    return root


# ---------------------------------------------------------------- what ids become


def oracle(ids: np.ndarray, classes: list[str], groups: Groups) -> list[list[tuple[str, int]]]:
    """By pixel: what it is and which id it has, from the label table of the official tools."""
    from cityscapesscripts.helpers.labels import id2label

    def meaning(number: int) -> tuple[str, int]:
        label = id2label[number if number < 1000 else number // 1000]
        if label.name in classes and number >= 1000:
            return label.name, number
        group = label.name in classes and groups == "ignore"
        return ("ignored" if number < 1000 and (label.ignoreInEval or group) else "background", 0)

    return [[meaning(number) for number in row] for row in ids.tolist()]


def as_read(target: Target, ids: np.ndarray, classes: list[str]) -> list[list[tuple[str, int]]]:
    """The same of a target."""
    height, width = target.labels.shape

    def meaning(y: int, x: int) -> tuple[str, int]:
        k, ignored = int(target.labels[y, x]), bool(target.ignore[y, x])
        if k:
            assert not ignored
            return classes[int(target.classes[k - 1])], int(ids[k - 1])
        return ("ignored" if ignored else "background", 0)

    return [[meaning(y, x) for x in range(width)] for y in range(height)]


EVERY_ID = np.array([*range(34), *(k * 1000 + n for k in range(24, 34) for n in (0, 1, 7, 299))])


@pytest.mark.parametrize("groups", ["ignore", "background"])
@pytest.mark.parametrize(
    "classes", [[*CLASSES], ["car"], ["rider", "bicycle"]], ids=["LBL-14-all", "car", "two"]
)
def test_every_id(classes: list[str], groups: Groups, tmp_path: Path) -> None:
    ids = np.append(EVERY_ID, EVERY_ID[::-1]).reshape(-1, 2)
    dataset = one(tmp_path, ids, classes, groups)
    sample = dataset[0]
    assert dataset.class_names == tuple(classes)
    assert sample.ids is not None
    assert as_read(sample.target, sample.ids, classes) == oracle(ids, classes, groups)
    assert sample.ids.tolist() == sorted(sample.ids)  # instance k is the k-th id
    assert dataset.instance_ids(0).tolist() == ids.tolist()


def test_classes_keep_the_order_of_the_benchmark(streets: Path) -> None:
    assert open_cityscapes(streets, split="val").class_names == CLASSES
    few = open_cityscapes(streets, split="val", classes=["bicycle", "car", "car"])
    assert few.class_names == ("car", "bicycle")
    assert few.with_classes(["bicycle"]).class_names == ("bicycle",)


def test_a_subset_of_classes_is_what_all_say_of_them(streets: Path) -> None:
    every, cars = (open_cityscapes(streets, split="train", classes=c) for c in (None, ["car"]))
    assert len(every) == len(cars) == 5
    for whole, part in zip(
        map(every.__getitem__, range(5)), map(cars.__getitem__, range(5)), strict=True
    ):
        assert whole.ids is not None
        assert part.ids is not None
        assert part.ids.tolist() == [i for i in whole.ids.tolist() if i // 1000 == 26]
        for k, number in enumerate(part.ids.tolist()):
            old = whole.ids.tolist().index(number) + 1
            assert torch.equal(part.target.labels == k + 1, whole.target.labels == old)


def test_300_instances_of_one_class(tmp_path: Path) -> None:
    ids = 26000 + np.arange(300).reshape(20, 15)
    target = one(tmp_path, ids).truth(0)
    assert target.labels.tolist() == (ids - 25999).tolist()  # LBL-01: no id wraps at 256
    assert target.classes.tolist() == [2] * 300


def test_only_a_group(tmp_path: Path) -> None:
    ids = np.full((8, 9), 24)
    dataset = one(tmp_path, ids)
    target = dataset.truth(0)
    assert len(target.classes) == 0
    assert bool(target.ignore.all())
    target = dataset.with_groups("background").truth(0)
    assert len(target.classes) == 0
    assert not bool(target.ignore.any())
    target = dataset.with_classes(["car"]).truth(0)  # people are certainly no cars
    assert not bool(target.ignore.any())


def test_no_instance(tmp_path: Path) -> None:
    sample = one(tmp_path, np.full((8, 9), 7))[0]
    assert sample.target.labels.shape == (8, 9)
    assert sample.target.labels.dtype == torch.int32
    assert sample.target.classes.shape == (0,)
    assert sample.target.classes.dtype == torch.int64
    assert not bool(sample.target.ignore.any())
    assert sample.ids is not None
    assert sample.ids.shape == (0,)


def test_a_sample_holds_the_stored_pixels(streets: Path) -> None:
    dataset = open_cityscapes(streets, split="val")
    sample = dataset[0]
    assert np.array_equal(np.asarray(Image.open(dataset.image_path(0))), sample.image)
    truth = dataset.truth(0)
    for name in ("labels", "classes", "ignore"):
        assert torch.equal(getattr(sample.target, name), getattr(truth, name))


# ---------------------------------------------------------------- which files belong together


def test_pairs_and_names(tmp_path: Path) -> None:
    ids = np.full((4, 6), 7)
    for name in ("ulm_000001_000019", "jena_000001_000019"):  # alike but for the city
        add(tmp_path, ids, name)
    add(tmp_path, ids, "bonn_000001_000019", split="val")
    for kind in ("color", "labelIds", "instanceTrainIds"):  # lie beside them in the download
        other = tmp_path / "gtFine/train/ulm" / f"ulm_000001_000019_gtFine_{kind}.png"
        Image.fromarray(ids.astype(np.uint8)).save(other)
    dataset = open_cityscapes(tmp_path, split="train")
    assert dataset.names == ["jena/jena_000001_000019", "ulm/ulm_000001_000019"]
    assert [dataset.index_row(i)["city"] for i in range(2)] == ["jena", "ulm"]
    assert dataset.ids_path(1).name == "ulm_000001_000019_gtFine_instanceIds.png"
    assert dataset.subset([1]).names == ["ulm/ulm_000001_000019"]
    both = open_cityscapes(tmp_path)
    assert both.names == [f"train/{name}" for name in dataset.names] + [
        "val/bonn/bonn_000001_000019"
    ]


def test_missing_pairs_are_all_named(streets: Path, tmp_path: Path) -> None:
    kept = np.full((4, 6), 26001)
    add(tmp_path, kept, "ulm_1_1")
    lost = [add(tmp_path, kept, "ulm_2_2")[0], add(tmp_path, kept, "bonn_3_3")[1]]
    for path in lost:
        path.unlink()
    with pytest.raises(SpatialEmbedError) as caught:
        open_cityscapes(tmp_path, split="train")
    assert caught.value.code == "missing_pairs"  # LBL-02
    assert "no image for" in caught.value.message
    assert "ulm_2_2_gtFine" in caught.value.message
    assert "no file of ids for" in caught.value.message
    assert "bonn_3_3_left" in caught.value.message
    assert open_cityscapes(
        tmp_path, split="train", reading=DataOptions(allow_missing=True)
    ).names == ["ulm/ulm_1_1"]


def empty(root: Path) -> None:
    """No file is left in the folder of ids."""
    for path in (root / "gtFine/train").rglob("*.png"):
        path.unlink()


def polygons(root: Path) -> None:
    empty(root)
    (root / "gtFine/train/ulm/ulm_1_1_gtFine_polygons.json").write_text("{}")


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / old).rename(root / new) and None


HALVES = [
    ("no_layout", "gtFine_trainvaltest.zip", renamed("gtFine", "gtCoarse")),
    ("no_layout", "leftImg8bit_trainvaltest.zip", renamed("leftImg8bit", "images8")),
    ("no_split", "it has val", renamed("gtFine/train", "gtFine/test")),
    ("missing_pairs", "gtFine_trainvaltest.zip again", empty),
    ("missing_pairs", "json2instanceImg", polygons),
    ("no_images", "leftImg8bit_trainvaltest", renamed("leftImg8bit/train/ulm", "ulm")),
]


@pytest.mark.parametrize(
    ("code", "remedy", "break_it"),
    HALVES,
    ids=["no-gtFine", "no-images", "no-train", "LBL-02-no-ids", "LBL-02-polygons", "no-image"],
)
def test_half_a_download(
    code: str, remedy: str, break_it: Callable[[Path], None], tmp_path: Path
) -> None:
    add(tmp_path, np.full((4, 6), 26001), "ulm_1_1")
    add(tmp_path, np.full((4, 6), 26001), "bonn_1_1", split="val")
    (tmp_path / "leftImg8bit/train").mkdir(exist_ok=True)
    break_it(tmp_path)
    with pytest.raises(SpatialEmbedError) as caught:
        open_data(tmp_path, split="train")
    assert (caught.value.code, caught.value.exit_code) == (code, 3)
    assert remedy in caught.value.remedy
    assert str(tmp_path) in caught.value.message


def test_the_official_script_makes_the_missing_ids(tmp_path: Path) -> None:
    """The remedy for polygons without ids is one: what it makes is read."""
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage

    _image, truth = add(tmp_path, np.full((8, 8), 7))
    truth.unlink()
    source = truth.with_name("aachen_0_0_gtFine_polygons.json")
    square = "[[{0},{0}],[{0},{1}],[{1},{1}],[{1},{0}]]"
    car, group = square.format(1, 3), square.format(5, 6)
    source.write_text(
        '{"imgHeight":8,"imgWidth":8,"objects":['
        f'{{"label":"car","polygon":{car}}},{{"label":"cargroup","polygon":{group}}},'
        f'{{"label":"license plate","polygon":{square.format(2, 2)}}}]}}'
    )
    annotation = Annotation()
    annotation.fromJsonFile(str(source))
    made = np.asarray(createInstanceImage(annotation, "ids"))
    Image.fromarray(made.astype(np.uint16)).save(truth)  # as it did itself before Pillow 13
    sample = open_cityscapes(tmp_path, split="train")[0]
    assert sample.ids is not None
    assert sample.ids.tolist() == [26000]
    assert int((sample.target.labels > 0).sum()) == 9  # the plate is a part of its car
    assert bool(sample.target.ignore[5:7, 5:7].all())
    assert bool(sample.target.ignore[0].all())


# ---------------------------------------------------------------- broken files


def cut_image(root: Path) -> None:
    image = next(root.rglob("*_leftImg8bit.png"))
    image.write_bytes(image.read_bytes()[:-40])


def replace_ids(pixels: np.ndarray | Image.Image, form: str = "PNG") -> Callable[[Path], None]:
    def change(root: Path) -> None:
        made = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        made.save(next(root.rglob("*_instanceIds.png")), form)

    return change


def turn(root: Path) -> None:
    path = next(root.rglob("*_leftImg8bit.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


FAULTS = [
    ("LBL-03", "size_mismatch", replace_ids(np.full((20, 31), 7, np.uint16))),
    ("LBL-03-rows", "size_mismatch", replace_ids(np.full((21, 30), 7, np.uint16))),
    ("LBL-04-rgb", "colour_labels", replace_ids(np.full((20, 30, 3), 7, np.uint8))),
    ("LBL-05-train-ids", "label_scheme", replace_ids(np.full((20, 30), 255, np.uint8))),
    ("LBL-05-plain", "label_scheme", replace_ids(np.arange(600, dtype=np.uint16).reshape(20, 30))),
    ("LBL-15-region", "label_scheme", replace_ids(np.full((20, 30), 11001, np.uint16))),
    ("LBL-15-beyond", "label_scheme", replace_ids(np.full((20, 30), 34000, np.uint16))),
    ("LBL-15-minus-one", "label_scheme", replace_ids(np.full((20, 30), 65535, np.uint16))),
    ("LBL-15-huge", "label_scheme", replace_ids(np.full((20, 30), 1 << 30, np.int32), "TIFF")),
    ("LBL-06", "label_format", replace_ids(np.full((20, 30), 7, np.uint8), "JPEG")),
    ("LBL-07", "label_values", replace_ids(np.full((20, 30), 0.5, np.float32), "TIFF")),
    ("IMG-02", "truncated", cut_image),
    ("IMG-23", "oriented_image", turn),
]


@pytest.mark.filterwarnings("ignore:.*named like")
@pytest.mark.parametrize(("code", "change"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults(code: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    dataset = one(tmp_path, np.full((20, 30), 26001))
    change(tmp_path)
    with pytest.raises(SpatialEmbedError) as caught:
        dataset[0]
    assert caught.value.code == code
    assert "aachen_0_0" in caught.value.message
    assert caught.value.remedy


def test_a_street_as_plain_labels(tmp_path: Path) -> None:
    """LBL-05, the other way: ids of Cityscapes in masks/."""
    _, truth = add(tmp_path / "root", np.array([[7, 7, 26000], [24, 26001, 33000]]))
    (tmp_path / "flat/masks").mkdir(parents=True)
    truth.rename(tmp_path / "flat/masks/a.png")
    (tmp_path / "flat/images").mkdir()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "flat/images/a.png")
    with pytest.raises(SpatialEmbedError, match="label_scheme"):
        open_data(tmp_path / "flat")[0]


# ---------------------------------------------------------------- as --data


def test_the_layout_is_told(streets: Path) -> None:
    assert layout_of(streets) == "cityscapes"
    assert splits(streets) == ("train", "val")
    train, val = open_split(
        TrainOptions(data=str(streets), classes="car, bus", groups="background")
    )
    assert (len(train), len(val), train.class_names) == (5, 1, ("car", "bus"))
    assert described(streets, train, val) == "streets: Cityscapes, 5 + 1 images, car, bus"


def test_groups_are_of_the_loss_only(tmp_path: Path) -> None:
    for n in range(4):  # no val/: a fourth is held out
        add(tmp_path, np.array([[26, 26001]]), f"ulm_{n}_0")
    options = TrainOptions(data=str(tmp_path), groups="background", val_fraction=0.25)
    train, val = open_split(options)
    assert (len(train), len(val)) == (3, 1)
    assert train[0].target.ignore.tolist() == [[False, False]]
    assert val[0].target.ignore.tolist() == [[True, False]]


def test_select(streets: Path, tmp_path: Path) -> None:
    assert len(select(PartOptions(data=str(streets), split="val"))) == 1
    with pytest.raises(SpatialEmbedError, match=r"no_split.*--split with one of train, val"):
        select(PartOptions(data=str(streets)))
    with pytest.raises(SpatialEmbedError, match=r"no_split.*gtFine_trainvaltest|no_split.*it has"):
        select(PartOptions(data=str(streets), split="test"))
    for name in ("ulm_1_1", "ulm_2_1", "bonn_1_1"):
        add(tmp_path, np.full((4, 6), 26001), name)
    held_out = select(PartOptions(data=str(tmp_path), group_by="city", val_fraction=0.5))
    assert {held_out.index_row(i)["city"] for i in range(len(held_out))} in ({"ulm"}, {"bonn"})


def test_the_hidden_truth(tmp_path: Path) -> None:
    add(tmp_path, np.full((4, 6), 3), "berlin_1_1", split="test")
    assert len(open_cityscapes(tmp_path, split="test")) == 1
    with pytest.raises(SpatialEmbedError, match=r"no_truth.*upload.zip"):
        select(PartOptions(data=str(tmp_path), split="test"))
    add(tmp_path, np.full((4, 6), 26001), "berlin_2_1", split="test")
    assert len(select(PartOptions(data=str(tmp_path), split="test"))) == 2


@pytest.mark.parametrize(
    ("classes", "remedy"), [("cra", "'car'"), ("road", "person"), ("car,,bus", "person")]
)
def test_a_class_that_is_none(classes: str, remedy: str, streets: Path) -> None:
    with pytest.raises(SpatialEmbedError) as caught:
        open_data(streets, split="val", classes=classes)
    assert (caught.value.code, caught.value.exit_code) == ("unknown_class", 2)
    assert remedy in caught.value.remedy


def test_classes_of_another_layout(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SpatialEmbedError, match=r"bad_setting.*Cityscapes"):
        open_data(tmp_path, classes="car")


def test_a_part_of_a_root_names_the_root(streets: Path) -> None:
    for part in ("leftImg8bit", "gtFine/train", "leftImg8bit/val/lindenberg"):
        with pytest.raises(SpatialEmbedError) as caught:
            open_data(streets / part)
        assert caught.value.code == "no_layout"
        assert str(streets) in caught.value.remedy


def test_evaluate_takes_the_classes_of_the_model(
    streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = ModelInfo(("car",), True, Normalization("fixed"), ClusterOptions(start=0.999))
    model_file.save(tmp_path / "cars", SpatialEmbeddingNet(1), info)  # of random weights
    words = ["--model", str(tmp_path / "cars"), "--device=cpu", "--engine=torch", "--split=val"]
    words += ["--data", str(streets), "--out", str(tmp_path / "scores")]
    assert main.main(["evaluate", *words]) == 0
    assert "streets: Cityscapes, 1 images, " in capsys.readouterr().out
    report = json.loads((tmp_path / "scores/report.json").read_text())
    cars = open_cityscapes(streets, split="val", classes=["car"])[0].target.classes
    assert report["class_names"] == ["car"]
    assert report["per_image"][0]["truth"] == len(cars)
