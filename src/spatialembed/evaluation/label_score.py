"""Label-image AP at IoU 0.50 to 0.90, image by image; what follows is in ``label_report``."""

from __future__ import annotations

import math

import numpy as np

from spatialembed.evaluation.label_metrics import (
    AP_THRESHOLDS,
    Overlaps,
    best_ious,
    counts_by_class,
    missed,
    overlaps,
)
from spatialembed.evaluation.label_report import ImageScore, Report, Sampling, WorstImage, mean
from spatialembed.evaluation.reliability import Reliability, merged
from spatialembed.types import Instances, Sample

WORST = 12
"""Images on the page of the worst."""
PAGE_PX = 640
"""Longest side of a picture on that page; larger ones are thinned out."""


class LabelScore:
    """Scores of images by their overlaps with the truth; see ``label_metrics``."""

    def __init__(self, class_names: tuple[str, ...], sampling: Sampling) -> None:
        self._class_names = class_names
        self._sampling = sampling
        self._rows: list[ImageScore] = []
        self._objects: list[Reliability] = []
        self._worst: list[WorstImage] = []

    def add(self, i: int, sample: Sample, found: Instances, seconds: float) -> None:
        """Score image ``i``: found as numpy, in so many seconds. Raises ``size_mismatch``."""
        pairs = _overlaps(sample, found)
        row = _score(sample, found, pairs, seconds, len(self._class_names))
        self._rows.append(row)
        self._objects.append(_reliability(sample, found, pairs))
        self._worst = _with_worst(self._worst, row, sample, found)

    @property
    def running(self) -> str:
        """Where it stands, in a word for the progress bar."""
        ap = mean(np.array([row.mean_ap for row in self._rows]), axis=0)
        return "" if math.isnan(ap) else f"AP {ap:.3f}"

    def report(self) -> Report:
        """Everything that follows from the images."""
        return Report(
            tuple(self._rows),
            self._class_names,
            self._sampling,
            AP_THRESHOLDS,
            tuple(self._worst),
            merged(self._objects) if self._sampling == "seed" else None,
        )


def _overlaps(sample: Sample, found: Instances) -> Overlaps:
    ignore = sample.target.ignore.numpy()
    truth = sample.target.labels.numpy()
    return overlaps(found.labels, truth, ignore if ignore.any() else None)


def _reliability(sample: Sample, found: Instances, pairs: Overlaps) -> Reliability:
    """Predicted IoU of the objects that count, and their actual IoU."""
    i = pairs.found_ids - 1
    expected = None if found.expected_iou is None else found.expected_iou[i]
    truth = sample.target.classes.numpy()
    return Reliability(found.scores[i], expected, best_ious(pairs, found.classes, truth))


def _score(
    sample: Sample, found: Instances, pairs: Overlaps, seconds: float, classes: int
) -> ImageScore:
    target = sample.target
    by_class = counts_by_class(pairs, found.classes, target.classes.numpy(), classes)
    labels = missed(pairs, found.classes, target.classes.numpy())
    ids = labels if sample.ids is None else sample.ids[labels - 1]
    return ImageScore(sample.name, tuple(by_class), seconds, found.truncated, tuple(ids.tolist()))


def _with_worst(
    worst: list[WorstImage], score: ImageScore, sample: Sample, found: Instances
) -> list[WorstImage]:
    """The list with this image in its place, if it is among the worst; ties: the earlier image."""
    if math.isnan(score.mean_ap):
        return worst
    if len(worst) == WORST and worst[-1].score.mean_ap <= score.mean_ap:
        return worst
    step = math.ceil(max(found.labels.shape) / PAGE_PX)
    truth = sample.target.labels.numpy()
    thin = [array[::step, ::step].copy() for array in (sample.image, truth, found.labels)]
    image = WorstImage(score, *thin)
    return sorted([*worst, image], key=lambda other: other.score.mean_ap)[:WORST]
