"""Scoring a network on whole images by the real clustering, and sweeping its thresholds there.

image -> maps, once -> for each foreground, membership, min_pixels: one clustering -> AP at
                       every start                           -> Surface, over all images
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from torch import Tensor

from spatialembed.evaluation.label_metrics import (
    Overlaps,
    best_ious,
    counts_by_class,
    mean_over_images,
    overlaps,
)
from spatialembed.method.calibration import Objects, objects_of
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.method.normalization import network_input
from spatialembed.types import Embeddings, Instances, Normalization, Sample, Target

Engine = Callable[[Tensor], Embeddings]
"""A network ready to run: normalised images (B, 3, H, W) of any size to their maps."""

STARTS = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.875, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98)
FOREGROUNDS = (0.3, 0.4, 0.5, 0.6)
MEMBERSHIPS = (0.3, 0.4, 0.5, 0.6)
MIN_PIXEL_FACTORS = (0.5, 1.0, 1.5, 2.0)
"""Tried values of ``min_pixels``, as multiples of the one before."""


class Grid(NamedTuple):
    """Values to try of each threshold, ascending; see ``starts``."""

    foreground: tuple[float, ...]
    start: tuple[float, ...]
    membership: tuple[float, ...]
    min_pixels: tuple[int, ...]

    @classmethod
    def around(cls, base: ClusterOptions) -> Grid:
        """The usual values and, so that nothing chosen can be worse, those of ``base``."""
        sizes = {round(base.min_pixels * factor) for factor in MIN_PIXEL_FACTORS}
        return cls(
            tuple(sorted({*FOREGROUNDS, base.foreground})),
            tuple(sorted({*STARTS, base.start})),
            tuple(sorted({*MEMBERSHIPS, base.membership})),
            tuple(sorted({*sizes, base.min_pixels})),
        )

    @classmethod
    def of_starts(cls, base: ClusterOptions) -> Grid:
        """The usual starts alone, which cost one clustering together."""
        starts = tuple(sorted({*STARTS, base.start}))
        return cls((base.foreground,), starts, (base.membership,), (base.min_pixels,))

    def cell(self, options: ClusterOptions) -> tuple[int, ...]:
        """Index of these thresholds, (foreground, start, membership, min_pixels)."""
        return tuple(
            values.index(getattr(options, name))
            for name, values in zip(self._fields, self, strict=True)
        )

    def starts(self, f: int, base: ClusterOptions) -> list[int]:
        """Starts tried with a foreground: those at or above it, and the one before in any case.

        Below it all starts are alike: only pixels above ``foreground`` take part.
        """
        low = self.foreground[f]
        return [s for s, value in enumerate(self.start) if value >= low or value == base.start]

    def options(self, cell: Sequence[int], base: ClusterOptions) -> ClusterOptions:
        """``base`` with the thresholds of a cell."""
        f, s, m, p = (tried[i] for tried, i in zip(self, cell, strict=True))
        return replace(base, foreground=f, start=s, membership=m, min_pixels=int(p))


@dataclass(frozen=True, eq=False)
class Surface:
    """AP of I images and C classes at each cell of a grid (F, S, M, P)."""

    grid: Grid
    base: ClusterOptions  # the thresholds before
    ap: np.ndarray  # (I, C, F, S, M, P) float32, mean over IoU .50 to .90; NaN where undefined
    objects: dict[tuple[int, int, int], Objects]  # by (f, m, p): all from the lowest start on

    def mean(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Mean AP (F, S, M, P) over images, then classes, as ``evaluate`` has it; NaN undefined.

        weights (I,): how often each image counts; by default once.
        """
        return mean_over_images(self.ap, weights)

    def best(self, weights: np.ndarray | None = None) -> tuple[int, ...]:
        """Cell of the highest mean AP; of equal ones the first. The base where none is above 0."""
        mean = np.nan_to_num(self.mean(weights), nan=-1.0)
        if mean.max() <= 0:
            return self.grid.cell(self.base)
        return tuple(int(i) for i in np.unravel_index(mean.argmax(), mean.shape))

    def objects_at(self, options: ClusterOptions) -> Objects:
        """What was found with these thresholds, and what a lower ``start`` would add."""
        f, _, m, p = self.grid.cell(options)
        return self.objects[f, m, p]


