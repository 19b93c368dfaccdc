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
