"""The groupings of the wing baselines: exact on ideal maps of random scenes."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from baseline_scenes import class_logits, empty, same, scene
from spatialembed.baselines import (
    associative,
    contract,
    discriminative,
    hinge,
    metric_learning,
    recurrent,
    regression,
    semi_convolutional,
    spatial_embedding,
)
from spatialembed.method.geometry import coordinates
from spatialembed.types import UNIT, Target

SIZE = 32


def _one_hot(target: Target, dimensions: int, length: float) -> Tensor:
    """(D, H, W): background and each instance in a direction of its own."""
    hot = torch.nn.functional.one_hot(target.labels.long(), dimensions)
    return length * hot.permute(2, 0, 1).float()


def _offset_px(target: Target) -> Tensor:
    """(2, H, W) (x, y): the pixels of each instance point at one place, places 8 px apart.

    Not at the centroid: those of a ring and of what lies in it are the same.
    """
    position = UNIT * coordinates(*target.labels.shape, torch.zeros(()))
    number = target.labels.long()
    place = torch.stack((4 + 8 * (number % 4), 4 + 8 * (number // 4)))
    return torch.where(number > 0, place - position, 0)


def ideal(method: ModuleType, target: Target, classes: int) -> Tensor:
    """Maps (C, H, W) whose loss is about as low as it can be."""
    semantic = class_logits(target, classes)
    other = class_logits(empty(SIZE), classes)  # of thresholds that give no good masks
    offset = _offset_px(target)
    seeds = class_logits(target, classes, 18)[1:] - 9
    parts = {
        discriminative: (_one_hot(target, 8, 4.0), semantic),
        associative: (4.0 * target.labels[None], semantic),
        recurrent: (_one_hot(target, 64, 1.0), semantic),
        metric_learning: (_one_hot(target, 64, 4.0), other, semantic, other, other),
        regression: (offset / 32, semantic),
        semi_convolutional: (offset / 32, torch.zeros(6, SIZE, SIZE), semantic),
        hinge: (UNIT / 32 * (offset / UNIT).atanh(), seeds),
        spatial_embedding: (offset / UNIT, torch.ones(2, SIZE, SIZE), seeds.sigmoid()),
    }
    return torch.cat(parts[method])


METHODS = [
    associative,
    discriminative,
    hinge,
    metric_learning,
    recurrent,
    regression,
    semi_convolutional,
    spatial_embedding,
]
EXACT: dict[ModuleType, dict[str, float]] = {
    hinge: {"margin_px": 3},
    regression: {"spread_px": 1, "votes": 0.9},
    semi_convolutional: {"core": 1},
}
"""Settings that let a single pixel be an instance."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__.rpartition(".")[2])
def test_ideal_maps_give_the_truth(method: ModuleType, classes: int, seed: int) -> None:
    target = scene(seed, SIZE, classes=classes, ignored=0)
    settings = replace(method.Settings(), **EXACT.get(method, {}))
    found = method.group(ideal(method, target, classes), settings)
    assert same(found, target)
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() > 0.9


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__.rpartition(".")[2])
def test_nothing_gives_nothing(method: ModuleType) -> None:
    assert len(method.group(ideal(method, empty(SIZE), 2), method.Settings())) == 0


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__.rpartition(".")[2])
def test_small_instances_are_dropped(method: ModuleType) -> None:
    """Their pixels may go to others, or to none."""
    target = scene(1, SIZE, classes=1, ignored=0)
    sizes = np.bincount(target.labels.numpy().ravel())[1:]
    settings = replace(method.Settings(), **EXACT.get(method, {}), min_pixels=20)
    found = method.group(ideal(method, target, 1), settings)
    assert len(found) == (sizes >= 20).sum() < len(sizes)
    assert found.areas.min() >= 20


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__.rpartition(".")[2])
def test_noise_ends(method: ModuleType) -> None:
    """Random maps: whatever is found, each pixel has one owner and no instance is empty."""
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(sum(method.channels(2)), 16, 16)))
    found = method.group(maps.float(), method.Settings())
    assert (found.areas > 0).all()
    assert found.labels.max() == len(found) == len(found.classes)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__.rpartition(".")[2])
