"""The benchmarks' own evaluators: cityscapesScripts, and faster-coco-eval for COCO.

They are called by the functions that do the counting, neither by their command lines nor by the
settings that those keep in globals; no file is left beside the results.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from spatialembed.errors import missing_extra
from spatialembed.evaluation.cityscapes_ap import THRESHOLDS


def has_cityscapes() -> bool:
    """Whether cityscapesScripts is installed."""
    return importlib.util.find_spec("cityscapesscripts") is not None


def cityscapes_ap(
    results: Sequence[Path],
    truths: Sequence[Path],
    class_names: Sequence[str],
    *,
    advance: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """AP (C, 10) of classes at IoU 0.50 to 0.95 by cityscapesScripts; NaN where a class is absent.

    results: text files as ``results.cityscapes`` writes them, all in one folder. truths: of each
    its file of instance ids. advance: is called after each image. Second: classes without a
    figure, as the tools fail where there are detections but none of them counts (numpy's index out
    of an empty array); their AP is NaN too.
    """
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as tools

    args = copy.copy(tools.args)
    args.quiet, args.distanceAvailable = True, False
    # Without "..": they compare the paths of masks with it as text, and end the process.
    args.predictionPath = os.path.abspath(Path(results[0]).parent) if results else ""
    matches: dict[str, Any] = {}
    # A name that numpy had up to 2.3, and that these tools still call.
    in1d = patch.object(np, "in1d", lambda a, b: np.isin(a, b).ravel(), create=True)
    with in1d:
        tools.setInstanceLabels(args)
        for result, truth in zip(results, truths, strict=True):
            pair = [os.path.abspath(result)], [str(truth)]
            true = tools.instances2dict(pair[1], verbose=False)
            matches |= tools.matchGtWithPreds(*pair, true, args)
            advance()
    ap = np.full((len(class_names), len(THRESHOLDS)), np.nan)
    failed = []
    for c, name in enumerate(class_names):
        args.instLabels = [name]
        try:
            ap[c] = tools.evaluateMatches(matches, args)[0, 0]
        except IndexError:
            failed.append(name)
    return ap, tuple(failed)


def check_coco() -> None:
    """Raise SpatialEmbedError ``missing_extra`` where faster-coco-eval is not installed."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise missing_extra("faster-coco-eval", "coco", "the metric of COCO")


def coco_precision(
    truth: dict[str, Any], results: list[dict[str, Any]], max_dets: int = 100
) -> np.ndarray:
    """Precision (10, 101, C, 4) of masks by COCO's evaluation; NaN where it is undefined.

    At IoU 0.50 to 0.95; at recall 0 to 1; of the categories by ascending id; of objects of all
    sizes, below 32^2 px, up to 96^2 px, above. truth: a COCO instances file as a dictionary;
    results: a COCO results list, masks as compressed RLE. max_dets: so many of a class in an image
    count, the best ones. A mean over the first three axes of what
    is not NaN is COCO's AP.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    true = COCO(truth)
    evaluation = COCOeval_faster(true, true.loadRes(results), "segm")
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[..., 0]  # (10, 101, C, 4, 1) -> 4 axes
    return np.where(precision < 0, np.nan, precision)
