"""How good a found object is expected to be: its mean seed mapped to the IoU that such ones had.

quality     of a found object: its largest IoU with a true object of its class, 0 if with none
mean seed   over the pixels that the object owns. A seed has learned phi of its pixel, so the
            mean tells of the whole object, where the score, the seed of one pixel, tells of the
            best one: it orders objects better (docs/uncertainty.md)
map         equal-count bins of validation objects by mean seed -> mean quality, made to rise
            by isotonic regression; linear between the bins, constant outside
error       expected calibration error: mean over equal-count bins of |mean predicted - mean actual|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from spatialembed.types import Instances

LEAST_OBJECTS = 200
"""Objects below which nothing is fitted: the mean of a bin would be noise."""
KNOTS = 16
"""Bins of the fit, thus knots of the map at most."""
BINS = 10
"""Bins of the calibration error and of the reliability plot."""
FOLDS = 5
"""Parts of the images in cross-validation."""


@dataclass(frozen=True)
class Calibration:
    """A rising map from mean seed to expected IoU; travels in the model file."""

    mean_seeds: tuple[float, ...]  # (K,) ascending, in [0, 1]
    ious: tuple[float, ...]  # (K,) never falling, in [0, 1]
    objects: int  # it was fitted to
    error: float  # calibration error of the expected IoU, on images left out of the fit
    error_of_score: float  # the same of the score, taken as an IoU

    def __post_init__(self) -> None:
        """Raises ValueError where this is no such map."""
        seeds, ious = np.array(self.mean_seeds), np.array(self.ious)
        if not len(seeds) == len(ious) > 0:
            raise ValueError(f"{len(seeds)} mean seeds for {len(ious)} IoUs")
        if not all(((v >= 0) & (v <= 1)).all() for v in (seeds, ious)):
            raise ValueError("a mean seed or an IoU lies outside 0 to 1")
        if (np.diff(seeds) <= 0).any() or (np.diff(ious) < 0).any():
            raise ValueError("mean seeds do not rise, or IoUs fall")

    def expected_iou(self, mean_seeds: np.ndarray) -> np.ndarray:
        """Expected IoU (N,) float32 in [0, 1] of objects of these mean seeds (N,)."""
        return np.interp(mean_seeds, self.mean_seeds, self.ious).astype(np.float32)


def with_expected_iou(
    instances: Instances, seed: Any, calibration: Calibration | None
) -> Instances:
    """The instances with their expected IoU, numpy or torch as they are; unchanged without map.

    seed: maps (C, H, W) that they were found in, tensor or array.
    """
    if calibration is None:
        return instances
    values: Any = calibration.expected_iou(mean_seeds(instances, seed))
    if not isinstance(instances.labels, np.ndarray):
        values = instances.scores.new_tensor(values)
    return replace(instances, expected_iou=values)


def mean_seeds(instances: Instances, seed: Any) -> np.ndarray:
    """Mean (N,) float64 of the seeds of each instance's class over the pixels that it owns."""
    found = instances.numpy()
    maps = np.asarray(seed.detach().float().cpu() if hasattr(seed, "detach") else seed)
    pixels = np.flatnonzero(found.labels)
    owner = found.labels.ravel()[pixels] - 1
    values = maps.reshape(len(maps), -1)[found.classes[owner], pixels]
    sums = np.bincount(owner, values, minlength=len(found))
    return sums / np.bincount(owner, minlength=len(found))


