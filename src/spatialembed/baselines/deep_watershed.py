"""Deep watershed transform (Bai and Urtasun 2017, arXiv 1611.08303).

    D          distance in px of a pixel to the nearest one outside its instance: 1 at its rim
    direction  angle^2 between the predicted vector and grad D, where that is not 0
    energy     cross entropy of 16 levels: level 0 is D <= 2 px, as in the paper, the others are
               the steps of ``EDGES``
    weight     of a pixel of an instance of A pixels 1 / sqrt(A), in the energy times c(level);
               both terms are weighted means over the pixels of instances
    total      1 direction + 1 energy + 1 semantic

Open in the paper: the widths of the levels, which here grow with the distance; and c, larger for
low levels, where an error joins two objects: here 2 below ``LOW`` and 1 from there on. The rim of
the image and ignored pixels are outside of every instance.

The paper trains one network for directions and a second one that makes energies of them. Here both
come from the decoder that all methods of this wing share, so that methods are compared and not
networks: directions only help that decoder to learn where instances end.

Grouping cuts at one level and grows back, within each class: connected parts (4 neighbours) from
that level on are the cores. The paper dilates them by as much as the cut took. Here every other
pixel of the class first walks up its direction until it meets a core, no farther than that, which
is exact where objects touch; a watershed on the levels shares out the rest. A part of the class
that holds no core, since all of it is thin, is an instance of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
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

TITLE = "deep watershed (Bai 2017)"
EDGES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 29, 35)
"""Level k from 1 on is EDGES[k - 1] < D <= EDGES[k], px."""
LEVELS = len(EDGES) + 1
LOW = 4
STEP = 0.5
"""px of a step along the directions."""


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    cut: float = 1.0
    """Level from which on pixels are core, rounded: 1 to 15 (the paper: 1 or 2, by class)."""
    core: float = 0.5
    """Probability of these levels, in (0, 1), above which a pixel is core."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {"cut": Range(0.5, 4.5), "core": Range(0.2, 0.8)}


class WatershedTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    direction: Tensor
    energy: Tensor
    semantic: Tensor

    def total(self) -> Tensor:
        """All with weight 1."""
        return self.direction + self.energy + self.semantic


def channels(num_classes: int) -> tuple[int, int]:
    """Direction (x, y) and 16 levels; background and classes."""
    return 2 + LEVELS, 1 + num_classes


def loss(maps: Tensor, targets: Sequence[Target]) -> WatershedTerms:
    """Terms of maps (B, 2 + 16 + 1 + classes, H, W) and B truths."""
    return mean_terms(_image_terms(own, target) for own, target in images_of(maps, targets))


def _image_terms(maps: Tensor, target: Target) -> WatershedTerms:
    goal, level, area = (t.to(maps.device) for t in landscape(target))
    goal = goal.to(maps.dtype)
    weight = area.to(maps.dtype).clamp_min(1).rsqrt() * (area > 0)  # (H, W)
    sloped = (goal != 0).any(0) & (area > 0)
    x, y = maps[:2]
    along, across = x * goal[0] + y * goal[1], x * goal[1] - y * goal[0]  # (H, W)
    # Where the prediction is 0, or its square is, the angle has no slope.
    sloped &= along.square() + across.square() > torch.finfo(maps.dtype).tiny
    angle = torch.atan2(across.where(sloped, 0), along.where(sloped, 1))
    entropy = F.cross_entropy(maps[None, 2 : 2 + LEVELS], level[None], reduction="none")[0]
    return WatershedTerms(
        _weighted_mean(angle.square(), weight * sloped),
        _weighted_mean(entropy, weight * (1 + (level < LOW))),
        semantic_term(maps[2 + LEVELS :], target),
    )


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    total = weight.sum()
    return (values * weight).sum() / total.where(total > 0, 1)


def landscape(target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Directions (2, H, W) float64, (x, y) of length 1 or 0; levels (H, W) int64; areas (H, W).

    Areas, int64, are those of the instance of each pixel, 0 outside of instances.
    """
    labels = target.labels.masked_fill(target.ignore, 0).cpu().numpy()
    padded = np.pad(labels, 1)  # an instance ends at the rim of the image
    distance = np.zeros(padded.shape)
    slope = np.zeros((2, *padded.shape))
    for k, place in enumerate(ndimage.find_objects(padded), 1):
        if place is None:
            continue
        window = tuple(slice(s.start - 1, s.stop + 1) for s in place)
        own = padded[window] == k
        inside = ndimage.distance_transform_edt(own)
        distance[window][own] = inside[own]
        dy, dx = np.gradient(inside)
        slope[0][window][own], slope[1][window][own] = dx[own], dy[own]
    length = np.hypot(*slope)
    slope = slope / np.where(length > 0, length, 1)
    area = np.bincount(labels.ravel())
    area[0] = 0
    inner = (slice(1, -1), slice(1, -1))
    level = np.searchsorted(EDGES, distance[inner], side="left")
    return (
        torch.from_numpy(slope[:, 1:-1, 1:-1].copy()),
        torch.from_numpy(level),
        torch.from_numpy(area[labels]),
    )


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (2 + 16 + 1 + classes, H, W): cut and grow within each class."""
    probabilities = class_probabilities(maps[2 + LEVELS :])
    levels = maps[2 : 2 + LEVELS].detach().float().softmax(0).cpu().numpy()
    uphill = F.normalize(maps[:2].detach().float(), dim=0).cpu().numpy()
    cut = min(max(round(settings.cut), 1), LEVELS - 1)
    core = levels[cut:].sum(0) > settings.core
    height = levels.argmax(0)

    def assign(pixels: np.ndarray, _: int) -> np.ndarray:
        inside = np.zeros(core.shape, bool)
        inside.ravel()[pixels] = True
        cores, count = ndimage.label(core & inside)
        cores = _grown(cores, inside, height, uphill, EDGES[cut - 1])
        thin, _ = ndimage.label(inside & (cores == 0), np.ones((3, 3)))
        ids = np.where(thin > 0, thin + count, cores).ravel()[pixels] - 1
        return np.unique(ids, return_inverse=True)[1].ravel()

    labels = within_classes(probabilities, assign)
    return as_instances(labels, probabilities, settings.min_pixels)


def _grown(
    cores: np.ndarray, inside: np.ndarray, height: np.ndarray, uphill: np.ndarray, reach: int
) -> np.ndarray:
    """Cores (H, W), 0 elsewhere, grown over ``inside``: up the directions (2, H, W), then flooded.

    reach: px from the rim of an instance to its core.
    """
    from skimage.segmentation import watershed  # 0.3 s

    start = np.stack(np.nonzero(inside & (cores == 0)))  # (2, N) y, x
    place, pixel = start.astype(float), start
    found = np.zeros(start.shape[1], cores.dtype)
    limits = np.array(cores.shape)[:, None] - 1
    for _ in range(round(2 * reach / STEP)):  # in a corner the way is longer than ``reach``
        place = np.clip(place + STEP * uphill[::-1, pixel[0], pixel[1]], 0, limits)
        pixel = np.rint(place).astype(int)
        found = np.where(found > 0, found, cores[pixel[0], pixel[1]])
    grown = cores.copy()
    grown[start[0], start[1]] = found
    return watershed(-height, grown, mask=inside, connectivity=2)
