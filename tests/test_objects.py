"""Measures of objects: against slow loops, on shapes whose answer is known, in any number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from drawn_labels import cells, discs
from spatialembed.doctor.objects import CONCENTRIC, RING_PX, describe

small = arrays.arrays(
    np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 6)
)


def ring(side: int, outer: int, inner: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - side // 2
    radius = np.hypot(y, x)
    return ((radius <= outer) & (radius > inner)).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(small)
def test_against_loops(labels: np.ndarray) -> None:
    found = describe(labels)
    ids = [k for k in np.unique(labels) if k]
    assert found.ids.tolist() == ids
    touching, pairs = set(), set()
    for (y, x), k in np.ndenumerate(labels):
        for (v, u), other in np.ndenumerate(labels):
            if k and other and k != other and max(abs(y - v), abs(x - u)) == 1:
                touching |= {k}
                pairs |= {frozenset((k, other))}
    assert found.touching_pairs == len(pairs)
    centres = {k: np.argwhere(labels == k)[:, ::-1].mean(0) for k in ids}
    radii = {k: np.sqrt((labels == k).sum() / np.pi) for k in ids}
    close = {
        frozenset((a, b))
        for a in ids
        for b in ids
        if a != b and np.hypot(*(centres[a] - centres[b])) < CONCENTRIC * min(radii[a], radii[b])
    }
    assert found.concentric_pairs == len(close)
    for i, k in enumerate(ids):
        ys, xs = np.nonzero(labels == k)
        pieces, count = ndimage.label(labels == k, np.ones((3, 3)))
        assert found.area[i] == len(ys)
        assert found.box[i].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(found.centroid_xy[i], centres[k])
        assert found.parts[i] == count
        assert found.outside[i] == len(ys) - np.bincount(pieces.ravel())[1:].max()
        assert found.touching[i] == (k in touching)
        assert found.concentric[i] == any(k in pair for pair in close)
        away = np.hypot(xs - centres[k][0], ys - centres[k][1]).min()
        assert found.ring_shaped[i] == (count == 1 and away > RING_PX)
        assert found.extent[i] == max(np.ptp(xs), np.ptp(ys)) + 1
        offsets = np.abs(np.stack((xs, ys), axis=1) - centres[k]).max()
        np.testing.assert_allclose(found.reach[i], offsets)


def test_ids_permuted_change_nothing() -> None:
    labels = cells(12, 40)
    order = np.random.default_rng(1).permutation(12)
    new_ids = np.concatenate(([0], (order + 1) * 1000))
    plain, permuted = describe(labels), describe(new_ids[labels])
    back = np.searchsorted(permuted.ids, new_ids[1:])
    for name in ("area", "box", "parts", "touching", "ring_shaped", "concentric"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(permuted, name)[back])
    assert plain.touching_pairs == permuted.touching_pairs > 12


def test_known_shapes() -> None:
    apart = describe(discs(64, [(16, 16), (48, 48)], 8))
    assert not (apart.ring_shaped | apart.concentric | apart.touching).any()
    np.testing.assert_allclose(apart.diameter, 16, rtol=0.03)
    assert apart.extent.tolist() == [17, 17]
    assert apart.reach.tolist() == [8, 8]

    target = ring(64, 20, 12) + 2 * ring(64, 5, -1)
    both = describe(target)
    assert both.ring_shaped.tolist() == [True, False]
    assert both.concentric.tolist() == [True, True]
    assert (both.concentric_pairs, both.touching_pairs) == (1, 0)


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (5, 1)])
def test_nothing_to_measure(shape: tuple[int, int]) -> None:
    found = describe(np.zeros(shape, np.int32))
    assert len(found) == len(found.diameter) == len(found.reach) == found.touching_pairs == 0


def test_seventy_thousand() -> None:
    y, x = np.mgrid[:1060, :1060] // 4
    labels = (y * 265 + x + 1).astype(np.int32)  # 70,225 squares of 4 x 4 px, side by side
    found = describe(labels)  # a loop over pairs would take hours
    assert len(found) == 265**2
    assert found.touching.all()
    assert found.touching_pairs == 2 * 265 * 264 + 2 * 264**2  # sides, and both diagonals
    assert not found.concentric.any()
    assert (found.area == 16).all()
