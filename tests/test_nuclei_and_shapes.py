"""Generated pictures: exact truth, the same for the same seed, visible to a threshold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialembed.data.folder import open_folder
from spatialembed.errors import SpatialEmbedError
from spatialembed.generated.nuclei_and_shapes import (
    Kind,
    SyntheticDataset,
    nuclei_field,
    shapes_scene,
    write_folder,
)
from spatialembed.types import Sample, Target

DRAW: list[Callable[..., Sample]] = [nuclei_field, shapes_scene]
KINDS: list[Kind] = ["nuclei", "shapes"]
EIGHT = np.ones((3, 3))


def check(sample: Sample, height: int, width: int) -> np.ndarray:
    """Hold a sample to the rules of a truth; its labels (H, W)."""
    labels = sample.target.labels.numpy()
    assert sample.image.shape == labels.shape == (height, width)
    assert (sample.image.dtype, labels.dtype) == (np.uint8, np.int32)
    count = len(sample.target.classes)
    assert np.unique(labels[labels > 0]).tolist() == list(range(1, count + 1))
    assert not sample.target.classes.any()
    assert not sample.target.ignore.any()
    for k in range(1, count + 1):
        assert ndimage.label(labels == k, EIGHT)[1] == 1
    return labels


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 2**32), st.booleans())
def test_any_size_and_seed(height: int, width: int, seed: int, nuclei: bool) -> None:
    """Ids without gaps, every one seen and in one piece, down to a picture of one pixel."""
    check((nuclei_field if nuclei else shapes_scene)(height, width, seed=seed), height, width)


@pytest.mark.parametrize("fault", ["LBL-01"])
def test_ids_that_would_wrap_are_refused(fault: str, tmp_path: Path) -> None:
    labels = torch.arange(1, 65537, dtype=torch.int32).reshape(256, 256)
    truth = Target(labels, torch.zeros(65536, dtype=torch.int64), torch.zeros(256, 256).bool())
    many = [Sample(np.zeros((256, 256), np.uint8), truth, "many")]
    with pytest.raises(SpatialEmbedError, match=r"too_many_objects.*65536"):
        write_folder(many, tmp_path, progress=False)


@pytest.mark.parametrize("draw", DRAW)
def test_seed_decides(draw: Callable[..., Sample]) -> None:
    one, again, other = (draw(64, 80, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.target.labels, again.target.labels)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("draw", DRAW)
def test_count_is_met_where_there_is_room(draw: Callable[..., Sample]) -> None:
    """The demo asks for at least twelve shapes a scene."""
    for seed in range(10):
        assert len(draw(192, 192, seed=seed, count=14).target.classes) == 14
    assert len(draw(64, 64, seed=0, count=0).target.classes) == 0
    assert len(draw(40, 40, seed=0, count=500).target.classes) < 200


@pytest.mark.parametrize("draw", DRAW)
def test_objects_touch(draw: Callable[..., Sample]) -> None:
    """A threshold alone must not do: a good part of the objects shares a border with another."""
    touching = total = 0
    for seed in range(8):
        labels = check(draw(160, 160, seed=seed), 160, 160)
        count = int(labels.max())
        groups = ndimage.label(labels > 0, EIGHT)[0]
        members = [len(np.unique(labels[groups == g])) for g in range(1, int(groups.max()) + 1)]
        touching += sum(n for n in members if n > 1)
        total += count
    assert 0.3 < touching / total < 0.98


def test_truth_is_where_the_light_is() -> None:
    """Nuclei are brighter than their surroundings: the best threshold finds the truth's pixels."""
    scores = []
    for seed in range(8):
        sample = nuclei_field(128, 128, seed=seed)
        truth = sample.target.labels.numpy() > 0
        smooth = ndimage.gaussian_filter(sample.image.astype(float), 1)
        ious = [
            ((smooth > t) & truth).sum() / ((smooth > t) | truth).sum() for t in range(5, 200, 3)
        ]
        scores.append(max(ious))
    assert np.median(scores) > 0.85
    assert min(scores) > 0.6


def test_shapes_are_lighter_or_darker_than_the_ground_beside_them() -> None:
    """Objects of a scene lie on one side of their ground; both signs appear."""
    signs = []
    for seed in range(12):
        sample = shapes_scene(160, 160, seed=seed)
        labels, image = sample.target.labels.numpy(), sample.image.astype(float)
        steps = []
        for k in range(1, int(labels.max()) + 1):
            ring = ndimage.binary_dilation(labels == k, EIGHT, iterations=4) & (labels == 0)
            if ring.sum() > 20:
                steps.append(np.sign(image[labels == k].mean() - image[ring].mean()))
        signs.append(np.mean(steps))
        assert abs(signs[-1]) > 0.7
    assert min(signs) < 0 < max(signs)


@pytest.mark.parametrize("kind", KINDS)
def test_dataset_is_decided_by_seed_and_index(kind: Kind) -> None:
    """The order of asking, the length and other images change nothing."""
    dataset = SyntheticDataset(kind, (48, 64), length=5, seed=2)
    backwards = [dataset[i] for i in (4, 3, 2, 1, 0)][::-1]
    longer = SyntheticDataset(kind, (48, 64), length=9, seed=2)
    for i, sample in enumerate(dataset):  # type: ignore[arg-type]
        assert sample.name == dataset.names[i]
        assert np.array_equal(sample.image, backwards[i].image)
        assert np.array_equal(sample.image, longer[i].image)
        check(sample, 48, 64)
    assert len(dataset) == len(set(dataset.names)) == 5
    assert not np.array_equal(dataset[0].image, SyntheticDataset(kind, (48, 64), 5, 3)[0].image)
    with pytest.raises(IndexError):
        dataset[5]


def test_written_folder_reads_back(tmp_path: Path) -> None:
    dataset = SyntheticDataset("shapes", 72, length=3, seed=1)
    write_folder(dataset, tmp_path, progress=False)
    read = open_folder(tmp_path)
    assert read.names == dataset.names
    assert read.class_names == dataset.class_names
    for mine, its in zip(dataset, read, strict=True):  # type: ignore[call-overload]
        assert np.array_equal(mine.image, its.image)
        assert np.array_equal(mine.target.labels, its.target.labels)
