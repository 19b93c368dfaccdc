"""Generated streets: the same everywhere, exact ids, the layout and the counts of Cityscapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatialembed.command import main
from spatialembed.data.cityscapes_ids import IDS
from spatialembed.errors import SpatialEmbedError
from spatialembed.generated import street_objects
from spatialembed.generated.street_objects import mirrored
from spatialembed.generated.streets import generate_street, write_streets

REGIONS = {1, 2, 4, 7, 8, 11, 17, 19, 20, 21, 23}


@pytest.fixture(scope="module")
def streets() -> list[np.ndarray]:
    return [generate_street(256, 512, 0, i).ids for i in range(40)]


def test_follows_from_seed_and_index() -> None:
    a, b = generate_street(64, 128, 3, 7), generate_street(64, 128, 3, 7)
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.ids, b.ids)
    assert (a.image != generate_street(64, 128, 3, 8).image).any()
    assert (a.image.shape, a.image.dtype, a.ids.shape) == ((64, 128, 3), np.uint8, (64, 128))


def test_ids_are_those_of_cityscapes(streets: list[np.ndarray]) -> None:
    seen = {int(i) for ids in streets for i in np.unique(ids)}
    assert {i for i in seen if i < 1000} <= REGIONS | set(IDS.values())
    assert {i // 1000 for i in seen if i >= 1000} == set(IDS.values())
    assert seen & set(IDS.values()), "no group at all"


def test_counts_and_sizes_are_like_the_real_ones(streets: list[np.ndarray]) -> None:
    counts = [len(np.unique(ids[ids >= 1000])) for ids in streets]
    areas = np.concatenate([np.unique(i[i >= 1000], return_counts=True)[1] for i in streets])
    assert 12 <= np.mean(counts) <= 21
    assert np.std(counts) > 6
    # A heavy tail: the median is far below the mean.
    assert np.median(areas) < 0.4 * areas.mean()


def test_objects_hide_each_other(streets: list[np.ndarray]) -> None:
    """Some instance is split by what stands before it."""
    from skimage.measure import label

    parts = [label(ids == i).max() for ids in streets[:10] for i in np.unique(ids) if i >= 1000]
    assert max(parts) > 1


@pytest.mark.parametrize("name", sorted(set(IDS) - {"rider"}))
@pytest.mark.parametrize("seed", range(3))
def test_figures_stay_in_their_frame(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    make = getattr(street_objects, name)
    sides = {"side": bool(seed % 2)} if name in ("car", "truck", "bus", "train") else {}
    figure = make(rng, **sides)
    assert figure.shapes[0].name == name
    points = np.array([p for s in figure.shapes for part in s.parts for p in part.points])
    assert points.min() >= -0.1
    assert points.max() <= 1.1
    twice = mirrored(mirrored(figure))
    again = np.array([p for s in twice.shapes for part in s.parts for p in part.points])
    np.testing.assert_allclose(again, points)


def test_a_rider_is_an_instance_of_its_own() -> None:
    figure = street_objects.bicycle(np.random.default_rng(0), ridden=True)
    assert [shape.name for shape in figure.shapes] == ["bicycle", "rider"]


def test_layout(tmp_path: Path) -> None:
    assert (
        main.main(["data", "streets", "--out", str(tmp_path), "--images", "4", "--size", "64x96"])
        == 0
    )
    images = sorted(tmp_path.glob("leftImg8bit/*/*/*_leftImg8bit.png"))
    assert [path.parts[-3] for path in images] == ["train"] * 3 + ["val"]
    for path in images:
        stem = path.name.removesuffix("_leftImg8bit.png")
        folder = tmp_path / "gtFine" / path.parts[-3] / path.parts[-2]
        with Image.open(folder / f"{stem}_gtFine_instanceIds.png") as file:
            assert (file.size, file.mode) == ((96, 64), "I;16")
            ids = np.asarray(file).astype(int)
        with Image.open(folder / f"{stem}_gtFine_labelIds.png") as file:
            np.testing.assert_array_equal(file, np.where(ids < 1000, ids, ids // 1000))
        assert stem.startswith(path.parts[-2] + "_")


def test_refuses_a_single_image(tmp_path: Path) -> None:
    with pytest.raises(SpatialEmbedError, match="bad_setting"):
        write_streets(tmp_path, 1, (64, 96))
