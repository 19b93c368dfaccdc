"""Scoring a network on whole images by the real clustering, and choosing its thresholds there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from torch import Tensor

from spatialembed.cluster import ClusterOptions, cluster
from spatialembed.metrics import Overlaps, counts_by_class, overlaps
from spatialembed.transforms import network_input
from spatialembed.types import Embeddings, Instances, Normalization, Sample

Engine = Callable[[Tensor], Embeddings]
"""A network ready to run: normalised images (B, 3, H, W) of any size to their maps."""

STARTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
FOREGROUNDS = (0.3, 0.4, 0.5, 0.6)
MIN_PIXEL_FACTORS = (0.5, 1.0, 1.5, 2.0)
"""Tried values of ``min_pixels``, as multiples of the one that the sizes of the objects suggest."""


class Found(NamedTuple):
    """One validation image with its maps and what was found in it."""

    sample: Sample
    maps: Embeddings  # B = 1
    instances: Instances  # numpy


def embeddings_of(engine: Engine, how: Normalization, sample: Sample) -> Embeddings:
    """Maps (1, ., H, W) of one image."""
    return engine(network_input(sample.image, how)[None])


def find_all(
    engine: Engine, how: Normalization, images: Iterable[Sample], options: ClusterOptions
) -> Iterator[Found]:
    """Run network and clustering over whole images, one by one."""
    for sample in images:
        maps = embeddings_of(engine, how, sample)
        yield Found(sample, maps, cluster(maps, options)[0].numpy())


def mean_ap(found: Instances, sample: Sample, num_classes: int) -> float:
    """AP of one image, mean over IoU .50 to .90 and over the classes in it; NaN where undefined."""
    return _ap(_overlaps(found, sample), found.classes, sample.target.classes.numpy(), num_classes)


def _overlaps(found: Instances, sample: Sample) -> Overlaps:
    target = sample.target
    return overlaps(found.labels, target.labels.numpy(), target.ignore.numpy())


def _ap(pairs: Overlaps, found: np.ndarray, truth: np.ndarray, num_classes: int) -> float:
    by_class = [c.ap for c in counts_by_class(pairs, found, truth, num_classes)]
    defined = [ap.mean() for ap in by_class if not np.isnan(ap).any()]
    return float(np.mean(defined)) if defined else float("nan")


def usual_min_pixels(images: Iterable[Sample]) -> int:
    """Half the area that 99 % of the objects exceed: smaller finds are specks."""
    areas = [np.bincount(s.target.labels.numpy().ravel())[1:] for s in images]
    present = np.concatenate([a[a > 0] for a in areas] or [np.zeros(0, np.int64)])
    return int(np.percentile(present, 1) / 2) if len(present) else 0


def tune_thresholds(
    engine: Engine,
    how: Normalization,
    images: Sequence[Sample] | Iterable[Sample],
    base: ClusterOptions,
    num_classes: int,
    progress: Callable[[], None] = lambda: None,
) -> tuple[ClusterOptions, dict[tuple[float, float, int], float]]:
    """The ``start``, ``foreground`` and ``min_pixels`` of the highest mean AP, and the whole table.

    The table holds mean AP by (foreground, start, min_pixels). Equal APs: the first in the order of
    the lists above, so that the result is stable. Where none is above 0 there is nothing to choose
    by: ``base``.
    """
    sizes = sorted({round(base.min_pixels * factor) for factor in MIN_PIXEL_FACTORS})
    scores: dict[tuple[float, float, int], list[float]] = {}
    for sample in images:
        maps = embeddings_of(engine, how, sample)
        for foreground, min_pixels in product(FOREGROUNDS, sizes):
            starts = [s for s in STARTS if s >= foreground]
            options = replace(base, foreground=foreground, start=min(starts), min_pixels=min_pixels)
            found = cluster(maps, options)[0].numpy()
            for start, ap in _ap_by_start(found, sample, starts, num_classes):
                scores.setdefault((foreground, start, min_pixels), []).append(ap)
        progress()
    table = {key: _mean(values) for key, values in scores.items()}
    if not any(ap > 0 for ap in table.values()):
        return base, table
    foreground, start, min_pixels = max(table, key=lambda key: np.nan_to_num(table[key], nan=-1))
    return replace(base, foreground=foreground, start=start, min_pixels=min_pixels), table


def _ap_by_start(
    found: Instances, sample: Sample, starts: Sequence[float], num_classes: int
) -> Iterator[tuple[float, float]]:
    """AP at each ``start`` from one clustering at the lowest.

    Seeds are taken in descending order and pixels go to the higher score, so that a higher
    ``start`` only leaves out the instances that score less.
    """
    pairs = _overlaps(found, sample)
    scores = found.scores[pairs.found_ids - 1]
    every = np.ones(len(pairs.truth_ids), bool)
    for start in starts:
        kept = pairs.select(scores >= np.float32(start), every)
        yield start, _ap(kept, found.classes, sample.target.classes.numpy(), num_classes)


def _mean(values: Sequence[float]) -> float:
    defined = [v for v in values if not np.isnan(v)]
    return float(np.mean(defined)) if defined else float("nan")
