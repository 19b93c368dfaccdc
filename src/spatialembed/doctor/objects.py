"""Facts about each object of a label image, all objects at once: no loop over objects or pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from spatialembed.data.label_checks import connected_parts
from spatialembed.method.labels import relabel, touching_pairs
from spatialembed.results.measurements import regions

RING_PX = 1.0
"""An object without a pixel this near to its centroid is ring-shaped; a filled one has 0.71."""
CONCENTRIC = 0.5
"""Two centroids nearer than this many radii of the smaller object cannot be separated."""
ODD = 0.01
"""Share of ring-shaped or concentric objects from which on a centroid is the wrong centre."""
NEIGHBOURS = 8
"""Nearest centroids that each object is compared with."""


@dataclass(frozen=True)
class Objects:
    """The K objects of one label image; a radius is that of a disc of the same area."""

    ids: np.ndarray  # (K,) int64 as stored, ascending
    area: np.ndarray  # (K,) int64, px
    centroid_xy: np.ndarray  # (K, 2) float64, px
    box: np.ndarray  # (K, 4) int64, x1 y1 x2 y2 in px, x2 and y2 exclusive
    parts: np.ndarray  # (K,) int64, connected parts (diagonal neighbours are connected)
    outside: np.ndarray  # (K,) int64, px outside the largest part
    ring_shaped: np.ndarray  # (K,) bool: whole, but without a pixel at its centroid: ring, crescent
    touching: np.ndarray  # (K,) bool: has a pixel beside one of another object
    concentric: np.ndarray  # (K,) bool: a centroid of another object is too near
    touching_pairs: int
    concentric_pairs: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def diameter(self) -> np.ndarray:
        """(K,) float64, of the disc of the same area, px."""
        return 2 * np.sqrt(self.area / math.pi)

    @property
    def extent(self) -> np.ndarray:
        """(K,) int64, longer side of the box, px."""
        return np.maximum(self.box[:, 2] - self.box[:, 0], self.box[:, 3] - self.box[:, 1])

    @property
    def reach(self) -> np.ndarray:
        """(K,) float64, largest offset in px, x or y, from a pixel to the centroid."""
        first = self.centroid_xy - self.box[:, :2]
        last = self.box[:, 2:] - 1 - self.centroid_xy
        return np.maximum(first, last).max(axis=1, initial=0)


def describe(labels: np.ndarray) -> Objects:
    """Measure every object of a label image (H, W) of any integer ids, 0 background.

    70,000 objects take no more than their pixels do. Raises SpatialEmbedError ``bad_labels``.
    """
    dense, ids = relabel(labels)
    count = len(ids)
    area, box, centroid, *_ = regions(dense, count)
    ys, xs = np.nonzero(dense)
    owner = dense[ys, xs] - 1
    nearest = np.full(count, np.inf)
    np.minimum.at(nearest, owner, np.hypot(xs - centroid[owner, 0], ys - centroid[owner, 1]))
    part_of, _, largest = connected_parts(dense, count)
    parts = np.bincount(part_of, minlength=count + 1)[1:]
    pairs = touching_pairs(dense)
    touching = np.zeros(count, bool)
    touching[pairs.ravel() - 1] = True
    concentric, concentric_pairs = _concentric(centroid, np.sqrt(area / math.pi))
    return Objects(
        ids=ids,
        area=area,
        centroid_xy=centroid,
        box=box,
        parts=parts,
        outside=area - largest,
        ring_shaped=(parts == 1) & (nearest > RING_PX),
        touching=touching,
        concentric=concentric,
        touching_pairs=len(pairs),
        concentric_pairs=concentric_pairs,
    )


def _concentric(centroid: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, int]:
    """(K,) bool, objects whose centroid nearly is that of another, and how many such pairs.

    The other one is looked for among the nearest only: discs side by side lie two radii apart, so
    within half a radius there is hardly room for more.
    """
    found = np.zeros(len(radius), bool)
    if len(radius) < 2:
        return found, 0
    neighbours = min(NEIGHBOURS + 1, len(radius))  # itself is one of them
    distance, other = cKDTree(centroid).query(centroid, k=neighbours)  # (K, k) both
    own = np.arange(len(radius))[:, None]
    near = distance < CONCENTRIC * np.minimum(radius[own], radius[other])
    i, j = np.nonzero(near & (other != own))
    pairs = np.unique(np.sort(np.stack((i, other[i, j])), axis=0), axis=1)  # (2, pairs)
    found[pairs.ravel()] = True
    return found, pairs.shape[1]
