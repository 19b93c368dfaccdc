"""The index of instances: against loops over pixels, its draws."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spatialembed.data.cityscapes import open_cityscapes
from spatialembed.data.coco import open_coco
from spatialembed.data.folder import open_folder
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder
from spatialembed.generated.streets import write_streets
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.instance_index import InstanceIndex, in_rounds, instance_index
from spatialembed.training.loader import CropPlan, Crops
from spatialembed.types import Normalization, Target

PLAIN = Normalization(kind="none")


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    write_streets(folder, 4, (128, 256), seed=5)
    return folder


class Drawn:
    """A data set whose truth is given: labels, ignored pixels, classes."""

    class_names: tuple[str, ...] = ("a", "b", "c")

    def __init__(self, truths: list[tuple[np.ndarray, np.ndarray, list[int]]]) -> None:
        self.truths = truths

    def __len__(self) -> int:
        return len(self.truths)

    def truth(self, i: int) -> Target:
        labels, ignore, classes = self.truths[i]
        return Target(torch.from_numpy(labels), torch.tensor(classes, dtype=torch.int64),
                      torch.from_numpy(ignore))  # fmt: skip


def index_of_drawn(dataset: Any) -> InstanceIndex:
    return instance_index(dataset, progress=False)


def random_truths(seed: int, images: int = 3) -> Drawn:
    rng = np.random.default_rng(seed)
    truths = []
    for n in range(images):
        labels = rng.integers(0, 5, (7 + n, 9)).astype(np.int32)
        truths.append((labels, rng.random(labels.shape) < 0.2, rng.integers(0, 2, 4).tolist()))
    return Drawn(truths)


def by_loops(dataset: Drawn) -> list[tuple[int, int, int, int]]:
    """Rows (image, label, class, px that are not ignored), pixel by pixel."""
    rows = []
    for n, (labels, ignore, classes) in enumerate(dataset.truths):
        for k in range(1, len(classes) + 1):
            spots = [spot for spot in np.ndindex(*labels.shape) if labels[spot] == k]
            if spots:
                rows.append((n, k, classes[k - 1], sum(not ignore[spot] for spot in spots)))
    return rows


def table(index: InstanceIndex) -> list[tuple[int, ...]]:
    columns = (index.image.tolist(), index.label.tolist(), index.class_index.tolist())
    return list(zip(*columns, strict=True))


def rows_of(dataset: Drawn) -> list[tuple[int, ...]]:
    return [row[:3] for row in by_loops(dataset)]


@pytest.mark.parametrize("seed", range(5))
def test_equals_loops_over_pixels(seed: int) -> None:
    dataset = random_truths(seed)
    index = index_of_drawn(dataset)
    assert table(index) == rows_of(dataset)
    assert index.valid_pixels == sum(int((~t[1]).sum()) for t in dataset.truths)
    area = [sum(row[3] for row in by_loops(dataset) if row[2] == c) for c in range(3)]
    assert index.class_pixels.tolist() == area


def test_images_without_instance_and_labels_without_pixel() -> None:
    nothing = np.zeros((4, 5), np.int32), np.zeros((4, 5), bool), []
    gap = np.full((4, 5), 2, np.int32), np.ones((4, 5), bool), [1, 0]
    index = index_of_drawn(Drawn([nothing, gap, nothing]))
    assert table(index) == [(1, 2, 0)]
    assert len(index_of_drawn(Drawn([nothing]))) == 0
    assert index.enet_weights() == [1 / math.log(1.02)] * 3


def test_enet_weights_by_hand() -> None:
    labels = np.array([[1, 1, 0, 2], [0, 0, 0, 2]], np.int32)
    ignore = np.array([[0, 1, 0, 0], [0, 0, 1, 0]], bool)  # 6 valid; class 0: 1 px, class 2: 2 px
    index = index_of_drawn(Drawn([(labels, ignore, [0, 2])]))
    expected = [1 / math.log(1.02 + p) for p in (1 / 6, 0, 2 / 6)]
    assert index.enet_weights() == pytest.approx(expected, rel=1e-12)


def one_box(folder: Path) -> Path:
    """A COCO file of one image with one box."""
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / "images" / "a.png")
    box = {"id": 1, "image_id": 1, "category_id": 4, "segmentation": [[2, 3, 12, 3, 12, 9, 2, 9]]}
    image = {"id": 1, "file_name": "a.png", "height": 20, "width": 30}
    told = {"images": [image], "annotations": [box], "categories": [{"id": 4, "name": "box"}]}
    (folder / "a.json").write_text(json.dumps(told))
    return folder / "a.json"


def test_truth_is_that_of_the_sample_without_its_image(streets: Path, tmp_path: Path) -> None:
    write_folder(SyntheticDataset("shapes", (40, 40), 2), tmp_path / "masks", progress=False)
    shutil.copytree(streets, tmp_path / "streets")
    datasets: list[Any] = [
        open_folder(tmp_path / "masks"),
        open_coco(one_box(tmp_path / "coco")),
        open_cityscapes(tmp_path / "streets"),
    ]
    for dataset in datasets:
        sample = dataset[0].target
        dataset.image_path(0).unlink()
        truth = dataset.truth(0)
        for name in ("labels", "classes", "ignore"):
            assert torch.equal(getattr(truth, name), getattr(sample, name))
        assert len(truth.classes)


# ---------------------------------------------------------------- draws


def index_of(images: list[int], classes: list[int]) -> InstanceIndex:
    """An index of instances that lie in these images and are of these classes."""
    n = len(images)
    zeros = np.zeros(n, np.int64)
    return InstanceIndex(np.array(images), zeros, np.array(classes), zeros, 0)


UNEVEN = index_of([0] + [1] * 9 + [2] * 50, [0] * 40 + [2] * 15 + [3] * 5)


def chi_square(counts: np.ndarray, expected: np.ndarray | float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def draws(sampling: Any, count: int, epochs: int) -> np.ndarray:
    """(epochs, count) rows of UNEVEN."""
    rngs = (np.random.default_rng((7, epoch)) for epoch in range(epochs))
    return np.stack([UNEVEN.draw(sampling, count, rng) for rng in rngs])


def test_natural_draws_every_instance_as_often() -> None:
    drawn = draws("natural", 20, 600)
    assert all(len(set(epoch)) == 20 for epoch in drawn.tolist())
    # 59 degrees of freedom: above 110 once in 10,000.
    assert chi_square(np.bincount(drawn.ravel(), minlength=60), 600 * 20 / 60) < 110
    first = np.bincount(drawn[:, 0], minlength=60)  # the order is random too
    assert chi_square(first, 600 / 60) < 110
    twice = UNEVEN.draw("natural", 150, np.random.default_rng(0))
    assert set(np.bincount(twice, minlength=60).tolist()) == {2, 3}


def test_balanced_draws_every_class_as_often_and_its_instances_too() -> None:
    drawn = draws("balanced", 20, 600)
    classes = UNEVEN.class_index[drawn]  # (600, 20); class 1 has no instance
    of_class = np.stack([(classes == c).sum(1) for c in range(4)], axis=1)
    assert set(of_class[:, 1]) == {0}
    assert set(of_class[:, [0, 2, 3]].ravel().tolist()) == {6, 7}
    counts = np.bincount(drawn.ravel(), minlength=60)
    expected = 600 * 20 / 3 / np.array([40, 15, 5])[[0] * 40 + [1] * 15 + [2] * 5]
    assert chi_square(counts, expected) < 110
    sevens = (of_class[:, [0, 2, 3]] == 7).sum(0)
    assert chi_square(sevens, 400) < 20  # which classes come once more is chance
    first = np.array([(classes[:, 0] == c).sum() for c in (0, 2, 3)])
    assert chi_square(first, 200) < 20


def test_a_draw_follows_from_its_generator() -> None:
    for sampling in ("natural", "balanced"):
        one, two, other = (
            UNEVEN.draw(sampling, 30, np.random.default_rng(seed))  # type: ignore[arg-type]
            for seed in ((1, 2), (1, 2), (1, 3))
        )
        assert np.array_equal(one, two)
        assert not np.array_equal(one, other)


def test_rounds_bring_each_once_before_any_twice() -> None:
    drawn = in_rounds(np.arange(5), 13, np.random.default_rng(0)).tolist()
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == [0, 1, 2, 3, 4]
    assert len(set(drawn[10:])) == 3
    assert len(in_rounds(np.arange(5), 0, np.random.default_rng(0))) == 0


# ---------------------------------------------------------------- crops


def test_crops_lie_around_the_objects_that_were_drawn(streets: Path) -> None:
    dataset = open_cityscapes(streets)
    index = index_of_drawn(dataset)
    still = AugmentOptions(0.0, (1.0, 1.0), False, False, 0.0, 0.0, 0.0, 0.0)
    crops = Crops(dataset, PLAIN, still, CropPlan(64, 1.0, 40, 2, 0, 0, "natural"), index)
    drawn = index.draw("natural", 40, np.random.default_rng((0, 0)))
    for i, row in enumerate(drawn):
        image, target, name = crops[i]
        assert name == dataset.names[index.image[row]]
        assert image.shape == (3, 64, 64)
        whole = dataset[int(index.image[row])]
        ys, xs = np.nonzero(whole.target.labels.numpy() == index.label[row])
        y, x = round(ys.mean()), round(xs.mean())
        if whole.target.labels[y, x] == index.label[row]:  # else it is bent or hidden there
            pixel = torch.from_numpy(whole.image[y, x].astype(np.float32) / 255)
            assert (image == pixel[:, None, None]).all(0).any()
            assert index.class_index[row] in target.classes
    again = Crops(dataset, PLAIN, still, CropPlan(64, 1.0, 40, 2, 0, 0, "natural"), index)
    assert torch.equal(again[7][0], crops[7][0])
    later = Crops(dataset, PLAIN, still, CropPlan(64, 1.0, 40, 2, 0, 1, "natural"), index)
    assert not np.array_equal(later.labels, crops.labels)