def mean_ap(found: Instances, sample: Sample, num_classes: int) -> float:
    """AP of one image, mean over IoU .50 to .90 and over the classes in it; NaN where undefined."""
    truth = sample.target.classes.numpy()
    by_class = _ap(overlaps_with(sample, found), found.classes, truth, num_classes)
    defined = by_class[np.isfinite(by_class)]
    return float(defined.mean()) if len(defined) else float("nan")


def overlaps_with(sample: Sample, found: Instances) -> Overlaps:
    """What was found against the truth of its image."""
    target = sample.target
    return overlaps(found.labels, target.labels.numpy(), target.ignore.numpy())


def _ap(pairs: Overlaps, found: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """(C,) AP of one image, mean over the IoU thresholds; NaN where a class is not there."""
    return np.array([c.ap.mean() for c in counts_by_class(pairs, found, truth, num_classes)])


def areas_of(truths: Iterable[Target]) -> np.ndarray:
    """Areas (N,) int64 in px of the objects of these images."""
    areas = [np.bincount(truth.labels.numpy().ravel())[1:] for truth in truths]
    return np.concatenate([a[a > 0] for a in areas] or [np.zeros(0, np.int64)])


def min_pixels_of(areas: np.ndarray) -> int:
    """Half the area that 99 % of the objects, areas (N,), exceed: smaller detections are specks."""
    return int(np.percentile(areas, 1) / 2) if len(areas) else 0


def diameters_of(areas: np.ndarray) -> dict[str, float]:
    """Percentiles 5, 50 and 95 of the diameters, px, of discs as large as objects; {} of none."""
    if not len(areas):
        return {}
    diameters = np.sqrt(areas * 4 / np.pi)
    return {f"p{p}": round(float(np.percentile(diameters, p)), 1) for p in (5, 50, 95)}


def sweep(
    engine: Engine,
    how: Normalization,
    images: Iterable[Sample],
    base: ClusterOptions,
    num_classes: int,
    *,
    grid: Grid | None = None,
    groups: Sequence[int] | None = None,
) -> Surface:
    """AP at every cell of a grid, the one around ``base``, the network run once on each image.

    One image's maps are in memory at a time. groups (I,): images that belong together, by default
    each by itself.
    """
    grid = Grid.around(base) if grid is None else grid
    rows: list[np.ndarray] = []
    present = np.zeros(num_classes, bool)
    parts: dict[tuple[int, int, int], list[Objects]] = {}
    for i, sample in enumerate(images):
        maps = engine(network_input(sample.image, how)[None])
        present[sample.target.classes.long().numpy()] = True
        ap = np.full((num_classes, *map(len, grid)), np.nan, np.float32)
        for f, m, p in product(*(range(len(grid[axis])) for axis in (0, 2, 3))):
            starts = grid.starts(f, base)
            options = grid.options((f, starts[0], m, p), base)
            found = cluster(maps, options)[0].numpy()
            pairs = overlaps_with(sample, found)
            truth = sample.target.classes.numpy()
            tried = [grid.start[s] for s in starts]
            ap[:, f, starts, m, p] = ap_by_start(found, pairs, truth, tried, num_classes).T
            ious = best_ious(pairs, found.classes, truth)
            group = i if groups is None else groups[i]
            objects = objects_of(found, maps.seed[0], pairs.found_ids, ious, group)
            parts.setdefault((f, m, p), []).append(objects)
        rows.append(ap)
    stacked = np.stack(rows) if rows else np.zeros((0, num_classes, *map(len, grid)), np.float32)
    if present.any():
        stacked[:, ~present] = np.nan  # as an evaluation leaves classes without truth out
    return Surface(grid, base, stacked, {k: Objects.merged(v) for k, v in parts.items()})


def ap_by_start(
    found: Instances,
    pairs: Overlaps,
    truth: np.ndarray,
    starts: Sequence[float],
    num_classes: int,
) -> np.ndarray:
    """AP (len(starts), C) of one image at each ``start``, from one clustering at the lowest.

    Seeds are taken in descending order and pixels go to the higher score, so that a higher
    ``start`` only leaves out the instances that score less.
    """
    scores = found.scores[pairs.found_ids - 1]
    every = np.ones(len(pairs.truth_ids), bool)
    rows = []
    for start in starts:
        kept = pairs.select(scores >= np.float32(start), every)
        rows.append(_ap(kept, found.classes, truth, num_classes))
    return np.stack(rows)
