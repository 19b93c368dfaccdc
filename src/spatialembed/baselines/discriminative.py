"""Discriminative loss (De Brabandere, Neven, Van Gool 2017, arXiv 1708.02551).

    pull    1/K sum_k 1/N_k sum_i max(|mu_k - x_i| - dv, 0)^2
    push    mean over the pairs k != l of one class of max(2 dd - |mu_k - mu_l|, 0)^2
    norm    1/K sum_k |mu_k|
    total   1 pull + 1 push + 0.001 norm, with dv = 0.5, dd = 1.5

x_i in D = 8 dimensions, as for Cityscapes in the paper; mu_k is the mean of instance k. Of one
class the push is the paper's 1/(K (K - 1)) sum; of one instance there is none, and it is 0. For
several classes the paper takes its loss class by class, so that means of different classes are not
pushed apart; here each term is one mean over the instances, or such pairs, of all classes. The
paper leaves open whether lengths are L1 or L2 (L2 here), and takes the classes from another
network: here they are a softmax of the same one, with weight 1. Background has no embedding to
learn.

Grouping is the fast mean-shift of the paper within each class: from a free pixel the mean of all
within the bandwidth, again and again until that set stays; it is an instance, and its pixels are
taken. The paper starts at a random pixel, this at the first one in reading order. Pixels come to
lie on the rim of the pull margin, so the default bandwidth is the push margin.

Noise gives thousands of balls, each found by passes over all pixels. So at most ``MOST_PIXELS`` of
a class are searched, with at most ``MOST_DISTANCES`` distances; what is still free then is in no
instance, and every other pixel goes to the nearest mean within the bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spatialembed.baselines.contract import (
    MOST_PIXELS,
    MOST_ROUNDS,
    Range,
    as_instances,
    class_probabilities,
    evenly,
    images_of,
    mean_terms,
    norm,
    semantic_term,
    within_classes,
)
from spatialembed.method.instance_term import Truth
from spatialembed.types import Instances, Target

TITLE = "discriminative loss (De Brabandere 2017)"
DIMENSIONS = 8
PULL_MARGIN = 0.5
PUSH_MARGIN = 1.5
STEPS = 20
"""Of mean-shift at most; in practice the set stays after three to five."""
MOST_DISTANCES = 1 << 27
"""Of pixels to a mean, in the search: three seconds."""
PIXELS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    bandwidth: float = PUSH_MARGIN
    """Radius of an instance in the embedding; with the push margin, half of the way to the next."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {"bandwidth": Range(0.5, 2)}


class DiscriminativeTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    pull: Tensor
    push: Tensor
    norm: Tensor
    semantic: Tensor

    def total(self) -> Tensor:
        """With the weights of the paper."""
        return self.pull + self.push + 0.001 * self.norm + self.semantic


def channels(num_classes: int) -> tuple[int, int]:
    """An embedding of 8 dimensions; background and classes."""
    return DIMENSIONS, 1 + num_classes


def loss(maps: Tensor, targets: Sequence[Target]) -> DiscriminativeTerms:
    """Terms of maps (B, 8 + 1 + classes, H, W) and B truths."""
    return mean_terms(_image_terms(own, target) for own, target in images_of(maps, targets))


def _image_terms(maps: Tensor, target: Target) -> DiscriminativeTerms:
    truth = Truth.of(target)
    embedding = maps[:DIMENSIONS].flatten(1)  # (D, P)
    own = embedding[:, truth.pixels]  # (D, M)
    means = truth.mean(own)  # (D, K)
    away = norm(own - means[:, truth.instance], PULL_MARGIN) - PULL_MARGIN  # (M,)
    first, second = torch.triu_indices(len(truth), len(truth), 1, device=maps.device)
    alike = truth.classes[first] == truth.classes[second]
    first, second = first[alike], second[alike]
    near = (2 * PUSH_MARGIN - norm(means[:, first] - means[:, second])).relu()  # (K(K-1)/2,)
    attached = 0 * embedding.sum()
    return DiscriminativeTerms(
        truth.mean_of_means(away.square()) + attached,
        near.square().sum() / max(len(near), 1) + attached,
        norm(means).sum() / max(len(truth), 1) + attached,
        semantic_term(maps[DIMENSIONS:], target),
    )


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (8 + 1 + classes, H, W): mean-shift within each class."""
    probabilities = class_probabilities(maps[DIMENSIONS:])
    embedding = maps[:DIMENSIONS].detach().flatten(1).T.float().cpu().numpy()  # (P, D)

    def assign(pixels: np.ndarray, _: int) -> np.ndarray:
        return mean_shift(embedding[pixels], settings.bandwidth)

    labels = within_classes(probabilities, assign)
    return as_instances(labels, probabilities, settings.min_pixels)


def mean_shift(points: np.ndarray, bandwidth: float) -> np.ndarray:
    """Ids (P,) from 0 of points (P, D): balls of that radius, one after the other, -1 for the rest.

    The ball around a free point moves to the mean of the free points in it until they stay.
    """
    places = evenly(torch.tensor([len(points)]), MOST_PIXELS)[0].numpy()
    looked_at, means = _search(points[places], bandwidth)
    if len(places) == len(points):
        return looked_at
    found = np.full(len(points), -1)
    for start in range(0, len(points), PIXELS_AT_ONCE):
        some = points[start : start + PIXELS_AT_ONCE]
        distance_sq = (some**2).sum(1)[:, None] + (means**2).sum(1) - 2 * some @ means.T
        nearest = distance_sq.argmin(1)
        near = np.take_along_axis(distance_sq, nearest[:, None], 1)[:, 0] <= bandwidth**2
        found[start : start + PIXELS_AT_ONCE] = np.where(near, nearest, -1)
    # Of one whose pixels are all nearer to others nothing is left: ids have no gaps.
    found[found >= 0] = np.unique(found[found >= 0], return_inverse=True)[1]
    return found


def _search(points: np.ndarray, bandwidth: float) -> tuple[np.ndarray, np.ndarray]:
    """Ids (P,) of points (P, D), and the mean (N, D) of each ball."""
    ids, free, looked_at = np.full(len(points), -1), np.arange(len(points)), 0
    means: list[np.ndarray] = []
    while len(free) and len(means) < MOST_ROUNDS and looked_at < MOST_DISTANCES:
        here = points[free]
        inside = _within(here, here[0], bandwidth)
        for _ in range(STEPS):
            looked_at += len(here)
            moved = _within(here, here[inside].mean(0), bandwidth)
            if not moved.any() or (moved == inside).all():
                break
            inside = moved
        ids[free[inside]] = len(means)
        means.append(here[inside].mean(0))
        free = free[~inside]
    return ids, np.stack(means)


def _within(points: np.ndarray, center: np.ndarray, radius: float) -> np.ndarray:
    return ((points - center) ** 2).sum(1) <= radius**2
