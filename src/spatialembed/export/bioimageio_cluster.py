"""The clustering of spatialembed with numpy alone, as a postprocessing of bioimage.io.

The same rounds as ``spatialembed.method.cluster`` (Neven et al. 2019), to the last bit, in time
that grows with objects x pixels; this file is complete in itself and travels in the package of a
model. A postprocessing keeps the shape of its tensor, so what is found replaces the maps::

    channel   the network's maps            after the clustering, 0 where no object is
    0, 1      offset x, y, 1024 px a unit   label 1..N by descending score; score of its object
    2, 3      log-precision x, y, a tenth   class of its object 0..C-1; its expected IoU
    4..       seed of each of C classes     the same
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


class Clustering:
    """From the maps of a batch to its objects; the settings are those of the model's file.

    foreground: a pixel takes part if its seed is above this. start: a pixel can start an object
    if its seed is at least this. membership: a pixel belongs to a seed if its phi is above this.
    min_pixels: an object has more members. min_free: more than this share of them is free.
    max_instances: of a class and of all together; None: no limit. mean_seeds, ious: (K,) the map
    from mean seed to expected IoU; empty: none is known.
    """

    def __init__(
        self,
        foreground: float,
        start: float,
        membership: float,
        min_pixels: int,
        min_free: float,
        max_instances: int | None = None,
        mean_seeds: Sequence[float] = (),
        ious: Sequence[float] = (),
    ) -> None:
        self.foreground, self.start = np.float32(foreground), np.float32(start)
        self.reach = np.float32(-math.log(membership))
        self.min_pixels, self.min_free = min_pixels, min_free
        self.max_instances = max_instances
        self.mean_seeds, self.ious = mean_seeds, ious

    def __call__(self, *tensors: np.ndarray) -> np.ndarray:
        """(B, 4 + C, H, W) float32 maps -> the same shape, see above."""
        return np.stack([self.objects(maps) for maps in tensors[0]])

    def objects(self, maps: np.ndarray) -> np.ndarray:
        """Maps (4 + C, H, W) float32 of one image -> the same shape."""
        _, height, width = maps.shape
        across = np.arange(width, dtype=np.float32) / np.float32(1024)
        down = np.arange(height, dtype=np.float32) / np.float32(1024)
        x, y = (maps[0] + across).ravel(), (maps[1] + down[:, None]).ravel()
        raw, seeds = maps[2:4].reshape(2, -1), maps[4:].reshape(len(maps) - 4, -1)
        precision = np.exp(np.clip(10.0 * raw.astype(np.float64), -40, 40)).astype(np.float32)
        proposals = [
            (score, c, members)
            for c, seed in enumerate(seeds)
            for score, members in self.rounds(x, y, precision, seed)
        ]
        proposals.sort(key=lambda proposal: -proposal[0])  # ties: lower class, then order found
        owner = np.zeros(height * width, np.int64)
        for i in reversed(range(len(proposals))):  # the best comes last, over all others
            owner[proposals[i][2]] = i + 1
        kept = np.unique(owner[owner > 0])[: self.max_instances]
        label = np.zeros(len(proposals) + 1, np.int64)
        label[kept] = np.arange(1, len(kept) + 1)
        labels = label[owner]
        scores = np.array([0.0, *(proposals[i - 1][0] for i in kept)], np.float32)
        classes = np.array([0, *(proposals[i - 1][1] for i in kept)], np.int64)
        expected = self.expected_ious(labels, classes, seeds)
        found = [labels, scores[labels], classes[labels], expected[labels], *seeds]
        return np.stack(found).astype(np.float32).reshape(maps.shape)

    def rounds(
        self, x: np.ndarray, y: np.ndarray, precision: np.ndarray, seed: np.ndarray
    ) -> list[tuple[float, np.ndarray]]:
        """Score and pixels of each object of one class, in the order found.

        x, y, seed: (P,) float32. precision: (2, P).
        """
        pixel = np.flatnonzero(seed > self.foreground)
        x, y, precision, seed = x[pixel], y[pixel], precision[:, pixel], seed[pixel]
        free = np.ones(len(pixel), bool)
        found: list[tuple[float, np.ndarray]] = []
        for k in np.argsort(-seed, kind="stable"):  # the first of equal ones first
            if seed[k] < self.start:
                break
            if not free[k]:
                continue
            if len(found) == self.max_instances:
                break
            dx, dy = x - x[k], y - y[k]
            px, py = precision[:, k]
            member = px * dx * dx + py * dy * dy < self.reach
            n, n_free = np.count_nonzero(member), np.count_nonzero(member & free)
            if n > self.min_pixels and n_free > self.min_free * n:
                found.append((float(seed[k]), pixel[member]))
            free &= ~member
        return found

    def expected_ious(
        self, labels: np.ndarray, classes: np.ndarray, seeds: np.ndarray
    ) -> np.ndarray:
        """Expected IoU (N + 1,) by label, 0 of the background and where none is known."""
        values = np.zeros(len(classes))
        if len(self.mean_seeds) and len(classes) > 1:
            pixel = np.flatnonzero(labels)
            owner = labels[pixel]
            of_class = seeds[classes[owner], pixel]
            sums = np.bincount(owner, of_class, minlength=len(classes))
            counts = np.bincount(owner, minlength=len(classes))
            values[1:] = np.interp(sums[1:] / counts[1:], self.mean_seeds, self.ious)
        return values
