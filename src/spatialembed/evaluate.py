"""Score a model on a data set. One pass, one image at a time in memory::

    dataset[i] -> predictor -> overlaps -> counts by class -> ImageScore, one row an image

What follows from the rows is in ``results/report.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spatialembed.cluster import cluster_with_truth
from spatialembed.data.selection import Dataset, check_classes
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.metrics import (
    AP_THRESHOLDS,
    Overlaps,
    best_ious,
    counts_by_class,
    missed,
    overlaps,
)
from spatialembed.results.reliability import Reliability, merged
from spatialembed.results.report import ImageScore, Report, Sampling, WorstImage, mean
from spatialembed.types import Instances, Sample

if TYPE_CHECKING:
    from spatialembed.predict import Predictor

Metric = Literal["ap"]
WORST = 12
"""Images on the page of the worst."""
PAGE_PX = 640
"""Longest side of a picture on that page; larger ones are thinned out."""


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    metric: Metric = "ap",
    *,
    sampling: Sampling = "seed",
    progress: bool = True,
) -> Report:
    """Predict every image of a data set and score it against its truth.

    metric: "ap", label-image AP at IoU 0.50 to 0.90 (see ``metrics``). sampling: "seed", what a
    user gets; "truth", instances from true centres and bandwidths, which leaves out the seed map
    (ground-truth sampling, Neven et al. 2019). progress: a bar on stderr.

    Raises SpatialEmbedError ``unknown_metric``, ``unknown_sampling``, ``empty_dataset``,
    ``class_mismatch``, and what reading or predicting an image raises.
    """
    _check_choice("metric", metric, get_args(Metric))
    _check_choice("sampling", sampling, get_args(Sampling))
    check_classes(predictor.info.class_names, dataset)
    rows: list[ImageScore] = []
    scores: list[float] = []
    objects: list[Reliability] = []
    worst: list[WorstImage] = []
    with _progress(enabled=progress) as bar:
        task = bar.add_task("evaluate", total=len(dataset), ap="")
        for i in range(len(dataset)):
            sample = dataset[i]
            found, seconds = _predict(predictor, sample, sampling)
            pairs = _overlaps(sample, found)
            rows.append(_score(sample, found, pairs, seconds, len(dataset.class_names)))
            objects.append(_reliability(sample, found, pairs))
            scores.append(rows[-1].mean_ap)
            worst = _with_worst(worst, rows[-1], sample, found)
            ap = mean(np.array(scores), axis=0)
            bar.update(task, advance=1, ap="" if math.isnan(ap) else f"AP {ap:.3f}")
    return Report(
        tuple(rows),
        tuple(dataset.class_names),
        sampling,
        AP_THRESHOLDS,
        tuple(worst),
        merged(objects) if sampling == "seed" else None,
    )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SpatialEmbedError(
            f"unknown_{name}", f"{name} {value!r}", f"choose from: {', '.join(choices)}", USAGE
        )


def _progress(*, enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[ap]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not enabled,
    )


def _predict(predictor: Predictor, sample: Sample, sampling: Sampling) -> tuple[Instances, float]:
    """Instances of one image as numpy, and the seconds they took."""
    began = time.perf_counter()
    if sampling == "seed":
        found = predictor(sample.image)
    else:
        maps = predictor.embeddings(sample.image)
        found = cluster_with_truth(
            maps, [sample.target], predictor.settings.membership, predictor.info.class_names
        )[0]
    return found.numpy(), time.perf_counter() - began


def _overlaps(sample: Sample, found: Instances) -> Overlaps:
    ignore = sample.target.ignore.numpy()
    truth = sample.target.labels.numpy()
    return overlaps(found.labels, truth, ignore if ignore.any() else None)


def _reliability(sample: Sample, found: Instances, pairs: Overlaps) -> Reliability:
    """What was said of the objects that count, and their true IoU."""
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
