"""AP of masks as COCO counts it, by faster-coco-eval, of any data set.

The truth of a COCO file is its own annotations, which may overlap, crowds included. Of another data
set it is the targets; pixels without truth become a crowd of every class, and excuse detections as
crowds do: one that matches nothing is left out if enough of it, by the threshold, lies there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialembed.data.coco import CocoDataset, annotation_runs
from spatialembed.data.dataset import Dataset
from spatialembed.errors import require
from spatialembed.evaluation.benchmark_report import Figures
from spatialembed.evaluation.label_metrics import mean
from spatialembed.method import labels
from spatialembed.method.labels import Rle
from spatialembed.types import Instances, Sample

SIZES = {"APs": 1, "APm": 2, "APl": 3}
"""AP of small, medium and large objects, and where it stands among the sizes of COCO."""


class CocoScore:
    """Collects truth and detections of a data set, to be scored all together."""

    def __init__(self, dataset: Dataset, max_dets: int = 100) -> None:
        """max_dets: Detections of a class in an image that count, the best ones.

        Raises SpatialEmbedError ``missing_extra`` (exit 2).
        """
        require("faster_coco_eval", "coco", "the metric of COCO")
        self._max_dets = max_dets
        self._dataset = dataset
        self._images: list[dict[str, Any]] = []
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._crowded = 0  # images of more detections of a class than count

    def add(self, i: int, sample: Sample, found: Instances) -> None:
        """Note image ``i``: found as numpy. Raises ``bad_annotation``."""
        height, width = found.labels.shape
        image = i + 1
        if isinstance(self._dataset, CocoDataset):
            image = self._dataset.image_id(i)
            truth = _of_annotations(self._dataset, i, height, width)
        else:
            truth = _of_target(sample, len(self._dataset.class_names))
        self._images.append({"id": image, "height": height, "width": width})
        for entry in truth:
            self._truth.append({"id": len(self._truth) + 1, "image_id": image} | entry)
        masks = labels.encode_instances(found.labels, len(found))
        for rle, score, c in zip(
            masks, found.scores.tolist(), found.classes.tolist(), strict=True
        ):  # no box: with one COCO's tools take its area for that of the mask
            entry = {"image_id": image, "category_id": c + 1, "segmentation": rle, "score": score}
            self._found.append(entry)
        self._crowded += np.bincount(found.classes, minlength=1).max() > self._max_dets

    def figures(self) -> Figures:
        """AP, AP50, AP75 and AP by size of object."""
        names = self._dataset.class_names
        counts = {
            "true": [e["category_id"] - 1 for e in self._truth if not e["iscrowd"]],
            "found": [e["category_id"] - 1 for e in self._found],
        }
        truth = {
            "images": self._images,
            "annotations": self._truth,
            "categories": [{"id": c, "name": name} for c, name in enumerate(names, start=1)],
        }
        over_recall = mean(_precision(truth, self._found, self._max_dets), axis=1)  # (10, C, 4)
        by_size = mean(over_recall, axis=0)  # (C, 4)
        figures = {"AP": by_size[:, 0], "AP50": over_recall[0, :, 0], "AP75": over_recall[5, :, 0]}
        notes = ["By faster-coco-eval."]
        if self._crowded:
            notes.append(
                f"COCO counts the best {self._max_dets} detections of a class per image; "
                f"{self._crowded} images have more."
            )
        return Figures(
            figures | {name: by_size[:, at] for name, at in SIZES.items()},
            {name: np.bincount(c, minlength=len(names)) for name, c in counts.items()},
            tuple(notes),
        )


def _precision(truth: dict[str, Any], results: list[dict[str, Any]], max_dets: int) -> np.ndarray:
    """Precision (10, 101, C, 4) of masks by COCO's evaluation; NaN where it is undefined.

    At IoU 0.50 to 0.95; at recall 0 to 1; of the categories by ascending id; of objects of all
    sizes, below 32^2 px, up to 96^2 px, above. A mean over the first three axes of what is not NaN
    is COCO's AP. truth: a COCO instances file as a dictionary; results: a COCO results list, masks
    as compressed RLE.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    true = COCO(truth)
    evaluation = COCOeval_faster(true, true.loadRes(results), "segm")
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[..., 0]  # (10, 101, C, 4, 1) -> 4 axes
    return np.where(precision < 0, np.nan, precision)


def _entry(rle: Rle, class_index: int, area: float, *, crowd: bool = False) -> dict[str, Any]:
    """What COCO's evaluation asks of a true object, but for its ids."""
    return {
        "category_id": class_index + 1,
        "segmentation": rle,
        "area": area,
        "bbox": [0, 0, 0, 0],  # not looked at
        "iscrowd": int(crowd),
    }


def _of_annotations(dataset: CocoDataset, i: int, height: int, width: int) -> list[dict[str, Any]]:
    entries = []
    for annotation in dataset.annotations(i):
        runs = annotation_runs(annotation, height, width)
        start, end = runs.T
        area = float((end - start).sum()) if annotation.area is None else annotation.area
        owner = np.ones(len(runs), np.int64)
        rle = labels.encode_runs(owner, start, end, 1, (height, width))[0]
        entries.append(_entry(rle, annotation.class_index, area, crowd=annotation.crowd))
    return entries


def _of_target(sample: Sample, num_classes: int) -> list[dict[str, Any]]:
    ignore = sample.target.ignore.numpy()
    classes = sample.target.classes.tolist()
    truth = np.where(ignore, 0, sample.target.labels.numpy())
    areas = np.bincount(truth.ravel(), minlength=len(classes) + 1)[1:].tolist()
    masks = labels.encode_instances(truth, len(classes))
    entries = [
        _entry(rle, c, area) for rle, c, area in zip(masks, classes, areas, strict=True) if area
    ]
    if ignore.any():
        rle, area = labels.encode(ignore), float(ignore.sum())
        entries += [_entry(rle, c, area, crowd=True) for c in range(num_classes)]
    return entries
