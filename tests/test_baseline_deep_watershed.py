"""The deep watershed against loops over pixels; its grouping on ideal maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baseline_scenes import class_logits, empty, same, scene
from spatialembed.baselines import deep_watershed as method
from spatialembed.types import Target

SKIP = 2 + 16


def distances(mask: np.ndarray) -> np.ndarray:
    """px from each pixel of a mask to the nearest one outside, beyond the image too."""
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded)
    result = np.zeros(padded.shape)
    for y, x in np.argwhere(padded):
        result[y, x] = np.sqrt(((outside - (y, x)) ** 2).sum(1).min())
    return result


def oracle(maps: np.ndarray, target: Target) -> list[float]:
    """direction, energy and semantic of one image, pixel by pixel."""
    labels = np.where(target.ignore, 0, target.labels)
    sums = {"direction": [0.0, 0.0], "energy": [0.0, 0.0]}
    semantic = []
    for k in range(1, len(target.classes) + 1):
        mask = labels == k
        away = distances(mask)
        for y, x in np.argwhere(mask):
            weight = 1 / np.sqrt(mask.sum())
            v, u = y + 1, x + 1
            slope = np.array([away[v, u + 1] - away[v, u - 1], away[v + 1, u] - away[v - 1, u]]) / 2
            if slope.any():
                own = maps[:2, y, x]
                cosine = own @ slope / np.linalg.norm(own) / np.linalg.norm(slope)
                sums["direction"][0] += weight * np.arccos(np.clip(cosine, -1, 1)) ** 2
                sums["direction"][1] += weight
            level = sum(away[v, u] > edge for edge in method.EDGES)
            logits = maps[2:SKIP, y, x]
            weight *= 2 if level < 4 else 1
            sums["energy"][0] += weight * (np.log(np.exp(logits).sum()) - logits[level])
            sums["energy"][1] += weight
    for y, x in np.argwhere(~target.ignore.numpy()):
        truth = 0 if labels[y, x] == 0 else 1 + int(target.classes[labels[y, x] - 1])
        logits = maps[SKIP:, y, x]
        semantic.append(np.log(np.exp(logits).sum()) - logits[truth])
    ratios = [total / weight if weight else 0.0 for total, weight in sums.values()]
    return [*ratios, float(np.mean(semantic))]


def tiles(seed: int, classes: int) -> Target:
    """Boxes side by side, 7 px or more wide, in two rows that touch, and a pixel by itself."""
    rng = np.random.default_rng(seed)
    labels, count = np.zeros((40, 48), np.int32), 0
    middle = 3 + int(rng.integers(7, 14))
    for top in (3, middle):
        left = int(rng.integers(0, 4))
        while (right := left + int(rng.integers(7, 16))) <= 48:
            count += 1
            height = int(rng.integers(7, 14)) if top > 3 else middle - 3
            labels[top : top + height, left:right] = count
            left = right
    labels[38, 5] = count + 1
    kinds = torch.from_numpy(rng.integers(0, classes, count + 1))
    return Target(torch.from_numpy(labels), kinds, torch.zeros(labels.shape).bool())


def ideal(target: Target, classes: int) -> torch.Tensor:
    directions, levels, _ = method.landscape(target)
    energy = 12 * torch.nn.functional.one_hot(levels, 16).permute(2, 0, 1)
    return torch.cat((3 * directions, energy, class_logits(target, classes))).float()


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_equations(seed: int) -> None:
    targets = [scene(seed), empty(), scene(seed + 10, classes=1)]
    maps = np.random.default_rng(seed).normal(size=(3, SKIP + 3, 24, 24))
    found = method.loss(torch.from_numpy(maps), targets)
    every = [oracle(m, t) for m, t in zip(maps, targets, strict=True)]
    np.testing.assert_allclose([float(t) for t in found], np.mean(every, axis=0), rtol=1e-8)


def test_gradient_is_the_slope() -> None:
    target = scene(3, size=9, instances=4, ignored=2)
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(2, SKIP + 3, 9, 9)))
    maps.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: tuple(method.loss(m, [target, empty(9)])), (maps,), fast_mode=True
    )


def test_maps_of_zeros_have_a_finite_gradient() -> None:
    maps = torch.zeros((1, SKIP + 3, 24, 24), requires_grad=True)
    method.loss(maps, [scene(0)]).total().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_a_disk_has_its_levels_and_points_to_its_middle() -> None:
    y, x = np.mgrid[:41, :41] - 20
    labels = torch.from_numpy((x**2 + y**2 <= 15**2).astype(np.int32))
    directions, levels, areas = method.landscape(
        Target(labels, torch.zeros(1, dtype=torch.int64), torch.zeros((41, 41)).bool())
    )
    assert int(levels[20, 20]) == 10  # 16 px from the nearest pixel outside: 14 < 16 <= 17
    assert int(levels[20, 35]) == 0
    assert int(areas[20, 20]) == int(labels.sum())
    np.testing.assert_allclose(directions[:, 20, 30], [-1, 0], atol=0.1)
    np.testing.assert_allclose(directions[:, 10, 20], [0, 1], atol=0.1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("classes", "cut"), [(1, 1), (3, 1), (2, 2)])
def test_grouping_of_ideal_maps_is_the_truth(seed: int, classes: int, cut: int) -> None:
    target = tiles(seed, classes)
    assert same(method.group(ideal(target, classes), method.Settings(cut=cut)), target)


def test_grouping_of_round_instances_that_touch() -> None:
    y, x = np.mgrid[:48, :64]
    labels = np.zeros((48, 64), np.int32)
    for k, (cy, cx, r) in enumerate([(20, 16, 13), (24, 38, 12), (36, 22, 9)], 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= r**2] = k
    kinds = torch.zeros(3, dtype=torch.int64)
    target = Target(torch.from_numpy(labels), kinds, torch.zeros((48, 64)).bool())
    found = method.group(ideal(target, 1), method.Settings())
    assert len(found) == 3
    wrong = 0
    for k in range(1, 4):
        own = found.labels[labels == k]
        wrong += int((own != np.bincount(own).argmax()).sum())
    assert wrong <= 8  # pixels in the cusps between two of them


def test_grouping_of_nothing_and_of_one_pixel() -> None:
    assert len(method.group(ideal(empty(), 2), method.Settings())) == 0
    one = scene(0, size=1, instances=1, classes=1, ignored=0)
    assert same(method.group(ideal(one, 1), method.Settings()), one)
