"""Metrics against brute force over permutations, scenes of known overlap, and invariants."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.label_metrics import (
    AP_THRESHOLDS,
    Counts,
    counts,
    counts_by_class,
    label_ap,
    match,
    overlaps,
)

LOW = (0.1, 0.25, 0.34, 0.5, 0.6, 0.9)
"""Below 0.5 too: there an instance may have several partners."""

tiny = hnp.arrays(np.int32, (4, 5), elements=st.integers(0, 4))
masks = hnp.arrays(np.bool_, (4, 5))


def ids_of(labels: np.ndarray) -> list[int]:
    return sorted(set(labels.ravel().tolist()) - {0})


def drop_ignored(
    found: np.ndarray, truth: np.ndarray, ignore: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rule for pixels without truth, one instance at a time."""
    found, truth = found.copy(), truth.copy()
    for i in ids_of(found):
        if Fraction(int((ignore & (found == i)).sum()), int((found == i).sum())) > Fraction(1, 2):
            found[found == i] = 0
    found[ignore] = 0
    truth[ignore] = 0
    return found, truth


def brute(found: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[int, int, int, float]:
    """TP, FP, FN and the sum of IoU of the best matching, by trying every one."""
    rows, columns = ids_of(found), ids_of(truth)
    iou = {
        (i, j): Fraction(
            int(((found == i) & (truth == j)).sum()), int(((found == i) | (truth == j)).sum())
        )
        for i in rows
        for j in columns
    }
    partners = [*columns, *[None] * len(rows)]
    best = (0, Fraction(0))
    for choice in itertools.permutations(partners, len(rows)):
        pairs = [
            pair
            for pair in zip(rows, choice, strict=True)
            if pair[1] is not None and float(iou[pair]) >= threshold
        ]
        best = max(best, (len(pairs), sum((iou[pair] for pair in pairs), Fraction(0))))
    tp = best[0]
    return tp, len(rows) - tp, len(columns) - tp, float(best[1])


few = hnp.arrays(np.int32, (3, 4), elements=st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(found=few, truth=few, ignore=hnp.arrays(np.bool_, (3, 4)))
def test_counts_are_those_of_brute_force(
    found: np.ndarray, truth: np.ndarray, ignore: np.ndarray
) -> None:
    measured = counts(overlaps(found, truth, ignore), LOW)
    found, truth = drop_ignored(found, truth, ignore)
    for t, threshold in enumerate(LOW):
        tp, fp, fn, iou_sum = brute(found, truth, threshold)
        assert (measured.tp[t], measured.fp[t], measured.fn[t]) == (tp, fp, fn)
        assert measured.iou_sum[t] == pytest.approx(iou_sum)


@settings(max_examples=100, deadline=None)
@given(found=tiny, truth=tiny, threshold=st.sampled_from(LOW))
def test_matching_is_one_to_one(found: np.ndarray, truth: np.ndarray, threshold: float) -> None:
    pairs = overlaps(found, truth)
    chosen = match(pairs, threshold)
    assert (pairs.iou[chosen] >= threshold).all()
    assert len(set(pairs.found[chosen])) == len(chosen)
    assert len(set(pairs.truth[chosen])) == len(chosen)


def test_more_matches_come_before_larger_ones() -> None:
    # Greedy takes found 1, truth 1 at IoU 6/10, and found 2, truth 2 share nothing.
    found = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 2, 2]])
    truth = np.array([[2, 2, 1, 1, 1, 1, 1, 1, 1, 1]])
    pairs = overlaps(found, truth)
    np.testing.assert_allclose(pairs.iou, [6 / 10, 2 / 8, 2 / 8])
    assert len(match(pairs, 0.3)) == 1
    np.testing.assert_allclose(pairs.iou[match(pairs, 0.2)], [2 / 8, 2 / 8])


def test_exactly_half_is_a_match_once() -> None:
    whole = np.ones((4, 4), np.int32)
    halves = whole.copy()
    halves[:2] = 2
    for found, truth in ((whole, halves), (halves, whole)):
        assert label_ap(found, truth, [0.5])[0] == 1 / 2  # one match, one half left over
        assert label_ap(found, truth, [0.51])[0] == 0


@pytest.mark.parametrize("threshold", AP_THRESHOLDS)
def test_threshold_is_met_by_an_equal_iou(threshold: float) -> None:
    share = round(threshold * 20)
    truth = np.ones((1, 20), np.int32)
    found = (np.arange(20) < share).astype(np.int32)[None]
    assert label_ap(found, truth, [threshold])[0] == 1
    found[0, share - 1] = 0
    assert label_ap(found, truth, [threshold])[0] == 0


