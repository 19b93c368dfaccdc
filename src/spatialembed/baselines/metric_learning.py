"""Deep metric learning with seediness (Fathi et al. 2017, arXiv 1703.10277).

    sigma_pq    2 / (1 + exp(|e_p - e_q|^2))                                  of pixels p and q
    similarity  - sum_pq w_pq [same ? log sigma_pq : log(1 - sigma_pq)]       sum of w is 1
    seediness   - sum over t of the mean over p of log C_p,t(y_p,t)
    total       1 similarity + 0.2 seediness

w_pq goes with 1 / (size of p's instance * size of q's), sizes in the sample, over all ordered
pairs, p = q too. The paper also divides by the size of the sample; with weights whose sum is 1 that
would leave next to nothing of the term, so it is not done. log(1 - sigma) ends at |e_p - e_q|^2 =
1e-6, since two instances at one place are infinitely wrong. The weight of the seediness grows from
0 to 0.2 in the paper; here it is 0.2 from the start.

The sample has ten pixels of each instance; the paper draws them, here they stand at even steps, so
that the loss is a function. C_p,t is a softmax over background and classes, one for each threshold
t of .25, .5, .75 and .9: y_p,t is the class of the instance of p if the mask {q: sigma_pq > t} has
an IoU above 0.5 with it, else background. 64 pixels of the background join the sample: pairs of one
with an instance differ, pairs of two are left out (no one asks that the background be one cluster),
and its y is background; the paper leaves this open. The embedding has 64 dimensions.

Grouping: the seediness of a pixel is the largest C over thresholds and classes. The next seed has
the largest log seediness + a log(1 - largest similarity to the seeds so far), a = 0.3; its mask is
that at its threshold, an instance if more than half of it is free. Here no pixel of a mask, kept or
not, is a seed any more, and it ends when no seed is left whose seediness is high enough; the paper
draws a fixed number of seeds.

Each seed is compared with all pixels, which takes minutes of noise. So seeds, and the share of
their masks that is free, come from at most ``MOST_PIXELS`` pixels of an image; every other pixel
then goes to the first instance whose mask it is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spatialembed.baselines.contract import (
    MOST_PIXELS,
    MOST_ROUNDS,
    Range,
    as_instances,
    evenly,
    images_of,
    mean_terms,
)
from spatialembed.method.instance_term import Truth
from spatialembed.types import Instances, Target

TITLE = "deep metric learning (Fathi 2017)"
DIMENSIONS = 64
THRESHOLDS = (0.25, 0.5, 0.75, 0.9)
SAMPLED = 10
BACKGROUND = 64
PAIRS_AT_ONCE = 1 << 24
PIXELS_AT_ONCE = 1 << 14
LEAST_SQ = 1e-6
"""Squared distance of pixels of two instances, at least, in the loss."""
TINY = 1e-9


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    seediness: float = 0.5
    """A pixel can start an instance if its seediness is at least this."""
    diversity: float = 0.3
    """The weight a: how far seeds keep from each other."""
    min_free: float = 0.5
    """More than this share of the mask of a seed must be free."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {
    "seediness": Range(0.2, 0.8),
    "diversity": Range(0.1, 1, log=True),
    "min_free": Range(0.2, 0.8),
}


class MetricTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    similarity: Tensor
    seediness: Tensor

    def total(self) -> Tensor:
        """With the weights of the paper."""
        return self.similarity + 0.2 * self.seediness


def channels(num_classes: int) -> tuple[int, int]:
    """An embedding of 64 dimensions; background and classes for each threshold."""
    return DIMENSIONS, len(THRESHOLDS) * (1 + num_classes)


def reach(threshold: float) -> float:
    """The squared distance at which the similarity is this."""
    return math.log(2 / threshold - 1)


def loss(maps: Tensor, targets: Sequence[Target]) -> MetricTerms:
    """Terms of maps (B, 64 + 4 (1 + classes), H, W) and B truths."""
    return mean_terms(_image_terms(own, target) for own, target in images_of(maps, targets))


def _image_terms(maps: Tensor, target: Target) -> MetricTerms:
    truth = Truth.of(target)
    embedding, logits = maps[:DIMENSIONS].flatten(1), maps[DIMENSIONS:].flatten(1)  # (., P)
    places, instance = evenly(truth.counts, SAMPLED)
    background = (truth.valid & (truth.number < 0)).nonzero()[:, 0]
    others, _ = evenly(torch.tensor([len(background)], device=maps.device), BACKGROUND)
    pixels = torch.cat((truth.pixels[places], background[others]))  # (S,)
    owner = torch.cat((instance, torch.full_like(others, -1)))  # (S,), -1 background
    if not len(pixels):
        return MetricTerms(0 * embedding.sum(), 0 * logits.sum())
    right = _right_classes(embedding.detach(), truth, places, instance)  # (T, S of instances)
    right = torch.cat((right, right.new_zeros(len(THRESHOLDS), len(others))), dim=1)  # (T, S)
    by_threshold = logits[:, pixels].unflatten(0, (len(THRESHOLDS), -1))  # (T, 1 + classes, S)
    seediness = F.cross_entropy(by_threshold, right, reduction="sum") / len(pixels)
    attached = 0 * maps.sum()
    similarity = _similarity_term(embedding[:, pixels], owner)
    return MetricTerms(similarity + attached, seediness + attached)


