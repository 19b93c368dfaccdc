"""Scores on the validation images by the real clustering, and the thresholds at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from spatialembed.console import track
from spatialembed.data.cityscapes_ids import IDS, NUMBERED
from spatialembed.data.dataset import FileDataset
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.cityscapes_ap import ClassOverlaps, average_precision, overlaps
from spatialembed.evaluation.threshold_sweep import Grid, mean_ap, sweep
from spatialembed.images.write import write_png
from spatialembed.inference import model_file
from spatialembed.method.calibration import fit
from spatialembed.method.cluster import cluster
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.normalization import network_input
from spatialembed.pictures.maps import maps_panel
from spatialembed.training.setup import Setup, each
from spatialembed.types import Embeddings, Instances, Sample, Target

SAMPLES_SHOWN = 3
"""Validation images of which pictures are drawn."""
VOID_ID, ROAD_ID = 0, 7
"""Cityscapes ids of what is not evaluated, and of plain background."""

logger = logging.getLogger("spatialembed")


def validate(
    setup: Setup, net: SpatialEmbeddingNet, done: int, note: Callable[[str], None]
) -> dict[str, float]:
    """Figures of the validation images: ``val_ap`` chooses the best model; none without objects.

    One image is in memory at a time; what stays of it is a number or a small table. Pictures of the
    first few are written. done: epochs that were trained. note: called with
    a line of progress for each image.
    """
    names = tuple(setup.val.class_names)
    scores: list[float] = []
    tables: list[dict[str, ClassOverlaps]] = []
    engine, objects = setup.engine(net), 0
    for i, sample in enumerate(each(setup.val)):
        maps = engine(network_input(sample.image, setup.normalization)[None])
        found = cluster(maps, setup.base, names)[0].numpy()
        if setup.options.val_metric == "cityscapes":
            tables.append(overlaps(_ids(setup.val, i, sample), found, names))
        else:
            scores.append(mean_ap(found, sample, len(names)))
        objects += len(sample.target.classes)
        note(f"validating {i + 1}/{len(setup.val)}")
        if i < SAMPLES_SHOWN:
            _draw_sample(setup.run, sample, maps, found, done)
    net.train()
    if not objects:
        return {}
    if setup.options.val_metric == "cityscapes":
        return _cityscapes_figures(tables, names)
    return {"val_ap": float(np.nanmean(scores))}


def _cityscapes_figures(
    tables: Sequence[dict[str, ClassOverlaps]], names: Sequence[str]
) -> dict[str, float]:
    """AP and AP50 of the benchmark, and AP by class, of classes that have a true instance."""
    ap = average_precision(tables, names)  # (C, 10)
    there = ~np.isnan(ap[:, 0])
    if not there.any():
        return {}
    by_class = {f"val_ap_{names[c]}": float(ap[c].mean()) for c in np.flatnonzero(there).tolist()}
    mean = {"val_ap": float(ap[there].mean()), "val_ap50": float(ap[there, 0].mean())}
    return mean | by_class


def _ids(images: FileDataset, i: int, sample: Sample) -> np.ndarray:
    """Cityscapes ids (H, W) of an image: of its file where there is one, else made of its truth."""
    stored = getattr(images, "instance_ids", None)
    if stored is not None:
        ids: np.ndarray = stored(i)
        return ids
    return cityscapes_ids(sample.target, images.class_names)


def cityscapes_ids(target: Target, class_names: Sequence[str]) -> np.ndarray:
    """Truth whose classes are named as in Cityscapes -> ids (H, W) int64; ignored becomes void.

    Raises SpatialEmbedError ``too_many_objects``: ids number at most 1000 instances of a class.
    """
    classes = target.classes.numpy()
    ids = np.full(len(classes) + 1, ROAD_ID, np.int64)
    for c, name in enumerate(class_names):
        mine = np.flatnonzero(classes == c)
        if len(mine) > NUMBERED:
            raise SpatialEmbedError(
                "too_many_objects",
                f"{len(mine)} instances of {name} in one image; Cityscapes ids end at {NUMBERED}",
                "set val_metric label",
            )
        ids[mine + 1] = IDS[name] * NUMBERED + np.arange(len(mine))
    return np.where(target.ignore.numpy(), VOID_ID, ids[target.labels.numpy()])


def tune_best(setup: Setup) -> None:
    """Choose the best model's thresholds on the validation images, calibrate it, write both.

    Without such images thresholds and calibration are those of the model to start from, if any.
    What is tuned is the AP of label images. That of the benchmark ranks by score and gains by every
    lower ``start``, whatever a user sees then: under it the thresholds stay those of validation.
    """
    net, info = model_file.load(setup.run / "model")
    if not len(setup.val):
        if setup.options.init:
            before = model_file.load(setup.options.init)[1].calibration
            kept = replace(info, calibration=before)
            model_file.save_as(setup.run / "model", setup.run / "model", kept)
        return
    validated = info.training.get("validation_ap") is not None
    tuned = setup.options.val_metric == "label" and validated
    grid = Grid.around(setup.base) if tuned else Grid.of_starts(setup.base)
    name = "tuning thresholds" if tuned else "calibrating"
    surface = sweep(
        setup.engine(net),
        setup.normalization,
        track(each(setup.val), name, total=len(setup.val)),
        setup.base,
        len(info.class_names),
        grid=grid,
    )
    thresholds, facts = setup.base, dict(info.training)
    if tuned:
        best = surface.best()
        thresholds = surface.grid.options(best, setup.base)
        facts["validation_ap_tuned"] = float(surface.mean()[best])
        if facts["validation_ap_tuned"] == 0:
            logger.warning(
                "validation AP is 0: this model detects nothing rightly (train longer, or see the "
                "advice of spatialembed doctor)"
            )
    calibration = fit(surface.objects_at(thresholds), thresholds.start)
    model_file.save_as(
        setup.run / "model",
        setup.run / "model",
        replace(info, thresholds=thresholds, calibration=calibration, training=facts),
    )


def _draw_sample(run: Path, sample: Sample, maps: Embeddings, found: Instances, done: int) -> None:
    offset, log_precision, seed = (m[0].cpu().numpy() for m in maps)
    truth = sample.target.labels
    picture = maps_panel(sample.image, offset, log_precision, seed, found.labels, truth)
    stem = sample.name.replace("/", "_")
    write_png(run / "samples" / f"{stem}_epoch{done:04d}.png", picture)
