"""The demonstration: bundled models on a generated field and on a photograph, or a short training.

Nothing is downloaded: the field is generated, and the coins come with scikit-image. What is found
is held against the truth of the field, against a classical segmentation of the coins, and, after
``train_demo``, against scenes that the training has not seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from spatialembed.evaluation.label_metrics import counts, label_ap, overlaps
from spatialembed.generated.nuclei_and_shapes import (
    SyntheticDataset,
    nuclei_field,
    shapes_scene,
    write_folder,
)
from spatialembed.inference.predictor import Predictor, load
from spatialembed.method.labels import touching_pairs
from spatialembed.results.folder import ResultFolder
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.options import StageOptions, TrainOptions
from spatialembed.types import Instances, Sample

COINS = 24
"""In the photograph."""
COIN_MIN_PIXELS = 200
"""Less is a scratch: the smallest coin has 1,077 px."""
FRESH_SCENES = 12
"""Scenes on which a model that was just trained is shown."""
CROWD = 12
"""Each of them has at least as many shapes that touch another."""


# ---------------------------------------------------------------- bundled models


def demo(
    out: Path, *, seed: int = 0, nuclei: str | Path = "nuclei", shapes: str | Path = "shapes"
) -> None:
    """Run `nuclei` and `shapes` and print how well they did and where the pictures lie.

    out: folder of the results, as ``spatialembed predict`` writes them. seed: of the field.
    nuclei, shapes: the models, as ``load`` takes them. Raises SpatialEmbedError as ``load`` does.
    """
    of_nuclei, of_shapes = load(nuclei), load(shapes)
    with ResultFolder(out, of_nuclei.info.class_names) as results:
        _show_nuclei(of_nuclei, results, seed)
        _show_coins(of_shapes, results)


def _show_nuclei(predictor: Predictor, results: ResultFolder, seed: int) -> None:
    field = nuclei_field(384, 512, seed=seed)
    found, seconds = _timed(predictor, field.image)
    truth = field.target.labels.numpy()
    ap = label_ap(found.labels, truth)
    print(f"A generated field of {truth.max()} nuclei, {truth.shape[0]} x {truth.shape[1]} px:")
    print(f"  {len(found)} objects in {seconds:.1f} s on {predictor.device}")
    print(f"  against its truth: mean AP (IoU .50 to .90) {ap.mean():.3f}, AP50 {ap[0]:.3f}")
    print(f"  {results.add('nuclei', field.image, found)}")


def _show_coins(predictor: Predictor, results: ResultFolder) -> None:
    from skimage import data

    photograph = data.coins()  # (303, 384) uint8
    found, seconds = _timed(predictor, photograph)
    right = int(counts(overlaps(found.labels, coins_truth(photograph)), (0.5,)).tp[0])
    print("A photograph of 24 Greek coins, by a model that has seen generated shapes only:")
    print(f"  {right} of the {COINS} coins found (IoU >= 0.5) in {seconds:.1f} s")
    print(f"  {len(found) - right} other detections: no coin, or only part of one")
    print(f"  {results.add('coins', photograph, found)}")


def coins_truth(photograph: np.ndarray) -> np.ndarray:
    """Labels (H, W) int32 of the coins in scikit-image's photograph (H, W) uint8, 1..24.

    Watershed of the edges, from what is surely dark and surely bright; checked by eye.
    """
    from skimage.filters import sobel
    from skimage.segmentation import watershed

    sure = np.zeros(photograph.shape, np.int32)
    sure[photograph < 30] = 1
    sure[photograph > 150] = 2
    bright = ndimage.binary_fill_holes(watershed(sobel(photograph), sure) == 2)
    parts, count = ndimage.label(bright)
    large = np.bincount(parts.ravel(), minlength=count + 1) >= COIN_MIN_PIXELS
    large[0] = False
    return np.where(large, np.cumsum(large), 0)[parts].astype(np.int32)


def _timed(predictor: Predictor, image: np.ndarray) -> tuple[Instances, float]:
    """What is found, and the seconds it took; the first call, which compiles, is not counted."""
    predictor(image)  # the whole of it: a corner without objects would leave clustering uncompiled
    began = time.perf_counter()
    return predictor(image), time.perf_counter() - began


# ---------------------------------------------------------------- training


def training_options(data: Path, runs: Path, name: str, seed: int = 0) -> TrainOptions:
    """Settings that learn generated shapes in about five minutes on two cores."""
    return TrainOptions(
        data=str(data),
        out=str(runs),
        name=name,
        seed=seed,
        val_fraction=0.1,
        stage1=StageOptions(crop=128, epochs=24, batch=8, lr=1e-3),
        # The scenes differ enough among themselves; only turns and mirrors remain.
        augment=AugmentOptions(
            object_centred=0, zoom=(1, 1), brightness=0, contrast=0, noise=0, blur=0
        ),
        warmup=1,
        validate_every=6,
        workers=1,
    )


def train_demo(out: Path, name: str, *, seed: int = 0, scenes: int = 480) -> float:
    """Train on generated shapes from scratch, then show and score the model on fresh scenes.

    out: folder of the results and of ``scenes/`` and ``runs/NAME/``. scenes: to train on.
    Returns AP at IoU 0.5, mean over the fresh scenes. Raises as ``train`` does.
    """
    from spatialembed.training.train import train

    write_folder(SyntheticDataset("shapes", 160, scenes, seed), out / "scenes")
    run = train(training_options(out / "scenes", out / "runs", name, seed))
    predictor = load(run / "model")
    scores = []
    with ResultFolder(out, predictor.info.class_names) as results:
        for i, scene in enumerate(fresh_scenes(FRESH_SCENES, seed)):
            found = predictor(scene.image)
            results.add(f"fresh_{i:02d}", scene.image, found)
            scores.append(label_ap(found.labels, scene.target.labels.numpy())[0])
    ap50 = float(np.mean(scores))
    print(
        f"AP50 {ap50:.3f}, mean over {len(scores)} fresh scenes of at least {CROWD} touching shapes"
    )
    print(f"  {out}/fresh_00_overlay.png and so on: the detections in them")
    print(f"  {run}/samples: validation scenes with truth and maps; {run}/curves.png")
    return ap50


def fresh_scenes(number: int, seed: int) -> Iterator[Sample]:
    """Crowded scenes of shapes that no ``SyntheticDataset`` has, 256 x 256 px."""
    drawn = 0
    while number:
        scene = shapes_scene(256, 256, seed=(seed, drawn, 1))  # data sets draw from (seed, i)
        drawn += 1
        touching = np.unique(touching_pairs(scene.target.labels.numpy()))
        if len(touching) >= CROWD:
            number -= 1
            yield scene
