"""Average precision as the Cityscapes benchmark counts it (Cordts et al. 2016), from arrays.

Truth is an image of Cityscapes ids: 26003 is the car number 3, 26 alone a group of cars, others are
regions. For a class and an IoU threshold t, strictly exceeded::

    a true instance    has a number and at least 100 px
    true positive      of the detections that match a true instance, the one of the highest score
    false positive     the other ones that match it; and every detection that matches nothing,
                       group or small instance, and of whose pixels not more than t lie in void, in
                       groups of its class, or in its small instances
    AP                 area under precision against recall over all images, by falling score

Void are the regions that the benchmark does not evaluate, by their plain ids: a caravan with a
number, 29001, is not among them. Held against the official tools in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from spatialembed.data.cityscapes_ids import IDS, NUMBERED, VOID
from spatialembed.errors import SpatialEmbedError
from spatialembed.types import Instances

MIN_PIXELS = 100
"""Smaller true instances are not required, nor is a detection of one an error."""
THRESHOLDS = tuple(np.arange(0.5, 1.0, 0.05).tolist())
"""As the benchmark makes them: its 0.6 is 0.6000000000000001."""


@dataclass(frozen=True, eq=False)
class ClassOverlaps:
    """Detections and truths of one class in one image, and the P pairs that share pixels."""

    scores: np.ndarray  # (N,) of the detections
    areas: np.ndarray  # (N,) int64, pixels
    void: np.ndarray  # (N,) int64, pixels of it in void
    truth_areas: np.ndarray  # (K,) int64, pixels
    numbered: np.ndarray  # (K,) bool: an instance, not a group
    found: np.ndarray  # (P,) index of the detection
    truth: np.ndarray  # (P,) index of the truth
    shared: np.ndarray  # (P,) int64, pixels

    @property
    def wanted(self) -> np.ndarray:
        """(K,) bool: true instances that must be found."""
        return self.numbered & (self.truth_areas >= MIN_PIXELS)

    @property
    def iou(self) -> np.ndarray:
        """(P,) float64 in (0, 1]."""
        return self.shared / (self.areas[self.found] + self.truth_areas[self.truth] - self.shared)


def overlaps(
    ids: np.ndarray, found: Instances, class_names: Sequence[str]
) -> dict[str, ClassOverlaps]:
    """Detections of an image against its truth, by class name.

    ids: (H, W) integers, Cityscapes ids. found: numpy, labels (H, W); its ``class_names`` are names
    of Cityscapes. class_names: the classes that count.
    Raises SpatialEmbedError ``size_mismatch``, ``unknown_class``.
    """
    _check(ids, found.labels.shape, (*class_names, *found.class_names))
    present = _counted(ids)
    truth_ids = present[0]
    truth = np.searchsorted(truth_ids, ids)
    pairs, count = _counted(found.labels.astype(np.int64) * len(truth_ids) + truth)
    label, at = np.divmod(pairs, len(truth_ids))
    inside = label > 0
    table = (label[inside] - 1, truth_ids[at[inside]], count[inside])
    names = np.array([found.class_names[c] for c in found.classes], dtype=object)
    return _by_class(present, table, names, np.asarray(found.scores), class_names)


def mask_overlaps(
    ids: np.ndarray,
    masks: Sequence[np.ndarray],
    names: Sequence[str],
    scores: Sequence[float],
    class_names: Sequence[str],
) -> dict[str, ClassOverlaps]:
    """As ``overlaps``, of masks (H, W) bool that may overlap, each with its class and score."""
    parts = []
    for n, mask in enumerate(masks):
        _check(ids, mask.shape, (*class_names, names[n]))
        at, count = np.unique(ids[mask], return_counts=True)
        parts.append((np.full(len(at), n), at.astype(np.int64), count))
    none = np.zeros(0, np.int64)
    columns = zip((none, none, none), *parts, strict=True)
    table = tuple(np.concatenate(column) for column in columns)
    of_detections = np.array(names, dtype=object)
    return _by_class(_counted(ids), table, of_detections, np.asarray(scores), class_names)


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, ascending, and how often: int64 (U,) each. np.unique, but quicker."""
    flat = values.ravel()
    if flat.size and flat.min() >= 0 and flat.max() <= 4 * flat.size:
        count = np.bincount(flat)
        kept = np.flatnonzero(count)
        return kept, count[kept]
    kept, count = np.unique(flat, return_counts=True)
    return kept.astype(np.int64), count


