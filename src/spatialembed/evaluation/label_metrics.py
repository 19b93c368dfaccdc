"""How well two label images agree: counts at IoU thresholds, and the figures that follow from them.

    found, truth (H, W)  --overlaps-->  pairs that share pixels, with IoU
                         --match----->  one-to-one pairs at a threshold
                         --counts---->  TP, FP, FN, sum of matched IoU; sums pool images

    AP = TP / (TP + FP + FN)
    F1 = TP / (TP + FP / 2 + FN / 2)
    PQ = sum of matched IoU / (TP + FP / 2 + FN / 2)

AP is that of the 2018 Data Science Bowl, StarDist and Cellpose; PQ is of Kirillov et al. 2019.
A figure whose denominator is zero is NaN, never 0 or 1.

Pixels without truth (``ignore``) are taken out of both images first. A found instance of which more
than half lay there is dropped: it is neither a true nor a false positive. A true instance that
lay there wholly is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from spatialembed.errors import SpatialEmbedError
from spatialembed.method.labels import check_labels

AP_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Literals: np.arange makes 0.6000000000000001 of 0.6, which an IoU of 12 / 20 would miss."""


RESAMPLES = 1000
"""Bootstrap resamples behind a standard error."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Instances of two label images, and the pairs of them that share pixels."""

    found_ids: np.ndarray  # (N,) int64, ascending
    truth_ids: np.ndarray  # (K,) int64, ascending
    found: np.ndarray  # (P,) int64 index into found_ids
    truth: np.ndarray  # (P,) int64 index into truth_ids
    iou: np.ndarray  # (P,) float64 in (0, 1]

    def select(self, found: np.ndarray, truth: np.ndarray) -> Overlaps:
        """Only the instances that the masks ``found`` (N,) and ``truth`` (K,) bool select."""
        pairs = found[self.found] & truth[self.truth]
        return Overlaps(
            self.found_ids[found],
            self.truth_ids[truth],
            (np.cumsum(found) - 1)[self.found[pairs]],
            (np.cumsum(truth) - 1)[self.truth[pairs]],
            self.iou[pairs],
        )


@dataclass(frozen=True, eq=False)
class Counts:
    """What was matched at each threshold, of one image or, added up, of many."""

    thresholds: tuple[float, ...]  # T of them
    tp: np.ndarray  # (T,) int64
    fp: np.ndarray  # (T,) int64
    fn: np.ndarray  # (T,) int64
    iou_sum: np.ndarray  # (T,) float64, over the matched pairs

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.thresholds,
            self.tp + other.tp,
            self.fp + other.fp,
            self.fn + other.fn,
            self.iou_sum + other.iou_sum,
        )

    @property
    def ap(self) -> np.ndarray:
        """(T,) TP / (TP + FP + FN)."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> np.ndarray:
        """(T,) TP / (TP + FP)."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        """(T,) TP / (TP + FN)."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> np.ndarray:
        """(T,) 2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def matched_iou(self) -> np.ndarray:
        """(T,) mean IoU of the matched pairs."""
        return _ratio(self.iou_sum, self.tp)

    @property
    def pq(self) -> np.ndarray:
        """(T,) panoptic quality: matched_iou * f1, 0 where nothing matched."""
        return _ratio(2 * self.iou_sum, 2 * self.tp + self.fp + self.fn)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    result = np.full(len(whole), np.nan)
    return np.divide(part, whole, out=result, where=whole > 0)


def label_ap(
    found: np.ndarray,
    truth: np.ndarray,
    thresholds: Sequence[float] = AP_THRESHOLDS,
    ignore: np.ndarray | None = None,
) -> np.ndarray:
    """AP = TP / (TP + FP + FN) of one image at each IoU threshold.

    A pair matches where IoU >= threshold; pairs are one-to-one, as many as there can be.

    Args:
        found: Predicted labels (H, W), any integer type, 0 background, any ids above it.
        truth: Actual labels, likewise.
        thresholds: T values of IoU in (0, 1].
        ignore: Pixels without truth, (H, W) bool; None: none.

    Returns:
        (T,) float64 in [0, 1], NaN where neither image has an instance.

    Raises:
        SpatialEmbedError: ``size_mismatch``, ``bad_labels``.
    """
    return counts(overlaps(found, truth, ignore), thresholds).ap


def overlaps(found: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> Overlaps:
    """Instances of two label images (H, W) and the IoU of each pair that shares pixels.

    By a histogram of the id pairs that occur: O(H W log(H W)) time, no N x K matrix, so 70,000
    instances pass. Arguments and errors as in ``label_ap``.
    """
    found, truth = check_labels(found, "found"), check_labels(truth, "truth")
    for name, other in (("truth", truth), ("ignore", ignore)):
        if other is not None and other.shape != found.shape:
            raise SpatialEmbedError(
                "size_mismatch",
                f"{name} is {other.shape}, found is {found.shape} (height, width)",
                "give both at the size of the image",
            )
    if ignore is not None and ignore.any():
        found, truth = _without_ignored(found, truth, ignore.astype(bool))
    found_ids, found_areas = np.unique(found[found > 0], return_counts=True)
    truth_ids, truth_areas = np.unique(truth[truth > 0], return_counts=True)
    both = (found > 0) & (truth > 0)
    i = np.searchsorted(found_ids, found[both])
    j = np.searchsorted(truth_ids, truth[both])
    # Indices, not ids: N * K of an image stays far below 2^63, a product of ids need not.
    pairs, shared = np.unique(i * len(truth_ids) + j, return_counts=True)
    i, j = np.divmod(pairs, max(len(truth_ids), 1))
    iou = shared / (found_areas[i] + truth_areas[j] - shared)
    return Overlaps(found_ids.astype(np.int64), truth_ids.astype(np.int64), i, j, iou)


def _without_ignored(
    found: np.ndarray, truth: np.ndarray, ignore: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both label images, 0 where ignored; found instances mostly ignored are gone altogether."""
    ids, which, areas = np.unique(found, return_inverse=True, return_counts=True)
    which = which.reshape(found.shape)
    covered = np.bincount(which[ignore], minlength=len(ids))
    kept = np.where(2 * covered > areas, 0, ids)
    return np.where(ignore, 0, kept[which]), np.where(ignore, 0, truth)


