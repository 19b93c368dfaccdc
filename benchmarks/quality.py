"""What tells best how good an object is: candidates for the map to expected IoU, cross-validated.

    python benchmarks/quality.py --model nuclei --data DIR --group-by mosaic

Each row maps one figure of the object, as ``calibration`` maps the mean seed, and is scored on the
objects of images (or groups) that were left out of its fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from spatialembed.data.folder import FolderDataset
from spatialembed.data.open import select
from spatialembed.data.splitting import group_keys
from spatialembed.evaluation.label_metrics import best_ious
from spatialembed.evaluation.threshold_sweep import overlaps_with
from spatialembed.inference.predictor import Predictor, load
from spatialembed.method.calibration import (
    Objects,
    auc,
    calibration_error,
    cross_validated,
    mean_seeds,
    objects_of,
    rank_correlation,
)
from spatialembed.method.cluster import cluster
from spatialembed.method.geometry import embed, precision
from spatialembed.options import PartOptions
from spatialembed.types import Embeddings, Instances, Sample


def measured(predictor: Predictor, sample: Sample, group: int) -> tuple[Objects, np.ndarray]:
    """Objects of an image, and figures (F, N) of each."""
    maps = predictor.embeddings(sample.image)
    found = cluster(maps, predictor.settings)[0].numpy()
    pairs = overlaps_with(sample, found)
    ious = best_ious(pairs, found.classes, sample.target.classes.numpy())
    objects = objects_of(found, maps.seed[0], pairs.found_ids, ious, group)
    figures = np.array(
        [found.scores, mean_seeds(found, maps.seed[0]), list(mean_phis(maps, found)), found.areas]
    ).reshape(4, -1)[:, pairs.found_ids - 1]
    score, seed, _, _ = figures
    return objects, np.concatenate([figures, [score * seed]])


def mean_phis(maps: Embeddings, found: Instances) -> Iterator[float]:
    """Mean phi over the pixels of each instance."""
    e, p = embed(maps.offset[0]).numpy(), precision(maps.log_precision[0]).numpy()
    for k in range(len(found)):
        mask = found.labels == k + 1
        seeds = maps.seed[0, found.classes[k]].numpy()[mask]
        at = int(np.abs(seeds - found.scores[k]).argmin())
        inside, rates = e[:, mask], p[:, mask]  # (2, M), (S, M)
        d = (rates[:, [at]] * (inside - inside[:, [at]]) ** 2).sum(axis=0)
        yield float(np.exp(-d).mean())


NAMES = ("score", "mean seed", "mean phi", "area", "score x mean seed")


def table(objects: Objects, figures: np.ndarray) -> Table:
    """A row a figure."""
    table = Table(title=f"{len(objects.ious)} objects")
    for heading in ("mapped", "calibration error", "mean |error|", "rank correlation", "AUC .75"):
        table.add_column(heading, justify="left" if heading == "mapped" else "right")
    for name, values in zip(NAMES, figures, strict=True):
        said = cross_validated(objects._replace(mean_seeds=values))
        good = objects.ious >= 0.75
        figures_of_row = (
            calibration_error(said, objects.ious),
            float(np.abs(said - objects.ious).mean()),
            rank_correlation(values, objects.ious),
            auc(values, good),
        )
        table.add_row(name, *(f"{value:.3f}" for value in figures_of_row))
    return table


def groups_of(dataset: FolderDataset, column: str | None) -> list[int]:
    names = dataset.names if column is None else group_keys(dataset, column)
    return np.unique(names, return_inverse=True)[1].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--data", required=True)
    parser.add_argument("--group-by")
    given = parser.parse_args()
    dataset = select(PartOptions(data=given.data, group_by=given.group_by))
    predictor, groups = load(given.model, device="cpu"), groups_of(dataset, given.group_by)
    parts = [
        measured(predictor, dataset[i], groups[i]) for i in track(range(len(dataset)), "measuring")
    ]
    objects, figures = zip(*parts, strict=True)
    Console().print(table(Objects.merged(objects), np.concatenate(figures, axis=1)))


if __name__ == "__main__":
    main()
