"""The data that Mask R-CNN and this method are trained on, and how both are scored.

    streets   generated, in the layout of Cityscapes; AP of the Cityscapes benchmark, from masks
    nuclei    real fluorescence images, split by field of view; AP of COCO, up to 1000 detections an
              image; and the label-image AP of StarDist and Cellpose, one owner a pixel

No setting is tuned on the validation images. The label-image AP needs one threshold on the scores:
each contestant's own is chosen on images that it was trained on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from contestants import Contestant, Detections, Recipe, Weights, owned
from race import Schedule, Score

from spatialembed.data.cityscapes import CityscapesDataset, open_cityscapes
from spatialembed.data.dataset import Dataset
from spatialembed.data.folder import open_folder
from spatialembed.data.splitting import split_dataset
from spatialembed.evaluation.cityscapes_ap import MIN_PIXELS, average_precision, mask_overlaps
from spatialembed.evaluation.label_metrics import AP_THRESHOLDS, label_ap
from spatialembed.evaluation.threshold_sweep import areas_of, min_pixels_of
from spatialembed.generated.streets import write_streets
from spatialembed.method.labels import encode, encode_instances
from spatialembed.training.augment import AugmentOptions
from spatialembed.types import Network, Normalization, Sample

ROOT = Path(__file__).resolve().parent.parent
MOST_FINDS = 1000
"""Of an image that count for COCO's AP: its 100 would cut off fields of 375 nuclei."""
CHOOSING = 12
"""Images on which the threshold of the label-image AP is chosen."""
CUTS = tuple(round(0.05 * k, 2) for k in range(1, 20))
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 1.0)
"""Of the training time, after which both are scored, where it is fixed beforehand."""
MINUTES_FULL = 240.0


@dataclass(frozen=True)
class Size:
    """How large a comparison is."""

    name: str
    images: int  # streets, a fifth of them for validation
    street_hw: tuple[int, int]  # px
    street_crop: int
    nuclei_crop: int
    classes: tuple[str, ...] | None  # of the streets; None: all eight
    val: int  # most validation images
    batch: int
    minutes: float  # most training of each on each data set
    patience: int | None
    warmup: int  # images
    workers: int

    def schedule(self, crop: int, augment: AugmentOptions) -> Schedule:
        end = 60 * self.minutes
        if self.patience is None:
            marks = tuple(end * share for share in SHARES)
        else:
            marks = tuple(60.0 * m for m in (0.5, 1, *range(2, int(self.minutes) + 1, 2)))
        return Schedule(
            marks, 0.75 * end, self.patience, self.warmup, crop, self.batch, augment, self.workers
        )


SMALL = Size("small", 120, (384, 768), 256, 256, ("car",), 24, 2, 10.0, None, 64, 0)
FULL = Size("full", 1200, (1024, 2048), 768, 256, None, 200, 8, MINUTES_FULL, 6, 2000, 12)


class Validation(Protocol):
    """Collects what was found in the validation images."""

    def add(self, i: int, sample: Sample, detections: Detections) -> None: ...
    def figures(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Trial:
    """One data set with all that both are told of it."""

    name: str
    train: Dataset
    val: Dataset
    recipe: Recipe
    schedule: Schedule

    def validation(self) -> Validation:
        if isinstance(self.val, CityscapesDataset):
            return CityscapesAp(self.val)
        return CocoAp()

    def score(self) -> Score:
        def figures(contestant: Contestant) -> dict[str, float]:
            validation = self.validation()
            for i in range(len(self.val)):
                sample = self.val[i]
                validation.add(i, sample, contestant.find(sample.image))
            return validation.figures()

        return figures


# ---------------------------------------------------------------- opening


def streets(size: Size, folder: Path, weights: Weights, network: Network = "erfnet") -> Trial:
    """Generated streets, written into ``folder`` once."""
    root = folder / f"streets_{size.street_hw[1]}x{size.street_hw[0]}_{size.images}"
    if not root.exists():
        begun = root.with_name(f"{root.name}.partial")
        write_streets(begun, size.images, size.street_hw, seed=0)
        begun.rename(root)
    train, val = (open_cityscapes(root, split=s, classes=size.classes) for s in ("train", "val"))
    # Upright streets: no turns. Values in [0, 1], as the released model and torchvision take them.
    augment = AugmentOptions(rotate=False)
    recipe = Recipe(
        classes=train.class_names,
        normalization=Normalization("none"),
        min_pixels=MIN_PIXELS,
        detections=100,
        rois=128 if size.street_crop <= 256 else 512,  # 512 in images of 800 px and more
        anchors=(16, 32, 64, 128, 256) if size.street_crop <= 256 else (32, 64, 128, 256, 512),
        weights=weights,
        network=network,
    )
    val = val.subset(_spread(len(val), size.val))
    return Trial("streets", train, val, recipe, size.schedule(size.street_crop, augment))


def nuclei(
    size: Size, weights: Weights, root: Path | None = None, network: Network = "erfnet"
) -> Trial | None:
    """Real nuclei, a fifth of the fields of view for validation; None where they are not there."""
    root = root or data_root() / "nuclei"
    if not root.is_dir():
        return None
    train, val = split_dataset(open_folder(root), group_by="mosaic", seed=0)
    recipe = nuclei_recipe(train, weights, network)
    val = val.subset(_spread(len(val), size.val))
    schedule = size.schedule(size.nuclei_crop, AugmentOptions())
    return Trial("nuclei", train, val, recipe, schedule)


def nuclei_recipe(train: Dataset, weights: Weights, network: Network = "erfnet") -> Recipe:
    """What both are told of images of nuclei."""
    return Recipe(
        classes=train.class_names,
        normalization=Normalization(),
        min_pixels=min_pixels_of(areas_of(train[i].target for i in _spread(len(train), 200))),
        detections=400,
        rois=128,
        anchors=(8, 16, 32, 64, 128),
        weights=weights,
        network=network,
    )


def data_root() -> Path:
    """The folder of real images: SPATIALEMBED_DATA, or shared/data beside the repository."""
    return Path(os.environ.get("SPATIALEMBED_DATA", ROOT.parent / "shared" / "data"))


def _spread(length: int, most: int) -> list[int]:
    """At most so many indices, evenly over all."""
    return np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(int)).tolist()