def disk(x: float, radius: float = 30.0) -> np.ndarray:
    rows, columns = np.mgrid[:80, :160]
    return (columns - x) ** 2 + (rows - 40) ** 2 <= radius**2


def lens_iou(distance: float, radius: float) -> float:
    """IoU of two disks of one radius, from the area of their lens."""
    lens = 2 * radius**2 * np.arccos(distance / (2 * radius)) - distance / 2 * np.sqrt(
        4 * radius**2 - distance**2
    )
    return lens / (2 * np.pi * radius**2 - lens)


@pytest.mark.parametrize("distance", [2, 7, 13, 20, 40])
def test_disks_of_known_overlap(distance: float) -> None:
    pairs = overlaps(disk(50 + distance).astype(np.int32), disk(50).astype(np.int32))
    assert pairs.iou[0] == pytest.approx(lens_iou(distance, 30.0), abs=0.01)
    expected = [float(lens_iou(distance, 30.0) >= threshold) for threshold in AP_THRESHOLDS]
    np.testing.assert_array_equal(counts(pairs).ap, expected)


@given(labels=tiny)
def test_the_truth_itself_is_perfect(labels: np.ndarray) -> None:
    result = counts(overlaps(labels, labels))
    for figure in (result.ap, result.f1, result.pq, result.matched_iou, result.precision):
        np.testing.assert_array_equal(figure, 1.0 if labels.any() else np.nan)


