"""Semi-convolutional operators (Novotny et al. 2018, arXiv 1807.10712).

    Psi_u   Phi_u + (u_x, u_y, 0, ...): the output of the network, with the position added
    pull    1/K sum_k 1/N_k sum_u |Psi_u - mean of Psi over instance k|     no square, no push
    K(u,v)  exp(-|Psi_u - Psi_v| / sigma), the steered bilateral kernel, Laplacian
    total   pull + 1 semantic

Nothing pushes instances apart: the positions do. The paper has this pull, the length and not its
square, of each instance; here it is their mean. The first two of D = 8 dimensions, as in the paper,
are steered by the position, the others know of appearance alone. Positions are in units of 32 px,
so that outputs of order one can move a pixel across an object. The classes are a softmax of the
same network. sigma is learned in the paper, with the mask of Mask R-CNN; here it is a setting.

Grouping: pixels of a class whose kernel is above 1/2 are neighbours, and DBSCAN joins them. Of the
paper's own groupings only k-means with the true number of instances, on synthetic images, could be
read. DBSCAN sees the occupied cells of a grid, a quarter of that distance wide, each with the
number of its pixels, since 300,000 equal points have 10^11 pairs. Before the network has learned to
collapse instances, their pixels scatter over as many cells, and the pairs are as many again. So of
more than ``MOST_CELLS`` cells, or about ``MOST_PAIRS`` neighbours, it sees those of an even part of
the pixels; then every other cell goes to the nearest one in a cluster, if that is within the
distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from torch import Tensor

from spatialembed.baselines.contract import (
    Range,
    as_instances,
    bins_of,
    class_probabilities,
    evenly,
    images_of,
    mean_terms,
    norm,
    semantic_term,
    within_classes,
)
from spatialembed.errors import require
from spatialembed.method.geometry import coordinates
from spatialembed.method.instance_term import Truth
from spatialembed.types import UNIT, Instances, Target

TITLE = "semi-convolutional (Novotny 2018)"
DIMENSIONS = 8
SCALE_PX = 32.0
"""Length of 1 in the embedding."""
MOST_CELLS = 1 << 16
MOST_PAIRS = 1 << 23
"""Neighbours that DBSCAN lists, all together: one to two seconds, 70 MB."""
PROBES = 1024


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    sigma: float = 0.1
    """Width of the kernel, in units of 32 px."""
    core: float = 4
    """Pixels that a cell of the grid must have around it to be in the middle of an instance."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {"sigma": Range(0.02, 0.5, log=True), "core": Range(1, 30, log=True)}


class SemiConvolutionalTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    pull: Tensor
    semantic: Tensor

    def total(self) -> Tensor:
        """Both with weight 1."""
        return self.pull + self.semantic


def channels(num_classes: int) -> tuple[int, int]:
    """An embedding of 8 dimensions; background and classes."""
    return DIMENSIONS, 1 + num_classes


def embedding(maps: Tensor) -> Tensor:
    """Psi (8, H, W) of maps (C, H, W): the position joins the first two dimensions."""
    position = UNIT / SCALE_PX * coordinates(maps.shape[-2], maps.shape[-1], maps)
    return torch.cat((maps[:2] + position, maps[2:DIMENSIONS]))


def loss(maps: Tensor, targets: Sequence[Target]) -> SemiConvolutionalTerms:
    """Terms of maps (B, 8 + 1 + classes, H, W) and B truths."""
    return mean_terms(_image_terms(own, target) for own, target in images_of(maps, targets))


def _image_terms(maps: Tensor, target: Target) -> SemiConvolutionalTerms:
    truth = Truth.of(target)
    own = embedding(maps).flatten(1)[:, truth.pixels]  # (D, M)
    away = norm(own - truth.mean(own)[:, truth.instance])  # (M,)
    pull = truth.mean_of_means(away) + 0 * maps[:DIMENSIONS].sum()
    return SemiConvolutionalTerms(pull, semantic_term(maps[DIMENSIONS:], target))


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (8 + 1 + classes, H, W). Raises SpatialEmbedError ``missing_extra``."""
    probabilities = class_probabilities(maps[DIMENSIONS:])
    points = embedding(maps.detach().float().cpu()).flatten(1).T.numpy()  # (P, D)

    def assign(pixels: np.ndarray, _: int) -> np.ndarray:
        return density_clusters(points[pixels], settings)

    labels = within_classes(probabilities, assign)
    return as_instances(labels, probabilities, settings.min_pixels)


def density_clusters(points: np.ndarray, settings: Settings) -> np.ndarray:
    """Ids (P,) from 0 of points (P, D), -1 for those of no cluster."""
    require("sklearn", "baselines", "the grouping of semi-convolutional embeddings")
    from sklearn.cluster import DBSCAN

    distance = settings.sigma * math.log(2)  # the kernel is 1/2 there
    _, which, counts = bins_of(np.floor(points / (distance / 4)).astype(np.int64))
    means = np.stack([np.bincount(which, axis) for axis in points.T], axis=1) / counts[:, None]
    seen, weight, core = _looked_at(means, which, counts, distance, max(1, round(settings.core)))
    # In eight dimensions balls prune better than boxes, which are the default.
    clusters = DBSCAN(eps=distance, min_samples=core, algorithm="ball_tree")
    found = clusters.fit_predict(means[seen], sample_weight=weight)
    if len(seen) == len(means):
        return found[which]
    ids = np.append(found[found >= 0], -1)  # the last one: no cluster is near
    _, nearest = KDTree(means[seen][found >= 0]).query(means, distance_upper_bound=distance)
    return ids[nearest][which]


def _looked_at(
    means: np.ndarray, which: np.ndarray, counts: np.ndarray, distance: float, core: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Cells (S,) that DBSCAN sees, of (N,), the pixels in each, and how many make a core.

    All of them where that is quick; else those of every second, fourth, ... pixel.
    """
    seen, weight, pixels = np.arange(len(means)), counts, len(which)
    while len(seen) > MOST_CELLS or _pairs(means[seen], distance) > MOST_PAIRS:
        pixels //= 2
        weight = np.bincount(which[_even(len(which), pixels)], minlength=len(means))
        seen = np.flatnonzero(weight)
        weight = weight[seen]
    if pixels == len(which) or core == 1:
        return seen, weight, core
    return seen, weight, max(2, round(core * pixels / len(which)))  # one pixel is no core


def _pairs(points: np.ndarray, distance: float) -> float:
    """About how many pairs of points (N, D) are that near, by those among an even sample."""
    some = points[_even(len(points), PROBES)]
    near = np.count_nonzero(cdist(some, some, "sqeuclidean") <= distance**2) - len(some)
    return near / max(len(some) * (len(some) - 1), 1) * len(points) ** 2


def _even(count: int, most: int) -> np.ndarray:
    return evenly(torch.tensor([count]), most)[0].numpy()
