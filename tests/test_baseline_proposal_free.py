"""The proposal-free network against loops over pixels; its grouping on ideal maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baseline_scenes import class_logits, empty, same, scene
from spatialembed.baselines import proposal_free as method
from spatialembed.types import Target


def box(mask: np.ndarray) -> np.ndarray:
    """x, y of the middle, the upper left and the lower right, px."""
    ys, xs = np.nonzero(mask)
    low, high = np.array([xs.min(), ys.min()]), np.array([xs.max(), ys.max()]) + 1
    return np.concatenate(((low + high) / 2, low, high))


def oracle(maps: np.ndarray, target: Target, classes: int) -> list[float]:
    """location, number and semantic of one image, pixel by pixel."""
    ignore = target.ignore.numpy()
    labels = np.where(ignore, 0, target.labels)
    location, semantic, density = [], [], np.zeros(classes)
    ids = [k for k in range(1, len(target.classes) + 1) if (labels == k).any()]
    for y, x in np.argwhere(~ignore):
        k = labels[y, x]
        truth = 0 if k == 0 else 1 + int(target.classes[k - 1])
        logits = maps[6 + classes :, y, x]
        semantic.append(np.log(np.exp(logits).sum()) - logits[truth])
        density += np.log1p(np.exp(maps[6 : 6 + classes, y, x])) / 32**2
        if k:
            goal = (box(labels == k) - [x + 0.5, y + 0.5] * 3) / 32
            away = np.abs(maps[:6, y, x] - goal)
            location.append(np.where(away < 1, away**2 / 2, away - 0.5).sum())
    wanted = np.bincount([int(target.classes[k - 1]) for k in ids], minlength=classes)
    number = float(((density - wanted) ** 2).mean())
    return [float(np.sum(location)) / max(len(location), 1), number, float(np.mean(semantic))]


def ideal(target: Target, classes: int) -> torch.Tensor:
    labels = target.labels.numpy()
    location = np.zeros((6, *labels.shape))
    density = np.full((classes, *labels.shape), -30.0)
    for k, c in enumerate(target.classes.tolist(), 1):
        y, x = np.nonzero(labels == k)
        here = np.stack((x, y) * 3) + 0.5
        location[:, y, x] = (box(labels == k)[:, None] - here) / 32
        density[c, y[0], x[0]] = 32**2  # softplus is the identity there
    maps = torch.from_numpy(np.concatenate((location, density))).float()
    return torch.cat((maps, class_logits(target, classes)))


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_equations(seed: int) -> None:
    targets = [scene(seed), empty(), scene(seed + 10, classes=1)]
    maps = 2 * np.random.default_rng(seed).normal(size=(3, 11, 24, 24))
    found = method.loss(torch.from_numpy(maps), targets)
    every = [oracle(m, t, 2) for m, t in zip(maps, targets, strict=True)]
    np.testing.assert_allclose([float(t) for t in found], np.mean(every, axis=0), rtol=1e-9)


def test_gradient_is_the_slope() -> None:
    target = scene(3, size=7, instances=4, ignored=2)
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 11, 7, 7)))
    maps.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: tuple(method.loss(m, [target, empty(7)])), (maps,), fast_mode=True
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [1, 3])
def test_grouping_of_ideal_maps_is_the_truth(seed: int, classes: int) -> None:
    target = scene(seed, classes=classes, ignored=0)
    assert same(method.group(ideal(target, classes), method.Settings()), target)


def test_the_number_is_what_it_is_clustered_into() -> None:
    points = np.repeat([[0.0, 0], [10, 0], [40, 0], [43, 0]], 5, axis=0)
    for number in range(6):
        ids = method.clustered(points, number)
        assert len(np.unique(ids)) == min(max(number, 1), 4)
        assert ids.max() + 1 == len(np.unique(ids))


def test_grouping_of_nothing_and_of_one_pixel() -> None:
    assert len(method.group(ideal(empty(), 2), method.Settings())) == 0
    one = scene(0, size=1, instances=1, classes=1, ignored=0)
    assert same(method.group(ideal(one, 1), method.Settings()), one)
