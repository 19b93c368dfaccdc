"""Scores of whole images and the choice of thresholds: known answers, and the plain way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from spatialembed.cluster import ClusterOptions, cluster
from spatialembed.thresholds import (
    FOREGROUNDS,
    STARTS,
    _ap_by_start,
    find_all,
    mean_ap,
    tune_thresholds,
    usual_min_pixels,
)
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


def test_the_start_between_the_true_and_the_false_is_found() -> None:
    net, images = engine([0.72, 0.68, 0.97]), [sample([0, 2])]
    chosen, table = tune_thresholds(net, PLAIN, images, BASE, 1)
    assert (chosen.start, chosen.foreground) == (0.7, FOREGROUNDS[0])
    assert table[0.5, 0.7, 20] == 1
    assert table[0.5, 0.6, 20] == pytest.approx(2 / 3)  # and the false one
    assert table[0.5, 0.9, 20] == pytest.approx(1 / 2)  # a true one is lost
    assert chosen.membership == BASE.membership


def test_the_smallest_object_is_found() -> None:
    """A square has 81 px, the test is above ``min_pixels``."""
    chosen, table = tune_thresholds(
        engine([0.95]), PLAIN, [sample([0])], ClusterOptions(min_pixels=81), 1
    )
    assert table[0.5, 0.9, 81] == 0
    assert table[0.5, 0.9, 40] == 1
    assert chosen.min_pixels == min(size for _, _, size in table)  # of equal ones the first


@pytest.mark.parametrize("seeds", [[0.95, 0.5], []], ids=["false finds", "nothing"])
@pytest.mark.parametrize("fault", ["LBL-13"])
def test_without_objects_there_is_nothing_to_choose_by(fault: str, seeds: list[float]) -> None:
    """Else thresholds with false finds (AP 0) would beat those without (AP undefined)."""
    chosen, _ = tune_thresholds(engine(seeds), PLAIN, [sample([])], BASE, 1)
    assert chosen == BASE


def random_maps(seed: int, classes: int) -> Embeddings:
    g = torch.Generator().manual_seed(seed)
    offset = torch.randn(1, 2, SIZE, SIZE, generator=g) * 3 / UNIT
    raw = 0.9 + 0.1 * torch.randn(1, 2, SIZE, SIZE, generator=g)
    return Embeddings(offset, raw, torch.rand(1, classes, SIZE, SIZE, generator=g))


@pytest.mark.parametrize("seed", range(6))
def test_one_clustering_serves_all_starts(seed: int) -> None:
    """AP by leaving out low scores is AP of clustering anew."""
    maps, truth = random_maps(seed, 2), sample(range(9), [0, 1, 0, 1, 0, 1, 0, 1, 0])
    lowest = ClusterOptions(start=0.4, foreground=0.4, min_pixels=5)
    found = cluster(maps, lowest)[0].numpy()
    assert len(found) > 5
    starts = [s for s in STARTS if s >= 0.4]
    for start, ap in _ap_by_start(found, truth, starts, 2):
        anew = ClusterOptions(start=start, foreground=0.4, min_pixels=5)
        expected = mean_ap(cluster(maps, anew)[0].numpy(), truth, 2)
        assert ap == pytest.approx(expected, nan_ok=True), start


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


def test_usual_min_pixels() -> None:
    assert usual_min_pixels([sample([0, 1]), sample([])]) == 40  # half of 81
    assert usual_min_pixels([sample([])]) == 0
    assert usual_min_pixels([]) == 0


def test_every_image_once_and_in_order() -> None:
    images = [sample([0]), sample([0, 1])]
    found = list(find_all(engine([0.95]), PLAIN, images, BASE))
    assert [f.sample for f in found] == images
    assert [len(f.instances) for f in found] == [1, 1]
    assert isinstance(found[0].instances.labels, np.ndarray)