def _similarity_term(embedding: Tensor, owner: Tensor) -> Tensor:
    """The weighted cross entropy of all pairs of a sample, embedding (D, S) and owner (S,)."""
    # Not by differences of vectors (D, S, S), 4 GB with 400 instances; not by products, in which
    # distances near 0 lose their digits.
    exactly = "donot_use_mm_for_euclid_dist"
    distance_sq = torch.cdist(embedding.T, embedding.T, compute_mode=exactly).square()  # (S, S)
    same = owner[:, None] == owner
    together = math.log(2) - F.softplus(distance_sq)  # log sigma
    apart = (distance_sq.clamp_min(LEAST_SQ) / 2).tanh().log()  # log(1 - sigma)
    _, which, sizes = owner.unique(return_inverse=True, return_counts=True)
    weight = 1 / (sizes[which][:, None] * sizes[which]).to(embedding.dtype)
    weight = weight * ~(same & (owner < 0))
    chosen = torch.where(same, together, apart)
    return -(weight * chosen).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def _right_classes(embedding: Tensor, truth: Truth, places: Tensor, instance: Tensor) -> Tensor:
    """What the classifier of each threshold should say of sampled pixels, (T, S) int64."""
    seeds = embedding[:, truth.pixels[places]].T  # (S, D)
    inside = torch.zeros(len(THRESHOLDS), len(places), device=embedding.device)
    shared = torch.zeros_like(inside)
    step = max(1, PAIRS_AT_ONCE // max(1, len(places)))  # pixels at once
    for start in range(0, embedding.shape[1], step):
        chunk = slice(start, start + step)
        distance = torch.cdist(seeds, embedding[:, chunk].T)  # (S, P)
        own = truth.number[chunk] == instance[:, None]
        for t, threshold in enumerate(THRESHOLDS):
            mask = (distance < math.sqrt(reach(threshold))) & truth.valid[chunk]
            inside[t] += mask.sum(1)
            shared[t] += (mask & own).sum(1)
    union = inside + truth.counts[instance] - shared
    return torch.where(2 * shared > union, truth.classes[instance] + 1, 0)


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (64 + 4 (1 + classes), H, W), seed by seed."""
    points = maps[:DIMENSIONS].detach().float().cpu().flatten(1).T.numpy()  # (P, D)
    logits = maps[DIMENSIONS:].detach().float().cpu().unflatten(0, (len(THRESHOLDS), -1))
    chances = logits.softmax(1).flatten(2).numpy()  # (T, 1 + classes, P)
    best = chances[:, 1:].max(1).argmax(0)  # (P,)
    own = np.take_along_axis(chances, best[None, None], 0)[0]  # (1 + classes, P)
    seediness = own[1:].max(0)
    reaches = np.array([reach(t) for t in THRESHOLDS])[best]
    places = evenly(torch.tensor([len(points)]), MOST_PIXELS)[0].numpy()
    labels, seeds = _search(points[places], seediness[places], reaches[places], settings)
    if len(places) < len(points):
        labels = _first_mask(points, points[places[seeds]], reaches[places[seeds]])
    probabilities = own.reshape(-1, *maps.shape[-2:])
    return as_instances(labels.reshape(maps.shape[-2:]), probabilities, settings.min_pixels)


def _search(
    points: np.ndarray, seediness: np.ndarray, reaches: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (P,) of points (P, D), and the seed (N,) of each of them, as indices of points.

    reaches: (P,) squared distance at which the mask of each point ends.
    """
    squares = (points**2).sum(1)
    labels, kept = np.zeros(len(points), np.int32), []
    apart = np.ones(len(points))  # 1 - the largest similarity to a seed
    able = seediness >= settings.seediness
    for _ in range(MOST_ROUNDS):
        if not able.any():
            break
        height = np.log(np.maximum(seediness, TINY))
        height += settings.diversity * np.log(np.maximum(apart, TINY))
        seed = int(np.where(able, height, -np.inf).argmax())
        distance_sq = np.maximum(squares + squares[seed] - 2 * (points @ points[seed]), 0)
        apart = np.minimum(apart, np.tanh(distance_sq / 2))  # 1 - sigma
        mask = distance_sq < reaches[seed]
        mask[seed] = True
        able &= ~mask
        free = mask & (labels == 0)
        if free.sum() > settings.min_free * mask.sum():
            kept.append(seed)
            labels[free] = len(kept)
    return labels, np.array(kept, np.int64)


def _first_mask(points: np.ndarray, seeds: np.ndarray, reaches: np.ndarray) -> np.ndarray:
    """Labels (P,) of points (P, D): the first of seeds (N, D) that reaches it, from 1; or 0."""
    labels = np.zeros(len(points), np.int32)
    if not len(seeds):
        return labels
    limits = (seeds**2).sum(1) - reaches  # (N,)
    for start in range(0, len(points), PIXELS_AT_ONCE):
        some = points[start : start + PIXELS_AT_ONCE]
        inside = (some**2).sum(1)[:, None] + limits < 2 * some @ seeds.T  # (P, N)
        labels[start : start + PIXELS_AT_ONCE] = np.where(inside.any(1), inside.argmax(1) + 1, 0)
    return labels
