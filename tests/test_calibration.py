"""Expected IoU: recovered where the truth is known, honest where it is not, kept by the model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spatialembed.evaluation.label_metrics import best_ious, overlaps
from spatialembed.method.calibration import (
    KNOTS,
    LEAST_OBJECTS,
    Calibration,
    Objects,
    auc,
    calibration_error,
    cross_validated,
    equal_count_bins,
    fit,
    folds,
    mean_seeds,
    rank_correlation,
    with_expected_iou,
)
from spatialembed.types import Instances

MAP = Calibration((0.5, 0.7, 0.9), (0.1, 0.4, 0.8), objects=300, error=0.02, error_of_score=0.2)


def objects(count: int = 2000, images: int = 40, seed: int = 0, noise: float = 0.05) -> Objects:
    """IoU = mean seed squared and noise; a score that is too high and says less."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.6, 1, count)
    iou = np.clip(mean**2 + noise * rng.standard_normal(count), 0, 1)
    score = np.clip(0.9 + 0.1 * mean + 0.02 * rng.standard_normal(count), 0, 1)
    return Objects(score.astype(np.float32), mean, iou, rng.integers(0, images, count))


def test_a_known_relation_is_recovered() -> None:
    fitted = fit(objects(), 0.0)
    assert fitted is not None
    at = np.linspace(0.65, 0.95, 30)
    np.testing.assert_allclose(fitted.expected_iou(at), at**2, atol=0.03)
    assert fitted.error < 0.02
    assert fitted.error_of_score > 0.25
    assert len(fitted.ious) <= KNOTS
    assert fitted.objects == 2000


def test_the_map_is_linear_between_and_constant_outside() -> None:
    said = MAP.expected_iou(np.array([0.0, 0.5, 0.6, 0.8, 0.9, 1.0]))
    assert said.dtype == np.float32
    assert said.tolist() == pytest.approx([0.1, 0.1, 0.25, 0.6, 0.8, 0.8])


@given(seed=st.integers(0, 1000), noise=st.floats(0, 0.5), levels=st.sampled_from([2, 7, 10_000]))
@settings(max_examples=25, deadline=None)
def test_the_map_never_falls(seed: int, noise: float, levels: int) -> None:
    """Whatever the objects, with many equal mean seeds too; Calibration itself refuses others."""
    given_ = objects(400, seed=seed, noise=noise)
    given_ = given_._replace(mean_seeds=np.round(given_.mean_seeds * levels) / levels)
    fitted = fit(given_, 0.0)
    assert fitted is not None
    assert (np.diff(fitted.expected_iou(np.linspace(0, 1, 500))) >= 0).all()


@pytest.mark.parametrize(
    ("seeds", "ious"),
    [((), ()), ((0.5,), (0.1, 0.2)), ((0.5, 0.5), (0.1, 0.2)), ((0.4, 0.5), (0.2, 0.1)),
     ((0.4, 1.5), (0.2, 0.3)), ((0.4, float("nan")), (0.2, 0.3))],
)  # fmt: skip
def test_what_is_no_map_is_refused(seeds: tuple[float, ...], ious: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"mean seed|IoU"):
        replace(MAP, mean_seeds=seeds, ious=ious)


def test_few_objects_give_no_map() -> None:
    assert fit(objects(LEAST_OBJECTS - 1), 0.0) is None
    assert fit(objects(LEAST_OBJECTS), 0.0) is not None
    assert fit(objects(2000, images=2), 0.0) is None  # nothing to hold out
    many = objects()
    assert fit(many, 1.01) is None  # none of them is seen at that start
    nothing = Objects(*(np.zeros(0, a.dtype) for a in many))
    assert fit(nothing, 0.0) is None


def test_objects_below_start_shape_the_map_but_not_its_error() -> None:
    """Below the start the IoU is 0: the map says so, the error leaves them out."""
    good, bad = objects(1000), objects(1000, seed=1)
    bad = Objects(np.full(1000, 0.5, np.float32), bad.mean_seeds - 0.5, 0 * bad.ious, bad.groups)
    both = fit(Objects.merged([good, bad]), 0.8)
    alone = fit(good, 0.8)
    assert both is not None
    assert alone is not None
    assert both.expected_iou(np.array([0.3])) < 0.01
    assert alone.expected_iou(np.array([0.3])) > 0.3
    assert both.error_of_score == alone.error_of_score


