"""Affinities against loops over pairs; the merge against a plain one; grouping on ideal maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baseline_scenes import class_logits, empty, same, scene
from spatialembed.baselines import affinities as method
from spatialembed.baselines.graph_merge import merge
from spatialembed.types import Target

OUTPUTS = len(method.OFFSETS)


def softplus(x: float) -> float:
    return float(np.log1p(np.exp(-abs(x))) + max(x, 0))


def oracle(maps: np.ndarray, target: Target) -> list[float]:
    """attraction, repulsion and semantic of one image, pair by pair."""
    labels, ignore = target.labels.numpy(), target.ignore.numpy()
    height, width = labels.shape
    attraction, repulsion, semantic = [], [], []
    for y, x in np.argwhere(~ignore):
        truth = 0 if labels[y, x] == 0 else 1 + int(target.classes[labels[y, x] - 1])
        logits = maps[OUTPUTS:, y, x]
        semantic.append(np.log(np.exp(logits).sum()) - logits[truth])
        for i, (dy, dx) in enumerate(method.OFFSETS):
            v, u = y + dy, x + dx
            if not (0 <= v < height and 0 <= u < width) or ignore[v, u]:
                continue
            if labels[y, x] != labels[v, u]:
                repulsion.append(softplus(maps[i, y, x]))
            elif labels[y, x]:
                attraction.append(softplus(-maps[i, y, x]))
    return [float(np.sum(t)) / max(len(t), 1) for t in (attraction, repulsion, semantic)]


def ideal(target: Target, classes: int) -> torch.Tensor:
    alike, _ = method.pairs(target)
    return torch.cat((alike.float() * 20 - 10, class_logits(target, classes)))


def test_outputs_are_pairs_at_seven_distances() -> None:
    assert method.channels(3) == (28, 4)
    around = {*method.OFFSETS, *((-y, -x) for y, x in method.OFFSETS)}
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    wanted = {(y * d, x * d) for d in (1, 2, 4, 8, 16, 32, 64) for y, x in steps}
    assert around == wanted - {(0, 0)}


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_equations(seed: int) -> None:
    targets = [scene(seed), empty(), scene(seed + 10, classes=1)]
    maps = np.random.default_rng(seed).normal(size=(3, OUTPUTS + 3, 24, 24))
    found = method.loss(torch.from_numpy(maps), targets)
    every = [oracle(m, t) for m, t in zip(maps, targets, strict=True)]
    np.testing.assert_allclose([float(t) for t in found], np.mean(every, axis=0), rtol=1e-9)


def test_gradient_is_the_slope() -> None:
    target = scene(3, size=7, instances=4, ignored=2)
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(2, OUTPUTS + 3, 7, 7)))
    maps.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: tuple(method.loss(m, [target, empty(7)])), (maps,), fast_mode=True
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [1, 3])
def test_grouping_of_ideal_maps_is_the_truth(seed: int, classes: int) -> None:
    target = scene(seed, classes=classes, ignored=0)
    assert same(method.group(ideal(target, classes), method.Settings()), target)


def test_grouping_of_nothing_and_of_one_pixel() -> None:
    assert len(method.group(ideal(empty(), 2), method.Settings())) == 0
    one = scene(0, size=1, instances=1, classes=1, ignored=0)
    assert same(method.group(ideal(one, 1), method.Settings()), one)


@pytest.mark.parametrize("seed", range(6))
def test_a_sixth_of_the_far_pairs_gives_the_same_on_ideal_maps(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method, "MOST_EDGES", 1)
    target = scene(seed, classes=1 + seed % 3, ignored=0)
    assert same(method.group(ideal(target, 3), method.Settings()), target)


def test_a_short_reach_leaves_parts_apart() -> None:
    labels = torch.zeros((9, 20), dtype=torch.int32)
    labels[2:6, :8], labels[2:6, 12:] = 1, 1  # hidden in the middle
    target = Target(labels, torch.zeros(1, dtype=torch.int64), torch.zeros((9, 20)).bool())
    maps = ideal(target, 1)
    assert len(method.group(maps, method.Settings())) == 1
    assert len(method.group(maps, method.Settings(reach=2))) == 2


def plain_merge(first: np.ndarray, second: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    strength = np.abs(weight).astype(np.float32)
    segment, excluded = np.arange(n), set()
    for e in np.argsort(-strength, kind="stable"):
        a, b = segment[first[e]], segment[second[e]]
        if strength[e] == 0 or a == b:
            continue
        if weight[e] < 0:
            excluded.add(frozenset((a, b)))
        elif frozenset((a, b)) not in excluded:
            segment[segment == b] = a
            excluded = {frozenset(a if c == b else c for c in pair) for pair in excluded}
    order = {s: i for i, s in enumerate(dict.fromkeys(segment.tolist()))}
    return np.array([order[s] for s in segment.tolist()], int)


@pytest.mark.parametrize("seed", range(60))
def test_merge_is_the_plain_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes, edges = int(rng.integers(1, 30)), int(rng.integers(0, 150))
    first, second = rng.integers(0, nodes, (2, edges))
    weight = rng.uniform(-1, 1, edges)
    if seed % 3 == 0:  # ties
        weight = np.round(weight * 2) / 2
    expected = plain_merge(first, second, weight, nodes)
    np.testing.assert_array_equal(merge(first, second, weight, nodes), expected)


def test_the_stronger_edge_comes_first_by_the_last_bit() -> None:
    first, second = np.array([0, 0]), np.array([1, 1])
    half, more = np.float32(0.5), np.nextafter(np.float32(0.5), np.float32(1))
    for weight, segments in (((-half, more), 1), ((half, -more), 2), ((-half, half), 2)):
        assert merge(first, second, np.array(weight), 2).max() + 1 == segments
