"""What each part of the method brings: table 2 of the paper, on generated streets.

    python benchmarks/ablation.py            all runs that are not there yet, then tables and plots
    python benchmarks/ablation.py --page     tables and plots alone, of what is there

Six configurations, three seeds each, all with the same number of steps on the same streets. Each is
scored on streets held out, from true centres and from seeds, after both stages of the training. A
run that was stopped goes on where it was; one that is finished is not repeated. The runs come seed
by seed, so that there is a whole table early.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from spatialembed.data.cityscapes import CityscapesDataset, open_cityscapes
from spatialembed.evaluation.cityscapes_ap import (
    MIN_PIXELS,
    ClassOverlaps,
    average_precision,
    overlaps,
)
from spatialembed.files import atomic_write
from spatialembed.generated.streets import write_streets
from spatialembed.inference.predictor import load
from spatialembed.method.cluster import cluster
from spatialembed.method.geometry import margin_px
from spatialembed.method.ground_truth import cluster_with_truth
from spatialembed.method.loss import Center
from spatialembed.options import ClusterOptions
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.options import StageOptions, TrainOptions
from spatialembed.types import Embeddings, Normalization, Target


class Configuration(NamedTuple):
    """A row of the table."""

    center: Center
    elliptical: bool
    fixed: bool = False


CONFIGURATIONS = {
    "fixed + centroid": Configuration("centroid", elliptical=False, fixed=True),
    "circular + centroid": Configuration("centroid", elliptical=False),
    "circular + learnable": Configuration("learnable", elliptical=False),
    "elliptical + centroid": Configuration("centroid", elliptical=True),
    "elliptical + learnable": Configuration("learnable", elliptical=True),
    "elliptical + medoid": Configuration("medoid", elliptical=True),
}


@dataclass(frozen=True)
class Plan:
    """What is the same for all runs."""

    size_hw: tuple[int, int]
    images: int  # for training
    held_out: int  # for the scores
    classes: str | None  # with commas; None: all eight
    stage1: StageOptions
    stage2: StageOptions
    margin: float  # px, of the fixed bandwidth
    min_pixels: int  # smallest detection

    @property
    def names(self) -> list[str] | None:
        return self.classes.split(",") if self.classes else None


SMALL = Plan(  # four minutes a run on a core that does nothing else; of cars, half of all objects
    size_hw=(256, 512),
    images=240,
    held_out=60,
    classes="car",
    stage1=StageOptions(crop=128, epochs=10, batch=4, lr=1e-3, crops=400),
    stage2=StageOptions(crop=256, epochs=1, batch=2, lr=1e-4, crops=160, freeze_batchnorm=True),
    margin=16,
    min_pixels=32,
)
PLANS = {
    "small": SMALL,
    "eight": replace(SMALL, classes=None),  # all classes, the rare ones hardly learned in this time
    "large": Plan(  # the published stages with fewer epochs, for a GPU
        size_hw=(1024, 2048),
        images=1000,
        held_out=200,
        classes=None,
        stage1=StageOptions(crop=512, epochs=60, batch=12, lr=5e-4, crops=3000),
        stage2=StageOptions(
            crop=1024, epochs=15, batch=2, lr=5e-5, crops=1000, freeze_batchnorm=True
        ),
        margin=32,
        min_pixels=128,
    ),
}
VALIDATION = 8
"""Streets on which a training tunes its thresholds; the scores here do not depend on them."""


# ---------------------------------------------------------------- one run


def run_folder(work: Path, name: str, seed: int) -> Path:
    return work / f"{name.replace(' + ', '_')}_{seed}"


def trained(plan: Plan, work: Path, name: str, seed: int, device: str) -> list[Path]:
    """Models after the first and after the second stage."""
    configuration, out = CONFIGURATIONS[name], run_folder(work, name, seed)
    none = replace(plan.stage1, epochs=0)
    options = TrainOptions(
        data=str(work / "streets"),
        classes=plan.classes,
        out=str(out),
        name="stage1",
        center=configuration.center,
        elliptical=configuration.elliptical,
        margin=plan.margin if configuration.fixed else None,
        normalization=Normalization(kind="none"),
        # Around objects first, as published; flips, and little more, in so short a training.
        augment=AugmentOptions(object_centred=1, rotate=False, contrast=0.1, noise=0.02, blur=0),
        stage1=plan.stage1,
        stage2=replace(plan.stage2, epochs=0),
        warmup=1,
        validate_every=10_000,  # at the end alone: the last model is the one that is kept
        min_pixels=plan.min_pixels,
        seed=seed,
        device=device,
        workers=0 if plan.size_hw[0] <= 256 else 4,
    )
    first = finished(options)
    # As a run of its own, so that the model between the stages stays.
    second = finished(
        replace(
            options,
            name="stage2",
            init=str(first / "model"),
            stage1=none,
            stage2=plan.stage2,
            augment=replace(options.augment, object_centred=0),
        )
    )
    return [first / "model", second / "model"]


def finished(options: TrainOptions) -> Path:
    """The run with these settings: begun, or gone on with."""
    from spatialembed.training.train import train

    run = Path(options.out, str(options.name))
    if (run / "config.yaml").exists():
        return train(TrainOptions(resume=str(run), workers=options.workers))
    return train(options)


def one_run(plan: Plan, work: Path, name: str, seed: int, device: str) -> None:
    """Train and score; what comes out is in score.json."""
    began = time.monotonic()
    models = trained(plan, work, name, seed, device)
    streets = open_cityscapes(work / "held_out", classes=plan.names)
    scores = [scored(model, streets, plan.min_pixels, device) for model in models]
    result = {
        "configuration": name,
        "seed": seed,
        "classes": list(streets.class_names),
        "stage1": scores[0].ap,
        "stage2": scores[1].ap,
        "objects": scores[1].objects,
        "minutes": (time.monotonic() - began) / 60,
    }
    with atomic_write(run_folder(work, name, seed) / "score.json") as path:
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- scores


class Score(NamedTuple):
    """Of one model on the held-out streets."""

    ap: dict[str, list[list[float | None]]]  # sampling: (C, 10) by IoU; None: no such object
    objects: list[list[float]]  # area, width, height, margins: px, of each true object


def scored(model: Path, streets: CityscapesDataset, min_pixels: int, device: str) -> Score:
    """AP from true centres and bandwidths ("truth") and from seeds ("seed"), and the margins.

    Seeds from 0.5 on, for all models: AP ranks by score, so that a low start costs nothing.
    """
    names, predictor = streets.class_names, load(model, device=device)
    options = ClusterOptions(start=0.5, min_pixels=min_pixels)
    images: dict[str, list[dict[str, ClassOverlaps]]] = {"truth": [], "seed": []}
    objects: list[list[float]] = []
    for i in range(len(streets)):
        sample, ids = streets[i], streets.instance_ids(i)
        maps = predictor.embeddings(sample.image)
        sampled = {
            "truth": cluster_with_truth(maps, [sample.target], class_names=names),
            "seed": cluster(maps, options, names),
        }
        for sampling, found in sampled.items():
            images[sampling].append(overlaps(ids, found[0].numpy(), names))
        objects += margins(maps, sample.target)
    ap = {key: average_precision(of, names) for key, of in images.items()}
    plain = {key: np.where(np.isnan(a), None, a).tolist() for key, a in ap.items()}
    return Score(plain, objects)


def margins(maps: Embeddings, target: Target) -> Iterator[list[float]]:
    """Area, width, height in px of each true object that counts, and its margins (one an axis)."""
    labels = np.where(target.ignore.numpy(), 0, target.labels.numpy())
    raw = maps.log_precision[0]  # (S, H, W)
    for k in range(1, len(target.classes) + 1):
        y, x = np.nonzero(labels == k)
        if len(y) >= MIN_PIXELS:
            mean_raw = raw[:, y, x].mean(1)  # (S,)
            box = float(np.ptp(x)) + 1, float(np.ptp(y)) + 1
            yield [float(len(y)), *box, *(round(m, 3) for m in margin_px(mean_raw).tolist())]


# ---------------------------------------------------------------- all runs


def make_streets(plan: Plan, work: Path) -> None:
    """Streets to train on and to score on, unless they are there."""
    parts = {
        "streets": (plan.images + VALIDATION, VALIDATION / (plan.images + VALIDATION), 0),
        "held_out": (plan.held_out, 0.5, 1),
    }
    for folder, (images, val_fraction, seed) in parts.items():
        if len(list((work / folder).rglob("*_instanceIds.png"))) < images:
            write_streets(work / folder, images, plan.size_hw, seed, val_fraction=val_fraction)


def wanted(names: Iterable[str], seeds: Iterable[int]) -> list[tuple[str, int]]:
    names = list(names)
    return [(name, seed) for seed in seeds for name in names]


def unfinished(work: Path, runs: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return [run for run in runs if not (run_folder(work, *run) / "score.json").exists()]


def in_processes(
    work: Path, runs: Sequence[tuple[str, int]], jobs: int, given: Sequence[str]
) -> int:
    """Run them, some at a time; returns how many failed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (cores or 1) // jobs))}

    def run(which: tuple[str, int]) -> bool:
        name, seed = which
        folder = run_folder(work, name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, *given, "--one", name, str(seed)]
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            code = subprocess.run(
                command, env=environment, stdout=log, stderr=log, check=False
            ).returncode
        said = f"exit {code}, see {folder / 'log.txt'}" if code else "done"
        progress.console.print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}: {said}")
        progress.advance(task)
        return code == 0

    with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("runs", total=len(runs))
        return list(pool.map(run, runs)).count(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=PLANS, default="small")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="folder of runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=[*CONFIGURATIONS])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (1 for one GPU)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--page", action="store_true", help="run nothing, renew the page only")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    plan, work = PLANS[options.size], options.work / options.size
    if options.one:
        name, seed = options.one
        one_run(plan, work, name, int(seed), options.device)
        return
    failed = 0
    if not options.page:
        make_streets(plan, work)
        missing = unfinished(work, wanted(options.only, options.seeds))
        given = ["--size", options.size, "--work", str(options.work), "--device", options.device]
        failed = in_processes(work, missing, options.jobs, given)
    from ablation_page import renew, renew_overfit

    renew(options.size, asdict(plan), collected(work))
    renew_overfit()
    sys.exit(bool(failed))


def collected(work: Path) -> list[dict[str, Any]]:
    """What the finished runs came to, in the order of the table."""
    every = [json.loads(path.read_text()) for path in sorted(work.glob("*/score.json"))]
    return sorted(every, key=lambda r: (list(CONFIGURATIONS).index(r["configuration"]), r["seed"]))


if __name__ == "__main__":
    main()