def test_the_error_is_of_objects_that_were_not_fitted() -> None:
    """IoUs that belong to their image and to nothing else can be learned by heart only."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 15)
    iou = rng.uniform(0, 1, 20)[group]
    by_image = Objects(np.ones(300, np.float32), 0.5 + group / 50, np.sort(iou), group)
    said = cross_validated(by_image)
    for k in range(20):
        rest = by_image.where(folds(20)[group] != folds(20)[k])
        fitted = fit(rest, 0.0)
        assert fitted is not None
        assert said[group == k] == pytest.approx(fitted.expected_iou(np.array([0.5 + k / 50]))[0])


def test_folds_part_evenly() -> None:
    assert np.bincount(folds(23)).tolist() == [5, 5, 5, 4, 4]
    assert np.array_equal(folds(23), folds(23))


def test_calibration_error() -> None:
    said = np.repeat([0.2, 0.8], 50)
    assert calibration_error(said, said) == 0
    assert calibration_error(said, said - 0.1) == pytest.approx(0.1)
    # Off in both directions by as much: a single bin would not see it.
    assert calibration_error(said, np.full(100, 0.5)) == pytest.approx(0.3)
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0)))


def test_bins_hold_every_object_once() -> None:
    values = np.random.default_rng(0).random(103)
    bins = equal_count_bins(values, 10)
    assert sorted(np.concatenate(bins).tolist()) == list(range(103))
    assert {len(b) for b in bins} == {10, 11}
    assert all(values[a].max() <= values[b].min() for a, b in pairwise(bins))
    assert equal_count_bins(np.zeros(0), 10) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=40))
@settings(max_examples=40, deadline=None)
def test_rank_figures_as_others_have_them(pairs: list[tuple[int, int]]) -> None:
    said, true = np.array(pairs, np.float64).T
    if len(np.unique(said)) == 1 or len(np.unique(true)) == 1:
        assert np.isnan(rank_correlation(said, true))
    else:
        assert rank_correlation(said, true) == pytest.approx(stats.spearmanr(said, true).statistic)
    right = true > 2
    good, bad = said[right], said[~right]
    wins = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
    assert auc(said, right) == pytest.approx(np.mean(wins) if wins else np.nan, nan_ok=True)


# ---------------------------------------------------------------- of instances


def found() -> Instances:
    labels = np.array([[1, 1, 0], [2, 2, 1]], np.int32)
    return Instances(labels, np.array([0.95, 0.9], np.float32), np.array([1, 0]), ("a", "b"))


SEEDS = np.array([[[0, 0, 0.9], [0.6, 0.8, 0]], [[0.9, 0.5, 0.9], [0, 0, 0.7]]], np.float32)


def test_mean_seeds_are_of_the_own_class_and_pixels() -> None:
    assert mean_seeds(found(), SEEDS) == pytest.approx([(0.9 + 0.5 + 0.7) / 3, (0.6 + 0.8) / 2])
    assert mean_seeds(found()[[]], SEEDS).shape == (0,)


def test_instances_get_their_expected_iou() -> None:
    assert with_expected_iou(found(), SEEDS, None).expected_iou is None
    said = with_expected_iou(found(), SEEDS, MAP)
    np.testing.assert_allclose(said.expected_iou, [0.4, 0.4], atol=1e-6)
    assert said.expected_iou.dtype == np.float32
    host = found()
    device = replace(
        host,
        labels=torch.from_numpy(host.labels),
        scores=torch.from_numpy(host.scores),
        classes=torch.from_numpy(host.classes),
    )
    tensor = with_expected_iou(device, torch.from_numpy(SEEDS), MAP).expected_iou
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), said.expected_iou)


def test_best_ious_are_within_the_class() -> None:
    truth = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    seen = np.array([[1, 1, 0, 2, 2, 3]], np.int32)
    pairs = overlaps(seen, truth)
    assert best_ious(pairs, np.array([0, 0, 0]), np.array([0, 0])) == pytest.approx([2 / 3, 1, 0])
    assert best_ious(pairs, np.array([0, 0, 0]), np.array([0, 1])) == pytest.approx([2 / 3, 0, 0])
    # Two may share a true object; it is not a matching.
    halves = overlaps(np.array([[1, 1, 2, 0]]), np.array([[1, 1, 1, 0]]))
    assert best_ious(halves, np.array([0, 0]), np.array([0])) == pytest.approx([2 / 3, 1 / 3])
