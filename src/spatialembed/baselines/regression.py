"""Regression of the vector to the centre (Neven et al. 2019, eq. 1): where that paper starts.

    regression   1/K sum_k 1/N_k sum_i |e_i - C_k|,   e_i = x_i + o_i, C_k the centroid

The distance itself, not its square: so eq. 1 stands, as sum_i |o_i - (C_k - x_i)|, in the notes on
the paper by L. Zhang (leijiezhang001.github.io), where the square of other centre regressions is
not, and in a second summary, which has the squares of all later equations. So it is the hinge, the
next step of that paper, with a margin of 0. The paper sums over pixels; here, as in its later
losses, each instance counts the same.
Lengths are in units of 32 px, so that outputs are of order one at first; the classes are a softmax
with weight 1. The paper does not say how regressed centres are grouped but that the pixels must be
assigned to centres that are found by clustering. Here the embeddings vote, as in a Hough
transform: peaks of their histogram, smoothed by a Gaussian, are centres, and a pixel belongs to
the nearest one of its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree
from skimage.feature import peak_local_max
from torch import Tensor

from spatialembed.baselines.contract import (
    Range,
    as_instances,
    class_probabilities,
    images_of,
    mean_terms,
    norm,
    semantic_term,
    within_classes,
)
from spatialembed.method.geometry import coordinates
from spatialembed.method.instance_term import Truth
from spatialembed.types import UNIT, Instances, Target

TITLE = "regression to the centre (Neven 2019, eq. 1)"
SCALE_PX = 32.0
"""Length of an offset of 1."""


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    spread_px: float = 2.0
    """Standard deviation of the Gaussian that smooths the votes."""
    votes: float = 5.0
    """Least votes at a peak, in the pixels whose votes fall onto it."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {"spread_px": Range(0.5, 6, log=True), "votes": Range(1, 60, log=True)}


class RegressionTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    regression: Tensor
    semantic: Tensor

    def total(self) -> Tensor:
        """Both with weight 1."""
        return self.regression + self.semantic


def channels(num_classes: int) -> tuple[int, int]:
    """Offset (x, y); background and classes."""
    return 2, 1 + num_classes


def embedding(maps: Tensor) -> Tensor:
    """Where pixels point, (2, H, W) (x, y) in units of 32 px, of maps (C, H, W)."""
    return maps[:2] + UNIT / SCALE_PX * coordinates(maps.shape[-2], maps.shape[-1], maps)


def loss(maps: Tensor, targets: Sequence[Target]) -> RegressionTerms:
    """Terms of maps (B, 2 + 1 + classes, H, W) and B truths."""
    return mean_terms(_image_terms(own, target) for own, target in images_of(maps, targets))


def _image_terms(maps: Tensor, target: Target) -> RegressionTerms:
    truth = Truth.of(target)
    position = embedding(torch.zeros_like(maps)).flatten(1)[:, truth.pixels]  # (2, M)
    centers = truth.mean(position)  # (2, K)
    own = embedding(maps).flatten(1)[:, truth.pixels]
    away = norm(own - centers[:, truth.instance])  # (M,)
    regression = truth.mean_of_means(away) + 0 * maps.sum()
    return RegressionTerms(regression, semantic_term(maps[2:], target))


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (2 + 1 + classes, H, W): votes for centres, class by class."""
    probabilities = class_probabilities(maps[2:])
    height, width = maps.shape[-2:]
    points = SCALE_PX * embedding(maps.detach().float().cpu()).flatten(1).numpy()  # (2, P) px

    def assign(pixels: np.ndarray, _: int) -> np.ndarray:
        peaks = _peaks(points[:, pixels], (height, width), settings)  # (N, 2) (x, y)
        if not len(peaks):
            return np.full(len(pixels), -1)
        return KDTree(peaks).query(points[:, pixels].T)[1]

    labels = within_classes(probabilities, assign)
    return as_instances(labels, probabilities, settings.min_pixels)


def _peaks(points: np.ndarray, size_hw: tuple[int, int], settings: Settings) -> np.ndarray:
    """Centres (N, 2) that points (2, P) vote for, (x, y) px; votes outside do not count."""
    x, y = np.rint(points).astype(np.int64)
    inside = (x >= 0) & (x < size_hw[1]) & (y >= 0) & (y < size_hw[0])
    linear = y[inside] * size_hw[1] + x[inside]
    votes = np.bincount(linear, minlength=size_hw[0] * size_hw[1]).reshape(size_hw).astype(float)
    sigma = settings.spread_px
    # As many as lie on the peak itself, if all lay there: the Gaussian has 1 at its middle.
    smooth = gaussian_filter(votes, sigma, mode="constant") * (2 * np.pi * sigma**2)
    distance = max(1, round(2 * sigma))
    found = peak_local_max(
        smooth, min_distance=distance, threshold_abs=settings.votes, exclude_border=False
    )
    return found[:, ::-1].astype(float)
