"""Clustering as slow numpy loops over single pixels, written from the rules and nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

F = np.float32


def precision(raw: np.ndarray) -> np.ndarray:
    """exp of ten times raw, clamped, in float64, rounded to float32."""
    return np.exp(np.clip(10 * raw.astype(np.float64), -40, 40)).astype(F)


def exponent(e: np.ndarray, center: np.ndarray, p: np.ndarray) -> np.float32:
    """d of one embedding (2,) in float32; p (S,)."""
    dx, dy = F(e[0] - center[0]), F(e[1] - center[1])
    return F(F(F(p[0] * dx) * dx) + F(F(p[-1] * dy) * dy))


def rounds(
    e: np.ndarray, p: np.ndarray, s: np.ndarray, options: Any
) -> tuple[list[tuple[float, list[int]]], bool]:
    """(score, member pixels) of one class, and whether it stopped. e (2, N), p (S, N), s (N,)."""
    reach = F(-math.log(options.membership))
    candidates = [i for i in range(len(s)) if s[i] > F(options.foreground)]
    free = set(candidates)
    found: list[tuple[float, list[int]]] = []
    while free:
        best = min(free, key=lambda i: (-s[i], i))
        if s[best] < F(options.start):
            break
        if len(found) == options.max_instances:
            return found, True
        members = [i for i in candidates if exponent(e[:, i], e[:, best], p[:, best]) < reach]
        n, n_free = len(members), len(free & set(members))
        if n > options.min_pixels and n_free > options.min_free * n:
            found.append((float(s[best]), members))
        free -= set(members)
    return found, False


def cluster(
    e: np.ndarray, p: np.ndarray, s: np.ndarray, options: Any
) -> tuple[np.ndarray, list[float], list[int], bool]:
    """Labels (H, W), scores, classes, truncated. e (2, H, W), p (S, H, W), s (C, H, W)."""
    shape = s.shape[1:]
    e, p, s = e.reshape(2, -1), p.reshape(len(p), -1), s.reshape(len(s), -1)
    proposals, truncated = [], False
    for c in range(len(s)):
        found, stopped = rounds(e, p, s[c], options)
        proposals += [(-score, c, nth, members) for nth, (score, members) in enumerate(found)]
        truncated |= stopped
    owner: dict[int, tuple[float, int, int]] = {}
    for *rank, members in proposals:
        for i in members:
            owner[i] = min(owner.get(i, tuple(rank)), tuple(rank))
    kept = sorted(set(owner.values()))
    most = len(kept) if options.max_instances is None else options.max_instances
    truncated |= len(kept) > most
    kept = kept[:most]
    labels = np.zeros(s.shape[1], np.int32)
    for i, rank in owner.items():
        labels[i] = kept.index(rank) + 1 if rank in kept else 0
    return labels.reshape(shape), [-k[0] for k in kept], [k[1] for k in kept], truncated


def owner_by_truth(
    e: np.ndarray, raw: np.ndarray, labels: np.ndarray, ignore: np.ndarray, membership: float = 0.5
) -> np.ndarray:
    """True instance (H, W), 0 none, by ground-truth sampling. e (2, H, W), raw (S, H, W)."""
    owner = np.zeros(labels.shape, np.int32)
    best = np.full(labels.shape, membership)
    for k in range(1, labels.max() + 1):
        own = (labels == k) & ~ignore
        if not own.any():
            continue
        center = [axis[own].astype(float).mean() for axis in e]
        raw_mean = [channel[own].astype(float).mean() for channel in raw]
        p = [math.exp(min(max(10 * r, -40), 40)) for r in raw_mean]
        for y, x in np.ndindex(labels.shape):
            d = p[0] * (e[0, y, x] - center[0]) ** 2 + p[-1] * (e[1, y, x] - center[1]) ** 2
            if not ignore[y, x] and math.exp(-d) > best[y, x]:
                best[y, x], owner[y, x] = math.exp(-d), k
    return owner
