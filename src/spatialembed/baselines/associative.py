"""Associative embedding (Newell, Huang, Deng 2017, arXiv 1611.05424): a tag of one dimension.

    pull    1/K sum_k 1/N_k sum_i (h_i - m_k)^2                      m_k the mean tag of instance k
    push    1/K^2 sum_{k != l} exp(-(m_k - m_l)^2 / (2 sigma^2))     sigma = 1
    total   pull + push + 1 semantic

The terms of joints in the paper, with all pixels of an instance in place of its joints, and their
mean in place of their sum, since instances have thousands. For instances the paper draws pixels and
sums over their pairs: the mean over all pairs within an instance is twice this pull; its push is
between pixels, this one between mean tags. Instances of all classes push each other. The paper has
k = l in the push: a constant, 1/K, which is left out, so that one instance has a push of 0. sigma
is open in the paper: a unit tag. Its weight of 1e-3 stands against a heat-map loss of another size,
so 1 is taken. Its detection score is a softmax here.

Grouping is that of the paper for instances: peaks of the histogram of the tags, by non-maximum
suppression, and each pixel of the class to the nearest peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from spatialembed.baselines.contract import (
    MOST_ROUNDS,
    Range,
    as_instances,
    class_probabilities,
    images_of,
    mean_terms,
    semantic_term,
    within_classes,
)
from spatialembed.method.instance_term import Truth
from spatialembed.types import Instances, Target

TITLE = "associative embedding (Newell 2017)"
SIGMA = 1.0
BINS = 4
"""Of the histogram on the way from one peak to the nearest that there can be."""
MOST_BINS = 1 << 16


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    separation: float = 0.5
    """Smallest difference of the tags of two instances."""
    min_pixels: int = 0
    """A smaller instance is dropped, and a peak of fewer pixels is none."""


TUNED = {"separation": Range(0.05, 2, log=True)}


class AssociativeTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    pull: Tensor
    push: Tensor
    semantic: Tensor

    def total(self) -> Tensor:
        """All with weight 1."""
        return self.pull + self.push + self.semantic


def channels(num_classes: int) -> tuple[int, int]:
    """A tag; background and classes."""
    return 1, 1 + num_classes


def loss(maps: Tensor, targets: Sequence[Target]) -> AssociativeTerms:
    """Terms of maps (B, 1 + 1 + classes, H, W) and B truths."""
    return mean_terms(_image_terms(own, target) for own, target in images_of(maps, targets))


def _image_terms(maps: Tensor, target: Target) -> AssociativeTerms:
    truth = Truth.of(target)
    tags = maps[0].flatten()[None, truth.pixels]  # (1, M)
    means = truth.mean(tags)  # (1, K)
    away = (tags - means[:, truth.instance]).square()[0]  # (M,)
    near = (-(means - means.T).square() / (2 * SIGMA**2)).exp()  # (K, K), 1 on its diagonal
    attached = 0 * maps[0].sum()
    return AssociativeTerms(
        truth.mean_of_means(away) + attached,
        (near.sum() - len(truth)) / max(len(truth), 1) ** 2 + attached,
        semantic_term(maps[1:], target),
    )


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (1 + 1 + classes, H, W): pixels of similar tags, class by class."""
    probabilities = class_probabilities(maps[1:])
    tags = maps[0].detach().float().cpu().numpy().ravel()

    def assign(pixels: np.ndarray, _: int) -> np.ndarray:
        return nearest_peak(tags[pixels], settings.separation, settings.min_pixels)

    labels = within_classes(probabilities, assign)
    return as_instances(labels, probabilities, settings.min_pixels)


def nearest_peak(tags: np.ndarray, separation: float, least: int) -> np.ndarray:
    """Ids (P,) from 0 of tags (P,): the nearest peak of their histogram, -1 where there is none.

    The highest bin is a peak and silences all within the separation, and so on; a peak is the mean
    of the tags in its bin. One around which fewer than ``least`` tags lie is none.
    """
    low = tags.min()
    width = max(separation / BINS, float(np.ptp(tags)) / MOST_BINS, 1e-12)
    bins = ((tags - low) / width).astype(np.int64)
    votes = np.bincount(bins)
    means = np.bincount(bins, tags) / np.maximum(votes, 1)
    free, peaks = votes.copy(), []
    for _ in range(MOST_ROUNDS):
        top = int(free.argmax())
        if free[top] == 0:
            break
        around = slice(max(top - BINS + 1, 0), top + BINS)
        if free[around].sum() >= least:
            peaks.append(means[top])
        free[around] = 0
    if not peaks:
        return np.full(len(tags), -1)
    peaks_sorted = np.sort(peaks)
    between = (peaks_sorted[1:] + peaks_sorted[:-1]) / 2
    found = np.searchsorted(between, tags)
    return np.unique(found, return_inverse=True)[1]
