"""Proposal-free network (Liang et al. 2015, arXiv 1509.02636): boxes of pixels, and how many.

    location  mean over the pixels of instances of smooth-L1 (l_i - l*), summed over six numbers:
              x and y of the middle, the upper left and the lower right corner of the box of the
              instance that the pixel belongs to, in cells of ``CELL`` px
    number    mean over classes of (N_c - N*_c)^2, N*_c the instances of the class
    total     1 location + 0.01 number + 1 semantic

The paper divides locations by the size of the image and gives the network maps of the coordinates.
Here it predicts where the box lies as seen from the pixel, and the pixel's own place is added: the
same, but independent of the size, so that it learns from crops. Its numbers come from the whole
image at once, ours are sums over the image of one output a class, softplus, in objects a square
cell, for the same reason. An object that a crop cuts counts as one. The weight of the number is
open in what could be read of the paper; 0.01 lets 10 objects too many weigh like one cell.

Grouping: the pixels of a class are clustered by their six numbers into N_c clusters. The paper
takes spectral clustering and says that any other would do; of two million pixels it cannot be had,
so this is k-means (scikit-learn), started by k-means++ and fitted to the fullest bins of 1 px; each
pixel goes to the nearest of its centres.
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
    MOST_ROUNDS,
    Range,
    as_instances,
    bins_of,
    class_probabilities,
    images_of,
    mean_terms,
    semantic_term,
    within_classes,
)
from spatialembed.errors import require
from spatialembed.method.instance_term import Truth
from spatialembed.types import Instances, Target

TITLE = "proposal-free network (Liang 2015)"
CELL = 32
"""px of the unit of locations: errors of small objects lie near its bend at 1."""
LOCATION = 6
NUMBER_WEIGHT = 0.01
MOST_SAMPLES = 20_000
"""Bins that k-means is fitted to."""
ROUNDS = 30
"""Of k-means at most; an untrained network asks for 2,000 clusters."""


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    number: float = 1.0
    """What the predicted number of instances is multiplied by."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {"number": Range(0.5, 2.0, log=True)}


class ProposalFreeTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    location: Tensor
    number: Tensor
    semantic: Tensor

    def total(self) -> Tensor:
        """With the weights above."""
        return self.location + NUMBER_WEIGHT * self.number + self.semantic


def channels(num_classes: int) -> tuple[int, int]:
    """Six numbers of the box and the density of each class; background and classes."""
    return LOCATION + num_classes, 1 + num_classes


def loss(maps: Tensor, targets: Sequence[Target]) -> ProposalFreeTerms:
    """Terms of maps (B, 6 + classes + 1 + classes, H, W) and B truths."""
    return mean_terms(_image_terms(own, target) for own, target in images_of(maps, targets))


def _image_terms(maps: Tensor, target: Target) -> ProposalFreeTerms:
    location, density, semantic = parts(maps)
    truth = Truth.of(target)
    found = _absolute(location).flatten(1)[:, truth.pixels]  # (6, M)
    goal = _boxes(truth, maps.shape[-1])[:, truth.instance].to(found.dtype)
    away = F.smooth_l1_loss(found / CELL, goal / CELL, reduction="sum")
    number = F.softplus(density.flatten(1)[:, truth.valid]).sum(1) / CELL**2  # (classes,)
    wanted = torch.bincount(truth.classes, minlength=len(density)).to(number.dtype)
    return ProposalFreeTerms(
        away / max(len(truth.pixels), 1),
        (number - wanted).square().mean(),
        semantic_term(semantic, target),
    )


def parts(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Location (6, H, W), density (classes, H, W), semantic (1 + classes, H, W) of the maps."""
    classes = (len(maps) - LOCATION - 1) // 2
    location, density, semantic = maps.split((LOCATION, classes, 1 + classes))
    return location, density, semantic


def _absolute(location: Tensor) -> Tensor:
    """(6, H, W) px in the image, three times x, y; of locations as seen from each pixel, in cells.

    A pixel covers [x, x + 1), a box ends where its last pixel ends.
    """
    height, width = location.shape[1:]
    y = torch.arange(height, dtype=location.dtype, device=location.device) + 0.5
    x = torch.arange(width, dtype=location.dtype, device=location.device) + 0.5
    here = torch.stack((x.expand(height, width), y[:, None].expand(height, width)))
    return location * CELL + here.repeat(3, 1, 1)


def _boxes(truth: Truth, width: int) -> Tensor:
    """(6, K) px: x and y of the middle, the upper left and the lower right of each instance."""
    place = torch.stack((truth.pixels % width, truth.pixels // width))  # (2, M)
    index = truth.instance.expand(2, -1)
    blank = place.new_zeros(2, len(truth))
    low = blank.scatter_reduce(1, index, place, "amin", include_self=False)
    high = blank.scatter_reduce(1, index, place, "amax", include_self=False) + 1
    return torch.cat(((low + high) / 2, low, high))


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (6 + classes + 1 + classes, H, W): k-means within each class."""
    location, density, semantic = parts(maps.detach().float())
    probabilities = class_probabilities(semantic)
    points = _absolute(location).flatten(1).T.cpu().numpy()  # (P, 6)
    numbers = F.softplus(density).sum((1, 2)).cpu().numpy() / CELL**2 * settings.number

    def assign(pixels: np.ndarray, c: int) -> np.ndarray:
        return clustered(points[pixels], round(float(min(numbers[c], MOST_ROUNDS))))

    labels = within_classes(probabilities, assign)
    return as_instances(labels, probabilities, settings.min_pixels)


def clustered(points: np.ndarray, number: int) -> np.ndarray:
    """Ids (P,) from 0 without gaps of points (P, D) px, in that many clusters, one at least."""
    require("sklearn", "baselines", "k-means")
    from sklearn.cluster import KMeans

    whole = np.rint(points).astype(np.int64)
    first, kind, counts = bins_of(whole)
    bins = whole[first].astype(np.float32)
    fullest = np.argsort(-counts, kind="stable")[:MOST_SAMPLES]
    number = min(max(number, 1), len(fullest))
    means = KMeans(number, n_init=1, max_iter=ROUNDS, random_state=0)
    means.fit(bins[fullest], sample_weight=counts[fullest])
    nearest = means.predict(bins)[kind]
    return np.unique(nearest, return_inverse=True)[1].ravel()