class Objects(NamedTuple):
    """Found objects of many images, and what each turned out to be worth."""

    scores: np.ndarray  # (N,) float32
    mean_seeds: np.ndarray  # (N,) float64
    ious: np.ndarray  # (N,) float64, 0 where no true object of its class is touched
    groups: np.ndarray  # (N,) int64, the image, or the group of images, that it lies in

    def where(self, kept: np.ndarray) -> Objects:
        """Those that a mask (N,) bool or an index names."""
        return Objects(*(values[kept] for values in self))

    def scoring(self, start: float) -> np.ndarray:
        """Mask (N,) of those of at least this score, compared in float32 as the clustering does."""
        return self.scores >= np.float32(start)

    @classmethod
    def merged(cls, parts: Sequence[Objects]) -> Objects:
        """Objects of all parts, in order."""
        return cls(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def objects_of(
    found: Instances, seed: Any, ids: np.ndarray, ious: np.ndarray, group: int
) -> Objects:
    """The found objects of one image that count: labels ``ids`` (M,), of best IoU ``ious`` (M,).

    found: numpy. seed: (C, H, W). group: number of the image, or of the images it belongs with.
    """
    i = ids - 1
    return Objects(found.scores[i], mean_seeds(found, seed)[i], ious, np.full(len(i), group))


def fit(objects: Objects, start: float) -> Calibration | None:
    """The map of these objects; None where fewer than ``LEAST_OBJECTS`` score ``start`` or more.

    Give it the objects below ``start`` too: a user who lowers it gets those. The errors are of
    the objects from ``start`` on, in ``FOLDS`` turns on groups held out of the fit.
    """
    seen = objects.scoring(start)
    if seen.sum() < LEAST_OBJECTS or len(np.unique(objects.groups)) < FOLDS:
        return None
    held_out = cross_validated(objects)[seen]
    seeds, ious = _knots(objects)
    return Calibration(
        tuple(seeds.tolist()),
        tuple(ious.tolist()),
        objects=len(seen),
        error=round(calibration_error(held_out, objects.ious[seen]), 4),
        error_of_score=round(calibration_error(objects.scores[seen], objects.ious[seen]), 4),
    )


def cross_validated(objects: Objects) -> np.ndarray:
    """Expected IoU (N,) of each object by the map of the other folds; a group is in one fold."""
    _, group = np.unique(objects.groups, return_inverse=True)
    fold = folds(group.max(initial=-1) + 1)[group]
    predicted = np.zeros(len(group))
    for part in np.unique(fold):
        seeds, ious = _knots(objects.where(fold != part))
        predicted[fold == part] = np.interp(objects.mean_seeds[fold == part], seeds, ious)
    return predicted


def folds(count: int) -> np.ndarray:
    """Fold (count,) in [0, FOLDS) of each of so many images or groups, at random, always alike."""
    return np.random.default_rng(0).permutation(count) % FOLDS


def _knots(objects: Objects) -> tuple[np.ndarray, np.ndarray]:
    """Mean seeds, ascending, and rising IoUs of equal-count bins, rounded as they are stored."""
    from scipy.optimize import isotonic_regression  # 0.3 s, and prediction does without

    bins = equal_count_bins(objects.mean_seeds, KNOTS)
    x = np.array([objects.mean_seeds[b].mean() for b in bins]).round(4)
    y = np.array([objects.ious[b].mean() for b in bins])
    y = isotonic_regression(y, weights=[len(b) for b in bins]).x.round(4)
    x, first = np.unique(x, return_index=True)  # bins of one value
    return x, y[first]


def equal_count_bins(values: np.ndarray, count: int) -> list[np.ndarray]:
    """Indices of the values in at most ``count`` bins of equal size, ascending by value."""
    order = np.argsort(values, kind="stable")
    return [b for b in np.array_split(order, count) if len(b)]


def calibration_error(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Expected calibration error: mean of |predicted - actual| over ``BINS`` equal-count bins.

    predicted (N,): predicted IoU; actual (N,): the true one. NaN without objects.
    """
    bins = equal_count_bins(predicted, BINS)
    gaps = [abs(float(np.mean(predicted[b], dtype=np.float64) - np.mean(actual[b]))) for b in bins]
    return float(np.average(gaps, weights=[len(b) for b in bins])) if bins else float("nan")


def rank_correlation(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where either is constant or there are fewer than two."""
    from scipy.stats import rankdata  # half a second

    ranks = np.stack([rankdata(predicted), rankdata(actual)])
    ranks -= ranks.mean(axis=1, keepdims=True) if ranks.size else 0
    length = np.sqrt((ranks**2).sum(axis=1))
    return float(ranks[0] @ ranks[1] / length.prod()) if length.all() else float("nan")


def auc(predicted: np.ndarray, right: np.ndarray) -> float:
    """Chance that a right object is placed above a wrong one (area under the ROC curve).

    right (N,) bool. Equal values count one half; NaN where there are none of either.
    """
    from scipy.stats import mannwhitneyu

    exact = predicted.astype(np.float64)  # scipy would count in the type that it is given
    good, bad = exact[right], exact[~right]
    if not len(good) or not len(bad):
        return float("nan")
    u = mannwhitneyu(good, bad, method="asymptotic").statistic
    return float(u / (len(good) * len(bad)))
