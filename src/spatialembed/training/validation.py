"""Scores on the validation images by the real clustering, and the thresholds at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from spatialembed import checkpoint
from spatialembed.calibration import fit
from spatialembed.data.module import Images
from spatialembed.model import SpatialEmbeddingNet
from spatialembed.render import maps_panel, write_png
from spatialembed.thresholds import Found, find_all, mean_ap, sweep
from spatialembed.training.setup import Setup

SAMPLES_SHOWN = 3
"""Validation images of which pictures are drawn."""


def validate(
    setup: Setup, net: SpatialEmbeddingNet, done: int, note: Callable[[str], None]
) -> float | None:
    """Mean AP of the validation images, none where none is defined; pictures of the first few.

    done: epochs that were trained. note: told what lasts, image by image.
    """
    scores = []
    engine = setup.engine(net)
    for i, found in enumerate(find_all(engine, setup.normalization, each(setup.val), setup.base)):
        scores.append(mean_ap(found.instances, found.sample, len(setup.val.class_names)))
        note(f"validating {i + 1}/{len(setup.val)}")
        if i < SAMPLES_SHOWN:
            _draw_sample(setup.run, found, done)
    net.train()
    defined = [s for s in scores if not np.isnan(s)]
    return float(np.mean(defined)) if defined else None


def tune_best(setup: Setup) -> None:
    """Choose the best model's thresholds on the validation images, calibrate it, write both."""
    net, info = checkpoint.load(setup.run / "model")
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("tuning thresholds", total=len(setup.val))
        surface = sweep(
            setup.engine(net),
            setup.normalization,
            each(setup.val),
            setup.base,
            len(info.class_names),
            progress=lambda: progress.advance(task),
        )
    best = surface.best()
    thresholds = surface.grid.options(best, setup.base)
    facts = info.training | {"validation_ap_tuned": float(surface.mean()[best])}
    calibration = fit(surface.objects_at(thresholds), thresholds.start)
    checkpoint.save_as(
        setup.run / "model",
        setup.run / "model",
        replace(info, thresholds=thresholds, calibration=calibration, training=facts),
    )


def each(images: Images) -> Iterator[Any]:
    """Sequences by number; iterating them directly would need an end they need not have."""
    return (images[i] for i in range(len(images)))


def _draw_sample(run: Path, found: Found, done: int) -> None:
    offset, log_precision, seed = (m[0].cpu().numpy() for m in found.maps)
    picture = maps_panel(
        found.sample.image,
        offset,
        log_precision,
        seed,
        found.instances.labels,
        found.sample.target.labels.numpy(),
    )
    stem = found.sample.name.replace("/", "_")
    write_png(run / "samples" / f"{stem}_epoch{done:04d}.png", picture)
