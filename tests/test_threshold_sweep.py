"""Scores of whole images and the choice of thresholds: known answers, and the plain way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spatialembed.evaluation.label_metrics import mean_over_images
from spatialembed.evaluation.threshold_sweep import (
    FOREGROUNDS,
    STARTS,
    Grid,
    Surface,
    ap_by_start,
    areas_of,
    mean_ap,
    min_pixels_of,
    overlaps_with,
    sweep,
)
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.types import UNIT, Embeddings, Instances, Normalization, Sample, Target

SIZE = 40
PLAIN = Normalization("none")
BASE = ClusterOptions(min_pixels=20)


def square(k: int) -> tuple[slice, slice]:
    """The k-th of nine places of 9 x 9 px."""
    return slice(13 * (k // 3), 13 * (k // 3) + 9), slice(13 * (k % 3), 13 * (k % 3) + 9)


def sample(places: Sequence[int], classes: Sequence[int] | None = None) -> Sample:
    labels = np.zeros((SIZE, SIZE), np.int32)
    for number, k in enumerate(places, start=1):
        labels[square(k)] = number
    truth = Target(
        torch.from_numpy(labels),
        torch.tensor(classes if classes is not None else [0] * len(places)),
        torch.zeros(SIZE, SIZE, dtype=torch.bool),
    )
    return Sample(np.zeros((SIZE, SIZE), np.uint8), truth, "s")


def engine(seeds: Sequence[float]):  # type: ignore[no-untyped-def]
    """A network that sees a square at each place, with these seeds; all pixels at its centre."""

    def run(images: Tensor) -> Embeddings:
        offset, seed = torch.zeros(1, 2, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE)
        y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        for k, value in enumerate(seeds):
            where = square(k)
            offset[0, 0][where] = (where[1].start + 4 - x[where]) / UNIT
            offset[0, 1][where] = (where[0].start + 4 - y[where]) / UNIT
            seed[0, 0][where] = value
        return Embeddings(offset, torch.ones(1, 1, SIZE, SIZE), seed)

    return run


def swept(seeds: Sequence[float], images: Sequence[Sample], base: ClusterOptions = BASE) -> Surface:
    return sweep(engine(seeds), PLAIN, images, base, 1)


def at(surface: Surface, **changes: Any) -> float:
    """Mean AP at the base with some thresholds changed."""
    return float(surface.mean()[surface.grid.cell(replace(surface.base, **changes))])


def test_the_start_between_the_true_and_the_false_is_found() -> None:
    surface = swept([0.72, 0.68, 0.97], [sample([0, 2])])
    chosen = surface.grid.options(surface.best(), BASE)
    assert (chosen.start, chosen.foreground) == (0.7, FOREGROUNDS[0])
    assert at(surface, start=0.7) == 1
    assert at(surface, start=0.6) == pytest.approx(2 / 3)  # and the false one
    assert at(surface, start=0.9) == pytest.approx(1 / 2)  # a true one is lost
    assert math.isnan(at(surface, foreground=0.6, start=0.5))  # no such setting


def test_the_smallest_object_is_found() -> None:
    """A square has 81 px, the test is above ``min_pixels``."""
    surface = swept([0.95], [sample([0])], ClusterOptions(min_pixels=81))
    assert at(surface) == 0
    assert at(surface, min_pixels=40) == 1
    chosen = surface.grid.options(surface.best(), surface.base)
    assert chosen.min_pixels == surface.grid.min_pixels[0]  # of equal ones the first


def test_membership_is_swept() -> None:
    """An object whose rim embeds at phi .45 of its centre is whole below that membership only."""

    def with_rim(images: Tensor) -> Embeddings:
        maps = engine([0.95])(images)
        rim = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        rim[square(0)] = True
        rim[1:8, 1:8] = False
        p = math.exp(10)  # of log-precision 1, in 1/unit^2
        maps.offset[0, 0][rim] += math.sqrt(-math.log(0.45) / p)
        maps.seed[0, 0][rim] = 0.7
        return maps

    surface = sweep(with_rim, PLAIN, [sample([0])], BASE, 1)
    assert at(surface, membership=0.4) == at(surface, membership=0.3) == 1
    # The inner 49 of 81 px: IoU .605, right at .50, .55 and .60 of the nine.
    assert at(surface, membership=0.5) == pytest.approx(3 / 9)
    assert surface.grid.options(surface.best(), BASE).membership == 0.3


def test_what_is_in_force_is_always_tried() -> None:
    odd = ClusterOptions(foreground=0.33, start=0.77, membership=0.37, min_pixels=7)
    grid = Grid.around(odd)
    assert grid.options(grid.cell(odd), odd) == odd
    assert all(list(values) == sorted(set(values)) for values in grid)


def test_the_network_runs_once_on_an_image() -> None:
    calls = []

    def counting(images: Tensor) -> Embeddings:
        calls.append(1)
        return engine([0.95])(images)

    sweep(counting, PLAIN, [sample([0])] * 3, BASE, 1)
    assert len(calls) == 3


def test_objects_below_start_are_kept_for_the_calibration() -> None:
    surface = swept([0.95, 0.6, 0.7], [sample([0, 1]), sample([0, 1])])
    objects = surface.objects_at(ClusterOptions(foreground=0.5, start=0.9, min_pixels=20))
    assert objects.scores.tolist() == pytest.approx([0.95, 0.7, 0.6] * 2)
    assert objects.ious.tolist() == [1, 0, 1] * 2
    assert objects.groups.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(objects.mean_seeds, objects.scores, rtol=1e-6)


@pytest.mark.parametrize("seeds", [[0.95, 0.5], []], ids=["false detections", "nothing"])
@pytest.mark.parametrize("fault", ["LBL-13"])
def test_without_objects_there_is_nothing_to_choose_by(fault: str, seeds: list[float]) -> None:
    """Else thresholds with false detections (AP 0) would beat those without (AP undefined)."""
    surface = swept(seeds, [sample([])])
    assert surface.grid.options(surface.best(), BASE) == BASE


def test_the_mean_is_that_of_evaluate() -> None:
    """Over images first, class by class; a class or image without objects is left out."""
    nan = math.nan
    ap = np.array([[1.0, nan], [0.5, 0.2], [nan, nan], [0.0, nan]])  # (I, C)
    assert mean_over_images(ap) == pytest.approx((0.5 + 0.2) / 2)
    assert mean_over_images(ap, np.array([2, 0, 1, 1])) == pytest.approx(2 / 3)
    assert math.isnan(mean_over_images(ap[2:3]))


def random_maps(seed: int, classes: int) -> Embeddings:
    g = torch.Generator().manual_seed(seed)
    offset = torch.randn(1, 2, SIZE, SIZE, generator=g) * 3 / UNIT
    raw = 0.9 + 0.1 * torch.randn(1, 2, SIZE, SIZE, generator=g)
    return Embeddings(offset, raw, torch.rand(1, classes, SIZE, SIZE, generator=g))


@pytest.mark.parametrize("foreground", [0.7, 0.99])
def test_thresholds_whose_start_is_below_their_foreground_are_a_cell_too(foreground: float) -> None:
    """Above all tried starts, too: then there is no other one."""
    base = replace(BASE, start=0.6, foreground=foreground)
    surface = swept([0.75, 0.995], [sample([0, 1])], base)
    assert at(surface) == pytest.approx(1.0 if foreground < 0.75 else 0.5)
    assert at(surface, start=0.5) != at(surface, start=0.5)  # not tried: NaN
    assert len(surface.objects_at(base).ious) == (2 if foreground < 0.75 else 1)


@pytest.mark.parametrize("seed", range(6))
def test_one_clustering_serves_all_starts(seed: int) -> None:
    """AP by leaving out low scores is AP of clustering anew."""
    maps, truth = random_maps(seed, 2), sample(range(9), [0, 1, 0, 1, 0, 1, 0, 1, 0])
    lowest = ClusterOptions(start=0.4, foreground=0.4, min_pixels=5)
    found = cluster(maps, lowest)[0].numpy()
    assert len(found) > 5
    starts = [s for s in STARTS if s >= 0.4]
    classes = truth.target.classes.numpy()
    rows = ap_by_start(found, overlaps_with(truth, found), classes, starts, 2)  # (S, C)
    for start, by_class in zip(starts, rows, strict=True):
        anew = ClusterOptions(start=start, foreground=0.4, min_pixels=5)
        expected = mean_ap(cluster(maps, anew)[0].numpy(), truth, 2)
        assert mean_over_images(by_class[None]) == pytest.approx(expected, nan_ok=True), start


def found_as(truth: Sample, classes: Sequence[int]) -> Instances:
    """The true labels, found with these classes."""
    return Instances(
        truth.target.labels.numpy(), np.ones(len(classes), np.float32), np.array(classes, np.int64)
    )


def test_classes_are_scored_apart() -> None:
    truth = sample([0, 1, 2], [0, 0, 1])
    assert mean_ap(found_as(truth, [0, 0, 1]), truth, 2) == 1
    # Class 0: one of two and nothing false; class 1: one right, one false.
    assert mean_ap(found_as(truth, [0, 1, 1]), truth, 2) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert mean_ap(found_as(truth, [0, 0, 1]), truth, 3) == 1  # a class that is not there
    assert math.isnan(mean_ap(found_as(sample([]), []), sample([]), 2))


def test_min_pixels_of_the_objects() -> None:
    def usual(truths: Sequence[Target]) -> int:
        return min_pixels_of(areas_of(truths))

    assert usual([sample([0, 1]).target, sample([]).target]) == 40  # half of 81
    assert usual([sample([]).target]) == 0
    assert usual([]) == 0
