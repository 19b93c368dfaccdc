"""Affinities at several ranges, merged as a graph (Liu et al. 2018, GMIS, arXiv 1811.10870).

    pair        a pixel and its neighbour d = 1, 2, 4, ... 64 px away, along a row, a column or a
                diagonal; affinity a = sigmoid of one output, the chance that both are of one
                instance
    attraction  mean of -log a over the pairs within an instance
    repulsion   mean of -log (1 - a) over the pairs of two instances, or of one and background
    total       1 attraction + 1 repulsion + 1 semantic

A pair of two pixels of background is not counted. The paper predicts each pair from both of its
ends, 8 neighbours at 7 distances; one number says the same here, so that there are 28 outputs
instead of 56. It balances the two kinds of pairs; here each has a mean of its own and weight 1.

Grouping is a greedy merge of the graph within each class, the strongest edge first. The paper has
affinities of merged edges averaged and stops at a threshold; here that is a mutex watershed (Wolf
et al. 2018), which needs neither: an affinity above ``even`` attracts, one below it keeps apart for
good, and of two that disagree the stronger one, which comes first, is right. Strength is the
distance to ``even``, as a share of that from there to 0 or 1. As in the paper, parts of an instance
that do not touch are joined by the pairs across the gap.

In noise that mostly repels nearly every edge adds a pair of segments that exclude each other, and
there are 28 edges a pixel. So where a class has more than ``MOST_EDGES``, only every second, third,
... of the pairs from 2 px on is looked at, of all offsets alike (Wolf et al. thin theirs too); the
pairs of neighbours all stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spatialembed.baselines.contract import (
    Range,
    as_instances,
    class_probabilities,
    images_of,
    mean_terms,
    semantic_term,
    within_classes,
)
from spatialembed.types import Instances, Target

TITLE = "affinities, merged (Liu 2018)"
DISTANCES = (1, 2, 4, 8, 16, 32, 64)
OFFSETS = tuple((y * d, x * d) for d in DISTANCES for y, x in ((0, 1), (1, -1), (1, 0), (1, 1)))
"""(y, x) px from a pixel to the neighbour that an output is about."""
MOST_EDGES = 1 << 22
"""Of a class, or twice the pairs of neighbours, if these are more."""


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    even: float = 0.5
    """Affinity, in (0, 1), at which an edge neither attracts nor repels."""
    reach: float = 64.0
    """Pairs farther apart than this, px along an axis, repel but do not attract."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {"even": Range(0.3, 0.9), "reach": Range(1.0, 64.0, log=True)}


class AffinityTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    attraction: Tensor
    repulsion: Tensor
    semantic: Tensor

    def total(self) -> Tensor:
        """All with weight 1."""
        return self.attraction + self.repulsion + self.semantic


def channels(num_classes: int) -> tuple[int, int]:
    """An affinity for each of ``OFFSETS``; background and classes."""
    return len(OFFSETS), 1 + num_classes


def loss(maps: Tensor, targets: Sequence[Target]) -> AffinityTerms:
    """Terms of maps (B, 28 + 1 + classes, H, W) and B truths."""
    return mean_terms(_image_terms(own, target) for own, target in images_of(maps, targets))


def _image_terms(maps: Tensor, target: Target) -> AffinityTerms:
    logits = maps[: len(OFFSETS)]
    alike, apart = pairs(target)  # (28, H, W)
    return AffinityTerms(
        F.softplus(-logits).where(alike, 0).sum() / alike.sum().clamp_min(1),
        F.softplus(logits).where(apart, 0).sum() / apart.sum().clamp_min(1),
        semantic_term(maps[len(OFFSETS) :], target),
    )


def pairs(target: Target) -> tuple[Tensor, Tensor]:
    """Two masks (28, H, W) bool: the pairs within an instance, and those of which one is parted.

    A pair stands at its first pixel. One that leaves the image or touches an ignored pixel is in
    neither, like one of background alone.
    """
    labels = target.labels.long().masked_fill(target.ignore, -1)
    height, width = labels.shape
    room = DISTANCES[-1]
    padded = F.pad(labels, (room,) * 4, value=-1)
    others = torch.stack(
        [padded[room + y :, room + x :][:height, :width] for y, x in OFFSETS]
    )  # (28, H, W)
    valid = (labels >= 0) & (others >= 0)
    alike = valid & (others == labels) & (labels > 0)
    return alike, valid & (others != labels)


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (28 + 1 + classes, H, W): a greedy merge within each class."""
    from spatialembed.baselines.graph_merge import merge  # numba

    probabilities = class_probabilities(maps[len(OFFSETS) :])
    affinities = maps[: len(OFFSETS)].detach().float().sigmoid().cpu().numpy()

    def assign(pixels: np.ndarray, _: int) -> np.ndarray:
        first, second, weight = _edges(affinities, pixels, settings)
        return merge(first, second, weight, len(pixels))

    labels = within_classes(probabilities, assign)
    return as_instances(labels, probabilities, settings.min_pixels)


def _edges(
    affinities: np.ndarray, pixels: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs among pixels (P,): both ends (E,) in [0, P), and weights (E,) in [-1, 1]."""
    height, width = affinities.shape[1:]
    node = np.full((height, width), -1, np.int32)
    node.ravel()[pixels] = np.arange(len(pixels), dtype=np.int32)
    near = 4 * len(pixels)
    thinned = -(-(len(OFFSETS) - 4) * len(pixels) // max(MOST_EDGES - near, near))
    ends, weights = [], []
    for i, ((y, x), affinity) in enumerate(zip(OFFSETS, affinities, strict=True)):
        if y >= height or abs(x) >= width:
            continue
        left, right = max(-x, 0), width - max(x, 0)
        here, there = node[: height - y, left:right], node[y:, left + x : right + x]
        both = (here >= 0) & (there >= 0)
        step = thinned if max(y, abs(x)) > 1 else 1
        part = slice(i % step, None, step)
        weight = _weight(affinity[: height - y, left:right][both][part], settings.even)
        far = max(y, abs(x)) > settings.reach
        weights.append(np.minimum(weight, 0) if far else weight)
        ends.append(np.stack((here[both][part], there[both][part])))
    if not ends:
        return np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32)
    first, second = np.concatenate(ends, axis=1)
    return first, second, np.concatenate(weights)


def _weight(affinity: np.ndarray, even: float) -> np.ndarray:
    """-1 at affinity 0, 0 at ``even``, 1 at affinity 1, straight in between."""
    above = affinity - even
    return above / np.where(above > 0, 1 - even, even)
