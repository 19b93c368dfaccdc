"""The discriminative loss against loops over its equations; its grouping on ideal maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baseline_scenes import class_logits, empty, same, scene
from spatialembed.baselines import discriminative as method
from spatialembed.types import Target


def oracle(maps: np.ndarray, target: Target) -> list[float]:
    """pull, push, norm and semantic of one image, pixel by pixel."""
    labels, ignore = target.labels.numpy(), target.ignore.numpy()
    classes = target.classes.numpy()
    spots = {k: np.argwhere((labels == k) & ~ignore) for k in range(1, len(classes) + 1)}
    spots = {k: found for k, found in spots.items() if len(found)}
    vectors = {k: np.stack([maps[:8, y, x] for y, x in v]) for k, v in spots.items()}
    means = {k: v.mean(0) for k, v in vectors.items()}
    pull = norm = push = 0.0
    for k, v in vectors.items():
        away = [max(np.linalg.norm(means[k] - x) - 0.5, 0) ** 2 for x in v]
        pull += float(np.mean(away)) / len(vectors)
        norm += float(np.linalg.norm(means[k])) / len(vectors)
    pairs = [(k, m) for k in means for m in means if k != m and classes[k - 1] == classes[m - 1]]
    for k, m in pairs:
        push += max(3 - np.linalg.norm(means[k] - means[m]), 0) ** 2 / len(pairs)
    semantic = []
    for y, x in np.argwhere(~ignore):
        truth = 0 if labels[y, x] == 0 else 1 + classes[labels[y, x] - 1]
        logits = maps[8:, y, x]
        semantic.append(np.log(np.exp(logits).sum()) - logits[truth])
    return [pull, float(push), norm, float(np.mean(semantic))]


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_the_equations(seed: int) -> None:
    targets = [scene(seed), empty(), scene(seed + 10, classes=1)]
    maps = np.random.default_rng(seed).normal(size=(3, 11, 24, 24))
    found = method.loss(torch.from_numpy(maps), targets)
    every = [oracle(m, t) for m, t in zip(maps, targets, strict=True)]
    np.testing.assert_allclose([float(t) for t in found], np.mean(every, axis=0), rtol=1e-9)


def test_gradient_is_the_slope() -> None:
    target = scene(3, size=7, instances=4, ignored=2)
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 11, 7, 7)))
    maps.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: tuple(method.loss(m, [target, empty(7)])), (maps,), fast_mode=True
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [1, 3])
def test_grouping_of_ideal_maps_is_the_truth(seed: int, classes: int) -> None:
    target = scene(seed, classes=classes, ignored=0)
    rng = np.random.default_rng(seed)
    places = torch.from_numpy(4.0 * np.eye(8)[rng.permutation(8)]).float()  # 5.7 apart
    embedding = places[target.labels.long()].permute(2, 0, 1)
    maps = torch.cat(
        (embedding + 0.05 * torch.randn(embedding.shape), class_logits(target, classes))
    )
    assert same(method.group(maps, method.Settings()), target)


def test_grouping_of_nothing() -> None:
    maps = torch.cat((torch.zeros(8, 24, 24), class_logits(empty(), 2)))
    assert len(method.group(maps, method.Settings())) == 0