@given(found=tiny, truth=tiny, seed=st.integers(0, 9))
def test_permuted_ids_change_nothing(found: np.ndarray, truth: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    new = np.concatenate(([0], rng.choice(2**40, 4, replace=False) + 1))
    np.testing.assert_array_equal(
        label_ap(found, truth, LOW), label_ap(new[found], new[truth], LOW)
    )


@given(found=tiny, truth=tiny)
def test_exchanged_images_exchange_false_positives_and_negatives(
    found: np.ndarray, truth: np.ndarray
) -> None:
    one, other = counts(overlaps(found, truth), LOW), counts(overlaps(truth, found), LOW)
    np.testing.assert_array_equal(one.fp, other.fn)
    np.testing.assert_array_equal(one.fn, other.fp)
    np.testing.assert_allclose(one.iou_sum, other.iou_sum)


@given(found=tiny, truth=tiny)
def test_counts_of_a_montage_are_the_sum(found: np.ndarray, truth: np.ndarray) -> None:
    later = np.where(found > 0, found + 10, 0), np.where(truth > 0, truth + 10, 0)
    montage = counts(overlaps(np.hstack((found, later[0])), np.hstack((truth, later[1]))), LOW)
    one = counts(overlaps(found, truth), LOW)
    twice = one + one
    np.testing.assert_array_equal(montage.tp, twice.tp)
    np.testing.assert_array_equal(montage.ap, twice.ap)
    np.testing.assert_allclose(montage.pq, twice.pq)


def test_figures_by_hand() -> None:
    one = np.ones(1, np.int64)
    result = Counts((0.5,), tp=3 * one, fp=1 * one, fn=2 * one, iou_sum=2.4 * one)
    assert result.ap[0] == pytest.approx(3 / 6)
    assert result.precision[0] == pytest.approx(3 / 4)
    assert result.recall[0] == pytest.approx(3 / 5)
    assert result.f1[0] == pytest.approx(3 / 4.5)
    assert result.matched_iou[0] == pytest.approx(0.8)
    assert result.pq[0] == pytest.approx(result.matched_iou[0] * result.f1[0])


def test_nothing_matched_scores_zero() -> None:
    found, truth = np.array([[1, 1, 0, 0]]), np.array([[0, 0, 1, 1]])
    result = counts(overlaps(found, truth))
    for figure in (result.ap, result.f1, result.pq, result.precision, result.recall):
        np.testing.assert_array_equal(figure, 0.0)
    assert np.isnan(result.matched_iou).all()  # there is no match to average over


NOTHING = np.zeros((4, 4), np.int32)
FULL = np.ones((4, 4), np.int32)


@pytest.mark.parametrize(
    ("found", "truth", "ignore", "expected"),
    [
        (NOTHING, NOTHING, None, np.nan),
        (FULL, FULL, FULL > 0, np.nan),
        (NOTHING[:0], NOTHING[:0], None, np.nan),
        (NOTHING, FULL, None, 0.0),
        (FULL, NOTHING, None, 0.0),
        (FULL, FULL, None, 1.0),
    ],
    ids=[f"LBL-13-{n}" for n in ("none", "all_ignored", "no_pixel", "missed", "false", "filling")],
)
def test_undefined_is_nan(
    found: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None, expected: float
) -> None:
    np.testing.assert_array_equal(label_ap(found, truth, ignore=ignore), expected)


@pytest.mark.parametrize(
    ("ignored_columns", "expected"),
    [(0, 0.0), (2, 0.0), (3, np.nan)],
    ids=["LBL-14-seen", "LBL-14-half", "LBL-14-group"],
)
def test_finds_in_ignored_area_are_no_false_positives(
    ignored_columns: int, expected: float
) -> None:
    ignore = np.zeros((4, 4), bool)
    ignore[:, :ignored_columns] = True  # of the four columns of the found instance
    np.testing.assert_array_equal(label_ap(FULL, NOTHING, ignore=ignore), expected)


def test_iou_is_over_pixels_with_truth() -> None:
    found = np.array([[1, 1, 1, 1, 1, 0]])
    truth = np.array([[0, 0, 1, 1, 1, 0]])
    assert overlaps(found, truth).iou[0] == 3 / 5
    ignore = np.array([[True, True, False, False, False, False]])
    assert overlaps(found, truth, ignore).iou[0] == 1


def test_classes_never_match_each_other() -> None:
    found = truth = np.array([[1, 1, 0, 2, 2, 0, 3]])
    pairs = overlaps(found, truth)
    first, second, third = counts_by_class(
        pairs, np.array([0, 1, 1]), np.array([0, 0, 1]), 3, thresholds=(0.5,)
    )
    assert (first.tp[0], first.fp[0], first.fn[0]) == (1, 0, 1)
    assert (second.tp[0], second.fp[0], second.fn[0]) == (1, 1, 0)
    assert np.isnan(third.ap[0])


@given(found=tiny, truth=tiny, seed=st.integers(0, 9))
def test_a_class_is_counted_as_if_alone(found: np.ndarray, truth: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found_classes, truth_classes = rng.integers(0, 2, (2, 4))
    by_class = counts_by_class(overlaps(found, truth), found_classes, truth_classes, 2, LOW)
    for c, measured in enumerate(by_class):
        of_found = np.where(np.isin(found, np.flatnonzero(found_classes == c) + 1), found, 0)
        of_truth = np.where(np.isin(truth, np.flatnonzero(truth_classes == c) + 1), truth, 0)
        alone = counts(overlaps(of_found, of_truth), LOW)
        np.testing.assert_array_equal(measured.tp, alone.tp)
        np.testing.assert_array_equal(measured.ap, alone.ap)
        np.testing.assert_allclose(measured.iou_sum, alone.iou_sum)


def test_a_label_without_class_is_refused() -> None:
    with pytest.raises(SpatialEmbedError, match="label 1 has no class"):
        counts_by_class(overlaps(FULL, FULL), np.array([], np.int64), np.array([0]), 1)


@pytest.mark.parametrize("number", [300, 70_000], ids=["LBL-01-300", "LBL-01-70000"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_many_instances(number: int, dtype: type) -> None:
    truth = np.arange(1, number + 1, dtype=dtype).reshape(-1, 100).repeat(4, axis=1)
    found = np.where(np.arange(truth.shape[1]) % 4 == 0, 0, truth)  # IoU 3/4 everywhere
    began = time.thread_time()
    result = counts(overlaps(found, truth))
    assert time.thread_time() - began < 5
    assert result.tp.tolist() == [number if t <= 0.75 else 0 for t in AP_THRESHOLDS]
    assert result.iou_sum[0] == pytest.approx(0.75 * number)


@pytest.mark.parametrize(
    ("found", "truth", "code"),
    [
        (NOTHING, np.zeros((4, 5), np.int32), "size_mismatch"),
        (NOTHING, np.zeros((4, 4)), "bad_labels"),
        (NOTHING - 1, NOTHING, "bad_labels"),
        (np.zeros((4, 4, 3), np.int32), NOTHING, "bad_labels"),
    ],
    ids=["LBL-03-one_pixel", "LBL-07-float", "LBL-07-negative", "LBL-04-rgb"],
)
def test_what_are_no_labels_is_refused(found: np.ndarray, truth: np.ndarray, code: str) -> None:
    with pytest.raises(SpatialEmbedError, match=code):
        label_ap(found, truth)