# ---------------------------------------------------------------- scores


class CityscapesAp:
    """AP of the Cityscapes benchmark; groups, void and small objects as it has them."""

    def __init__(self, dataset: CityscapesDataset) -> None:
        self.dataset = dataset
        self.images: list[Any] = []

    def add(self, i: int, _: Sample, detections: Detections) -> None:
        names = self.dataset.class_names
        of_detections = [names[c] for c in detections.classes]
        ids = self.dataset.instance_ids(i)
        scores = detections.scores.tolist()
        self.images.append(mask_overlaps(ids, list(detections.masks), of_detections, scores, names))

    def figures(self) -> dict[str, float]:
        by_class = average_precision(self.images, self.dataset.class_names)  # (C, 10)
        return {"ap": _mean(by_class), "ap50": _mean(by_class[:, 0])}


class CocoAp:
    """AP of COCO for one class of masks, by faster-coco-eval."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.truth: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def add(self, i: int, sample: Sample, detections: Detections) -> None:
        labels = sample.target.labels.numpy()
        size = {"height": labels.shape[0], "width": labels.shape[1]}
        self.images.append({"id": i + 1, **size})
        of_image = {"image_id": i + 1, "category_id": 1}
        areas = np.bincount(labels.ravel())[1:]
        for k, rle in enumerate(encode_instances(labels, len(areas))):
            number = len(self.truth) + 1
            entry = {"id": number, "segmentation": rle, "area": int(areas[k]), "iscrowd": 0}
            self.truth.append(of_image | entry)
        for mask, score in zip(detections.masks, detections.scores.tolist(), strict=True):
            self.found.append(of_image | {"segmentation": encode(mask), "score": score})

    def figures(self) -> dict[str, float]:
        if not self.found:
            return {"ap": 0.0, "ap50": 0.0}
        from faster_coco_eval import COCO, COCOeval_faster

        nuclei = [{"id": 1, "name": "nucleus"}]
        truth = COCO({"images": self.images, "annotations": self.truth, "categories": nuclei})
        evaluation = COCOeval_faster(truth, truth.loadRes(self.found), "segm")
        evaluation.params.maxDets = [MOST_FINDS]
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])[..., 0, 0, -1]  # (10, 101), all sizes
        return {"ap": float(precision.mean()), "ap50": float(precision[0].mean())}


def _mean(values: np.ndarray) -> float:
    """Over what is defined; 0 where nothing is."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else 0.0


def label_figures(contestant: Contestant, trial: Trial) -> dict[str, float]:
    """Label-image AP of the validation images, at a threshold chosen on training images."""
    cut = best_cut(contestant, trial.train)["cut"]
    val = [trial.val[i] for i in range(len(trial.val))]
    aps = _label_aps([contestant.find(sample.image) for sample in val], val, cut)
    return {"cut": cut, "label_ap": _mean(aps.mean(1)), "label_ap50": _mean(aps[:, 0])}


def best_cut(contestant: Contestant, images: Dataset) -> dict[str, float]:
    """The threshold on the scores whose label-image AP is best on some images, and that AP."""
    chosen = [images[i] for i in _spread(len(images), CHOOSING)]
    found = [contestant.find(sample.image) for sample in chosen]
    by_cut = [_mean(_label_aps(found, chosen, cut).mean(1)) for cut in CUTS]
    return {"cut": CUTS[int(np.argmax(by_cut))], "ap": max(by_cut)}


def _label_aps(found: Sequence[Detections], samples: Sequence[Sample], cut: float) -> np.ndarray:
    """(I, 9) AP of each image at IoU 0.50 to 0.90; NaN where neither has an object."""
    rows = [
        label_ap(owned(detections, cut), sample.target.labels.numpy())
        for detections, sample in zip(found, samples, strict=True)
    ]
    return np.stack(rows) if rows else np.zeros((0, len(AP_THRESHOLDS)))


def with_minutes(size: Size, minutes: float | None) -> Size:
    """The same with another budget."""
    return size if minutes is None else replace(size, minutes=minutes)
