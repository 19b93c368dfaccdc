"""Score a model on a data set. One pass, one image at a time in memory::

dataset[i] -> predictor -> the score of the metric, image by image -> its report
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, overload

from spatialembed.console import Stages
from spatialembed.data.cityscapes import CityscapesDataset
from spatialembed.data.dataset import Dataset
from spatialembed.data.open import check_classes
from spatialembed.data.splitting import trained_on
from spatialembed.errors import USAGE, SpatialEmbedError, check
from spatialembed.evaluation.benchmark_report import BenchmarkReport
from spatialembed.evaluation.cityscapes_score import CityscapesScore
from spatialembed.evaluation.coco_score import CocoScore
from spatialembed.evaluation.label_report import LabelScore, Report, Sampling
from spatialembed.inference.tiling import TiledEngine
from spatialembed.method.ground_truth import cluster_with_truth
from spatialembed.types import Instances, Sample

if TYPE_CHECKING:
    from spatialembed.inference.predictor import Predictor

Metric = Literal["ap", "cityscapes", "coco"]
FILES = {
    "ap": ("report.json", "worst.html"),
    "cityscapes": ("report.json", "results/"),
    "coco": ("report.json",),
}
"""What lies in the folder of an evaluation in the end."""


@overload
def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    metric: Literal["ap"] = "ap",
    *,
    sampling: Sampling = "seed",
    max_dets: int = 100,
    out: str | Path | None = None,
    progress: bool = True,
) -> Report: ...
@overload
def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    metric: Literal["cityscapes", "coco"],
    *,
    sampling: Sampling = "seed",
    max_dets: int = 100,
    out: str | Path | None = None,
    progress: bool = True,
) -> BenchmarkReport: ...
def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    metric: Metric = "ap",
    *,
    sampling: Sampling = "seed",
    max_dets: int = 100,
    out: str | Path | None = None,
    progress: bool = True,
) -> Report | BenchmarkReport:
    """Predict every image of a data set and score it against its truth.

    Args:
        predictor: The model.
        dataset: Images with truth, as ``open_data`` returns them.
        metric: "ap", AP of label images at IoU 0.50 to 0.90 (see ``label_metrics``); "cityscapes",
            AP of that benchmark, for its layout; "coco", mask AP as COCO defines it, for any data
            set.
        sampling: "seed", as in prediction; "truth", instances from true centres and bandwidths,
            without the seed map (ground-truth sampling, Neven et al. 2019), at the scale that the
            model names, also where ``diameter`` is "auto".
        max_dets: Detections of a class in an image that "coco" counts, the best ones.
        out: Folder for the files of the metric "cityscapes", as the benchmark asks for them; None:
            none are written.
        progress: Whether to draw a bar on stderr.

    Returns:
        The figures, of all images and of each.

    Raises:
        SpatialEmbedError: ``unknown_metric``, ``unknown_sampling``, ``bad_setting``,
            ``missing_extra`` (exit 2), ``not_cityscapes``, ``empty_dataset``, ``class_mismatch``,
            ``name_collision``, and the errors of reading or predicting an image.
    """
    check_metric(metric, dataset)
    _check_choice("sampling", sampling, get_args(Sampling))
    check_classes(predictor.info.class_names, dataset)
    check(max_dets >= 1, f"max_dets is {max_dets}", "give 1 or more")
    seen = trained_on(predictor.info.split, dataset)
    names = tuple(dataset.class_names)
    score: LabelScore | CityscapesScore | CocoScore = LabelScore(names)
    if metric == "coco":
        score = CocoScore(dataset, max_dets)
    elif isinstance(dataset, CityscapesDataset) and metric == "cityscapes":
        score = CityscapesScore(dataset, None if out is None else Path(out))
    seconds, truncated = [], 0
    with Stages(progress, "evaluate", len(dataset)) as stages:
        for i in range(len(dataset)):
            sample = dataset[i]
            began = time.perf_counter()
            found = _predict(predictor, sample, sampling)
            seconds.append(time.perf_counter() - began)
            truncated += found.truncated
            if isinstance(score, LabelScore):
                score.add(sample, found, seconds[-1])
                stages.note(score.running)
            else:
                score.add(i, sample, found)
            stages.advance()
    if isinstance(score, LabelScore):
        return score.report(sampling, seen)
    return BenchmarkReport(
        metric, names, sampling, *score.figures(), tuple(seconds), truncated, seen
    )


def check_metric(metric: str, dataset: Dataset) -> None:
    """Refuse an unknown metric, or one that this data set cannot be scored by.

    Raises SpatialEmbedError ``unknown_metric`` (exit 2), ``not_cityscapes``.
    """
    _check_choice("metric", metric, get_args(Metric))
    if metric == "cityscapes" and not isinstance(dataset, CityscapesDataset):
        raise SpatialEmbedError(
            "not_cityscapes",
            "the metric of Cityscapes needs its ids, with groups and void",
            "give a folder with leftImg8bit/ and gtFine/, or take the metric ap or coco",
        )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SpatialEmbedError(
            f"unknown_{name}", f"{name} {value!r}", f"choose from: {', '.join(choices)}", USAGE
        )


def _predict(predictor: Predictor, sample: Sample, sampling: Sampling) -> Instances:
    """Instances of one image as numpy."""
    engine, (height, width) = predictor.engine, sample.image.shape[:2]
    tiled = isinstance(engine, TiledEngine) and engine.takes_tiles(height, width)
    if sampling == "seed" and not tiled:
        return predictor(sample.image).numpy()
    maps = predictor.embeddings(sample.image)
    if sampling == "seed":  # as in prediction, no other scale is tried for an image in tiles
        return predictor.instances(maps)
    names, membership = predictor.info.class_names, predictor.settings.membership
    return cluster_with_truth(maps, [sample.target], membership, names)[0].numpy()