def test_defaults_lie_in_the_tuned_ranges(method: ModuleType) -> None:
    settings = method.Settings()
    for name, tuned in method.TUNED.items():
        assert tuned.low <= getattr(settings, name) <= tuned.high


def test_modes_of_many_pixels_are_found_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(8, 50), dim=0)
    whole = recurrent.modes(vectors, recurrent.Settings())
    monkeypatch.setattr(recurrent, "PIXELS_AT_ONCE", 7)
    np.testing.assert_array_equal(recurrent.modes(vectors, recurrent.Settings()), whole)


def test_of_too_many_modes_those_with_the_most_pixels_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth = np.repeat([0, 1, 2, 3], [40, 3, 60, 5])
    vectors = torch.eye(8)[:, truth]
    ids = recurrent.modes(vectors, recurrent.Settings())
    np.testing.assert_array_equal(ids, truth)
    monkeypatch.setattr(recurrent, "MOST_SIMILARITIES", 2 * len(truth) + 1)
    ids = recurrent.modes(vectors, recurrent.Settings())
    assert set(ids[truth == 0]) == {0}
    assert set(ids[truth == 2]) == {1}
    assert ids.max() == 1


def test_an_even_sample() -> None:
    places, run = contract.evenly(torch.tensor([2, 7, 0, 3]), 3)
    assert places.tolist() == [0, 1, 2, 4, 6, 9, 10, 11]
    assert run.tolist() == [0, 0, 1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", [discriminative, metric_learning], ids=["balls", "seeds"])
def test_a_search_among_a_fifth_of_the_pixels_finds_the_same(
    method: ModuleType, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = scene(seed, SIZE, classes=1, ignored=0)
    settings = replace(method.Settings(), min_pixels=20)
    maps = ideal(method, target, 1)
    of_all = method.group(maps, settings)
    pool = int((target.labels > 0).sum()) if method is discriminative else SIZE**2
    monkeypatch.setattr(method, "MOST_PIXELS", pool // 5)
    found = method.group(maps, settings)
    assert len(found) > 0
    np.testing.assert_array_equal(found.labels > 0, of_all.labels > 0)
    pairs = {*zip(found.labels.ravel().tolist(), of_all.labels.ravel().tolist(), strict=True)}
    assert len(pairs) == len(of_all) + 1  # the same parts, whatever their order


@pytest.mark.parametrize(("cells", "pairs"), [(1 << 16, 1 << 23), (300, 1 << 23), (1 << 16, 5000)])
@pytest.mark.parametrize("core", [1, 4])
def test_scattered_instances_are_found_from_a_part_of_their_pixels(
    cells: int, pairs: int, core: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Balls of a half-trained network, of 400 to 700 pixels, and pixels that are alone."""
    monkeypatch.setattr(semi_convolutional, "MOST_CELLS", cells)
    monkeypatch.setattr(semi_convolutional, "MOST_PAIRS", pairs)
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat([0, 1, 2, 3, -1], [400, 500, 600, 700, 20]))
    points = rng.normal(0, 0.02, (len(truth), 8))
    points[:, 0] += np.where(truth >= 0, truth, 10 + np.arange(len(truth)))
    found = semi_convolutional.density_clusters(
        points, semi_convolutional.Settings(sigma=0.2, core=core)
    )
    for k in range(4):
        ids, counts = np.unique(found[truth == k], return_counts=True)
        assert counts.max() > 0.99 * counts.sum()
        assert ids[counts.argmax()] >= 0
    assert len({np.bincount(found[truth == k] + 1).argmax() for k in range(4)}) == 4
    if core > 1:
        assert (found[truth < 0] == -1).all()


def test_a_part_without_any_cluster_leaves_all_pixels_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(semi_convolutional, "MOST_CELLS", 10)
    points = np.arange(100.0)[:, None] * np.ones(8)
    found = semi_convolutional.density_clusters(points, semi_convolutional.Settings())
    assert (found == -1).all()


def test_equal_rows_are_of_one_kind() -> None:
    rows = np.random.default_rng(0).integers(-2, 3, (500, 3))
    first, kind, counts = contract.bins_of(rows)
    np.testing.assert_array_equal(rows[first][kind], rows)
    np.testing.assert_array_equal(counts, np.bincount(kind))
    assert len(first) == len(np.unique(rows, axis=0))