def _check(ids: np.ndarray, shape: tuple[int, ...], names: Sequence[str]) -> None:
    if shape != ids.shape:
        raise SpatialEmbedError(
            "size_mismatch",
            f"found is {shape}, the truth {ids.shape} (height, width)",
            "predict at the size of the image",
        )
    for name in names:
        if name not in IDS:
            raise SpatialEmbedError(
                "unknown_class",
                f"{name} is not a class of Cityscapes",
                f"there are {', '.join(IDS)}",
            )


def _by_class(
    present: tuple[np.ndarray, np.ndarray],
    table: tuple[np.ndarray, ...],
    names: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
) -> dict[str, ClassOverlaps]:
    """present: the ids of the truth and the pixels of each. table: detection, id, shared pixels."""
    detection, of_id, count = table
    n = len(scores)
    areas = np.bincount(detection, count, minlength=n).astype(np.int64)
    in_void = np.isin(of_id, VOID)
    void = np.bincount(detection[in_void], count[in_void], minlength=n).astype(np.int64)
    truth_ids, truth_areas = present
    result = {}
    for name in class_names:
        detections = np.flatnonzero((names == name) & (areas > 0))
        mine = np.where(truth_ids < NUMBERED, truth_ids, truth_ids // NUMBERED) == IDS[name]
        own_ids = truth_ids[mine]
        pair = np.isin(detection, detections) & np.isin(of_id, own_ids)
        result[name] = ClassOverlaps(
            scores[detections].astype(np.float64),
            areas[detections],
            void[detections],
            truth_areas[mine],
            own_ids >= NUMBERED,
            np.searchsorted(detections, detection[pair]),
            np.searchsorted(own_ids, of_id[pair]),
            count[pair].astype(np.int64),
        )
    return result


def average_precision(
    images: Iterable[dict[str, ClassOverlaps]], class_names: Sequence[str]
) -> np.ndarray:
    """AP (C, 10) of classes at IoU 0.50 to 0.95, in [0, 1]; NaN for a class without true instance.

    images: of each image what ``overlaps`` gives. The figure of the benchmark is the mean over the
    thresholds and over the classes that are not NaN, AP50 the first column.
    """
    images = list(images)
    result = np.full((len(class_names), len(THRESHOLDS)), np.nan)
    for c, name in enumerate(class_names):
        of_class = [image[name] for image in images]
        for t, threshold in enumerate(THRESHOLDS):
            result[c, t] = _average_precision(of_class, threshold)
    return result


def _average_precision(images: Sequence[ClassOverlaps], threshold: float) -> float:
    judged = [_judge(image, threshold) for image in images]
    wanted = sum(count for _, _, count in judged)
    scores = np.concatenate([s for s, _, _ in judged] or [np.zeros(0)])
    true = np.concatenate([t for _, t, _ in judged] or [np.zeros(0, bool)])
    if wanted == 0:
        return float("nan")
    return _area(scores, true, wanted)


def _judge(image: ClassOverlaps, threshold: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores of the detections that count, whether each is a true positive; and true instances."""
    wanted = image.wanted
    over = image.iou > threshold
    hit = over & wanted[image.truth]
    # A detection fills over half of its union with one truth only; a truth may have several such.
    order = np.lexsort((image.scores[image.found], image.truth))
    order = order[hit[order]]
    last = np.ones(len(order), bool)
    last[:-1] = image.truth[order[1:]] != image.truth[order[:-1]]
    true = np.zeros(len(image.scores), bool)
    true[image.found[order[last]]] = True
    ignored = image.void.astype(np.float64)
    for excused in (~image.numbered, image.truth_areas < MIN_PIXELS):  # a small group counts twice
        pair = excused[image.truth]
        ignored += np.bincount(image.found[pair], image.shared[pair], minlength=len(ignored))
    matched = np.zeros(len(image.scores), bool)
    matched[image.found[over]] = True
    double = np.zeros(len(image.scores), bool)
    double[image.found[hit]] = True
    counts = double | (~matched & (ignored / image.areas <= threshold))
    return image.scores[counts], true[counts], int(wanted.sum())


def _area(scores: np.ndarray, true: np.ndarray, wanted: int) -> float:
    """Area under precision against recall: trapezoid steps from the highest score down.

    Detections of one score enter together. Each point weighs half the recall between its
    neighbours, and the curve starts at precision 1, recall 0.
    """
    order = np.argsort(-scores, kind="stable")
    scores, tp = scores[order], np.cumsum(true[order])
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else order
    precision = np.concatenate(([1.0], tp[ends] / (ends + 1)))
    recall = np.concatenate(([0.0], tp[ends] / wanted))
    padded = np.concatenate(([0.0], recall, recall[-1:]))
    return float(np.dot(precision, (padded[2:] - padded[:-2]) / 2))
