"""Slow losses of the wing baselines, from their equations: loops over pixels and pairs, numpy.

Each takes maps (C, H, W) float64 of one image and its truth, and returns the unweighted terms.
"""

from __future__ import annotations

import math

import numpy as np

from spatialembed.types import Target

Spots = dict[int, list[tuple[int, int]]]


def spots(target: Target) -> Spots:
    """Valid pixels (y, x) of each instance that has any, in reading order."""
    labels, ignore = target.labels.numpy(), target.ignore.numpy()
    found: Spots = {}
    for y, x in np.ndindex(labels.shape):
        if labels[y, x] and not ignore[y, x]:
            found.setdefault(int(labels[y, x]), []).append((y, x))
    return dict(sorted(found.items()))


def softmax(logits: np.ndarray) -> np.ndarray:
    chances = np.exp(logits - logits.max())
    return np.asarray(chances / chances.sum())


def semantic(logits: np.ndarray, target: Target) -> float:
    labels, classes = target.labels.numpy(), target.classes.numpy()
    every = []
    for y, x in np.argwhere(~target.ignore.numpy()):
        truth = 0 if labels[y, x] == 0 else 1 + classes[labels[y, x] - 1]
        every.append(-math.log(softmax(logits[:, y, x])[truth]))
    return float(np.mean(every)) if every else 0.0


def of_instances(maps: np.ndarray, target: Target) -> dict[int, np.ndarray]:
    """The vectors (N, C) of each instance."""
    return {k: np.stack([maps[:, y, x] for y, x in v]) for k, v in spots(target).items()}


def mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def discriminative(maps: np.ndarray, target: Target) -> list[float]:
    vectors = of_instances(maps[:8], target)
    means = {k: v.mean(0) for k, v in vectors.items()}
    pull = [
        mean([max(np.linalg.norm(means[k] - x) - 0.5, 0) ** 2 for x in v])
        for k, v in vectors.items()
    ]
    classes = target.classes.numpy()
    pairs = [(k, m) for k in means for m in means if k != m and classes[k - 1] == classes[m - 1]]
    push = [max(3 - np.linalg.norm(means[k] - means[m]), 0) ** 2 for k, m in pairs]
    length = [float(np.linalg.norm(m)) for m in means.values()]
    return [mean(pull), mean(push), mean(length), semantic(maps[8:], target)]


def associative(maps: np.ndarray, target: Target) -> list[float]:
    tags = of_instances(maps[:1], target)
    means = {k: float(v.mean()) for k, v in tags.items()}
    pull = [float(((v - means[k]) ** 2).mean()) for k, v in tags.items()]
    push = [math.exp(-((means[k] - means[m]) ** 2) / 2) for k in means for m in means if k != m]
    return [mean(pull), sum(push) / max(len(means), 1) ** 2, semantic(maps[1:], target)]


def regression(maps: np.ndarray, target: Target) -> list[float]:
    away = []
    for v in spots(target).values():
        center = np.mean([(x / 32, y / 32) for y, x in v], axis=0)
        ends = [np.array([x / 32, y / 32]) + maps[:2, y, x] for y, x in v]
        away.append(mean([float(np.linalg.norm(e - center)) for e in ends]))
    return [mean(away), semantic(maps[2:], target)]


def hinge(maps: np.ndarray, target: Target) -> list[float]:
    offset, seed = np.tanh(maps[:2] / 32) * 1024, 1 / (1 + np.exp(-maps[2:]))
    labels, ignore = target.labels.numpy(), target.ignore.numpy()
    goal = np.zeros_like(seed)
    weight = np.repeat(~ignore[None], len(seed), 0).astype(float)
    terms = []
    for k, v in spots(target).items():
        center = np.mean([(x, y) for y, x in v], axis=0)
        excess = []
        for y, x in v:
            away = float(np.linalg.norm(np.array([x, y]) + offset[:, y, x] - center))
            excess.append(max(away - 5.7, 0) / 32)
            goal[target.classes[k - 1], y, x] = math.exp(-math.log(2) * (away / 5.7) ** 2)
            weight[target.classes[k - 1], y, x] = 10
        terms.append(mean(excess))
    return [mean(terms), float((weight * (seed - goal) ** 2).sum() / labels.size)]


def semi_convolutional(maps: np.ndarray, target: Target) -> list[float]:
    away = []
    for v in spots(target).values():
        every = []
        for y, x in v:
            psi = maps[:8, y, x].copy()
            psi[:2] += x / 32, y / 32
            every.append(psi)
        middle = np.mean(every, axis=0)
        away.append(mean([float(np.linalg.norm(psi - middle)) for psi in every]))
    return [mean(away), semantic(maps[8:], target)]


def evenly(places: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    if len(places) <= most:
        return places
    return [places[j * len(places) // most] for j in range(most)]


def recurrent(maps: np.ndarray, target: Target) -> list[float]:
    where = {k: evenly(v, 16) for k, v in spots(target).items()}
    owner = [k for k, v in where.items() for _ in v]
    points = [
        maps[:64, y, x] / np.linalg.norm(maps[:64, y, x]) for v in where.values() for y, x in v
    ]
    weight = [1 / (len(where[k]) * len(where)) for k in owner]
    losses = []
    for loop in range(6):
        if loop and points:
            moved = []
            for x in points:
                total = sum(math.exp(36 * (float(x @ z) - 1)) * z for z in points)
                moved.append(total / np.linalg.norm(total))
            points = moved
        loss = 0.0
        for i, x in enumerate(points):
            for j, z in enumerate(points):
                s = (1 + float(x @ z)) / 2
                wrong = 1 - s if owner[i] == owner[j] else max(s - 0.5, 0)
                loss += weight[i] * weight[j] * wrong
        losses.append(loss)
    return [mean(losses), semantic(maps[64:], target)]


def metric_learning(maps: np.ndarray, target: Target) -> list[float]:
    thresholds = (0.25, 0.5, 0.75, 0.9)
    labels, ignore, classes = (t.numpy() for t in (target.labels, target.ignore, target.classes))
    where = {k: evenly(v, 10) for k, v in spots(target).items()}
    nowhere = evenly([(y, x) for y, x in np.argwhere((labels == 0) & ~ignore).tolist()], 64)
    sample = [(k, p) for k, v in where.items() for p in v] + [(0, p) for p in nowhere]
    sizes = {k: len(v) for k, v in where.items()} | {0: len(nowhere)}

    def sigma(p: tuple[int, int], q: tuple[int, int]) -> float:
        return 2 / (1 + math.exp(((maps[:64, *p] - maps[:64, *q]) ** 2).sum()))

    total = weights = 0.0
    for k, p in sample:
        for m, q in sample:
            if k == m == 0:
                continue
            weight = 1 / (sizes[k] * sizes[m])
            weights += weight
            total -= weight * math.log(sigma(p, q) if k == m else 1 - sigma(p, q))
    logits = maps[64:].reshape(4, -1, *labels.shape)
    seediness = 0.0
    valid = [(y, x) for y, x in np.argwhere(~ignore).tolist()]
    for k, p in sample:
        similar = {q: sigma(p, q) for q in valid} if k else {}
        for t, threshold in enumerate(thresholds):
            mask = {q for q, s in similar.items() if s > threshold}
            own = set(spots(target).get(k, []))
            good = k and len(mask & own) / len(mask | own) > 0.5
            truth = 1 + int(classes[k - 1]) if good else 0
            seediness -= math.log(softmax(logits[t, :, *p])[truth]) / len(sample)
    return [total / weights if weights else 0.0, seediness]