def match(pairs: Overlaps, threshold: float) -> np.ndarray:
    """One-to-one matching of pairs with IoU >= threshold.

    Args:
        pairs: Of two label images, from ``overlaps``.
        threshold: IoU in (0, 1].

    Returns:
        (M,) int64, ascending indices into the pairs: as many as there can be and, among such
        matchings, the one of the largest sum of IoU.
    """
    able = np.flatnonzero(pairs.iou >= threshold)
    i, j = pairs.found[able], pairs.truth[able]
    alone = (np.bincount(i)[i] == 1) & (np.bincount(j)[j] == 1)
    # Above 0.5 every pair is alone: two rivals would each hold more than half of one instance.
    rivals = able[~alone]
    chosen = _assign(pairs.found[rivals], pairs.truth[rivals], pairs.iou[rivals])
    return np.sort(np.concatenate((able[alone], rivals[chosen])))


def _assign(i: np.ndarray, j: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Optimal one-to-one choice among pairs (P,): indices into them.

    A full matching of least cost in which each row may also take a column of its own, "unmatched",
    at cost 2. A pair costs 1 + (1 - IoU) / (2 n): the remainders never outweigh a match.
    """
    if not len(i):
        return np.zeros(0, np.int64)
    rows, i = np.unique(i, return_inverse=True)
    columns, j = np.unique(j, return_inverse=True)
    n, m = len(rows), len(columns)
    own = np.arange(n)
    cost = np.concatenate((1 + (1 - iou) / (2 * n), np.full(n, 2.0)))
    graph = coo_array(
        (cost, (np.concatenate((i, own)), np.concatenate((j, m + own)))), shape=(n, m + n)
    ).tocsr()
    row, column = min_weight_full_bipartite_matching(graph)
    taken = np.full(n, -1)
    taken[row] = column
    return np.flatnonzero(taken[i] == j)


def counts(pairs: Overlaps, thresholds: Sequence[float] = AP_THRESHOLDS) -> Counts:
    """TP, FP, FN and the sum of matched IoU at each threshold."""
    tp = np.zeros(len(thresholds), np.int64)
    iou_sum = np.zeros(len(thresholds))
    for t, threshold in enumerate(thresholds):
        matched = match(pairs, threshold)
        tp[t], iou_sum[t] = len(matched), pairs.iou[matched].sum()
    return Counts(
        tuple(float(threshold) for threshold in thresholds),
        tp,
        len(pairs.found_ids) - tp,
        len(pairs.truth_ids) - tp,
        iou_sum,
    )


def best_ious(pairs: Overlaps, found_classes: np.ndarray, truth_classes: np.ndarray) -> np.ndarray:
    """Largest IoU of each of ``pairs.found_ids`` with a true instance of its class, 0 if with none.

    found_classes (N,), truth_classes (K,): of label k at index k - 1. Returns (M,) float64. Not a
    matching: two found instances may share a true one.
    """
    best = np.zeros(len(pairs.found_ids))
    alike = _of_one_class(pairs, found_classes, truth_classes)
    np.maximum.at(best, alike.found, alike.iou)
    return best


def missed(
    pairs: Overlaps, found_classes: np.ndarray, truth_classes: np.ndarray, threshold: float = 0.5
) -> np.ndarray:
    """Ids (M,) int64, ascending, of the true instances that no found one of their class matches.

    found_classes (N,), truth_classes (K,): of label k at index k - 1.
    """
    alike = _of_one_class(pairs, found_classes, truth_classes)
    return np.delete(pairs.truth_ids, alike.truth[match(alike, threshold)])


def _of_one_class(
    pairs: Overlaps, found_classes: np.ndarray, truth_classes: np.ndarray
) -> Overlaps:
    """The pairs whose instances are of one class; all instances stay."""
    found = _classes_of(pairs.found_ids, found_classes, "found")
    truth = _classes_of(pairs.truth_ids, truth_classes, "truth")
    same = found[pairs.found] == truth[pairs.truth]
    return replace(pairs, found=pairs.found[same], truth=pairs.truth[same], iou=pairs.iou[same])


def counts_by_class(
    pairs: Overlaps,
    found_classes: np.ndarray,
    truth_classes: np.ndarray,
    num_classes: int,
    thresholds: Sequence[float] = AP_THRESHOLDS,
) -> list[Counts]:
    """Counts of each class; instances of different classes never match.

    found_classes (N,), truth_classes (K,) int64 in [0, num_classes): of label k at index k - 1.
    Raises SpatialEmbedError ``bad_labels`` where a label has no class.
    """
    found = _classes_of(pairs.found_ids, found_classes, "found")
    truth = _classes_of(pairs.truth_ids, truth_classes, "truth")
    return [counts(pairs.select(found == c, truth == c), thresholds) for c in range(num_classes)]


def _classes_of(ids: np.ndarray, classes: np.ndarray, name: str) -> np.ndarray:
    classes = np.asarray(classes)
    if len(ids) and ids[-1] > len(classes):
        raise SpatialEmbedError(
            "bad_labels",
            f"{name} label {ids[-1]} has no class: {len(classes)} classes are given",
            "give one class for each label",
        )
    return classes[ids - 1]


# ---------------------------------------------------------------- over images


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that are not NaN; NaN where there is none (np.nanmean would warn)."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis), np.nan)


def mean_over_images(ap: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """ap (I, C, ...) -> mean over images, then over classes, (...); NaN is left out.

    weights (I,) or (R, I): how often each image counts; of R rows, R means come, (R, ...).
    """
    counted = np.ones(len(ap)) if weights is None else weights
    defined = np.isfinite(ap)
    total = np.tensordot(counted, np.where(defined, ap, 0), axes=1)  # (R, C, ...) or (C, ...)
    number = np.tensordot(counted, defined.astype(np.float64), axes=1)
    by_class = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    present = np.isfinite(by_class)
    classes = present.sum(axis=counted.ndim - 1)
    total = np.where(present, by_class, 0).sum(axis=counted.ndim - 1)
    return np.divide(total, classes, out=np.full(total.shape, np.nan), where=classes > 0)


def resampled(groups: np.ndarray) -> np.ndarray:
    """How often each of I images counts in each bootstrap resample, (R, I); R = 0 below two groups.

    groups: (I,) integers 0..G-1; images of one group are drawn together.
    """
    count = int(groups.max(initial=-1)) + 1
    if count < 2:
        return np.zeros((0, len(groups)))
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)[:, groups]
