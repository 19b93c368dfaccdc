"""Colours: told apart where they touch, in step with what they stand for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage import color

from drawn_labels import cells, discs
from spatialembed.errors import SpatialEmbedError
from spatialembed.pictures.colour import instance_colours, palette
from spatialembed.pictures.maps import colour_map, margin_colours, offset_colours

RED_BLIND = ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052))
GREEN_BLIND = ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969))
"""What they see of linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1)."""


def flat(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W), 1..N without gaps, as flat colours (H, W, 3)."""
    return instance_colours(labels, int(labels.max()))[labels]


@pytest.mark.parametrize("count", [2, 12, 150, 600])
def test_touching_instances_differ_to_the_eye(count: int) -> None:
    labels = cells(count, 128)
    lab = color.rgb2lab(flat(labels))
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        border = labels[one] != labels[other]
        difference = np.linalg.norm(lab[one] - lab[other], axis=-1)[border]
        assert difference.min() > 15  # 2.3 is just noticeable
    inside = labels[:, 1:] == labels[:, :-1]
    assert (lab[:, 1:][inside] == lab[:, :-1][inside]).all()


def test_near_instances_differ_though_they_do_not_touch() -> None:
    labels = discs(200, [(50, 50), (50, 80), (80, 50), (80, 80)], 12)
    colours = {tuple(flat(labels)[labels == i][0]) for i in range(1, 5)}
    assert len(colours) == 4


def test_background_is_black() -> None:
    labels = discs(60, [(20, 20), (40, 40)], 8)
    assert ((flat(labels) > 0).any(axis=2) == (labels > 0)).all()


def test_seventy_thousand_labels() -> None:
    labels = np.arange(90_000, dtype=np.int32).reshape(300, 300)
    labels[labels > 70_000] = 0
    picture = flat(labels).astype(int)
    inside = labels[:, 1:] > 0
    same = (picture[:, 1:] == picture[:, :-1]).all(axis=2) & inside & (labels[:, :-1] > 0)
    assert not same.any()


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.int32, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 40)
    )
)
def test_touching_labels_never_share_a_colour(labels: np.ndarray) -> None:
    """However often a label touches others: at random, many touch more than the palette has."""
    colours = instance_colours(labels, 40)
    np.testing.assert_array_equal(colours, instance_colours(labels, 40))
    for one, other in (
        (labels[:, 1:], labels[:, :-1]),
        (labels[1:], labels[:-1]),
        (labels[1:, 1:], labels[:-1, :-1]),
        (labels[1:, :-1], labels[:-1, 1:]),
    ):
        met = (one != other) & (one > 0) & (other > 0)
        assert (colours[one[met]] != colours[other[met]]).any(axis=-1).all()


def test_more_neighbours_than_the_palette_has_colours() -> None:
    labels = (
        np.random.default_rng(0).integers(1, 41, (240, 240)).astype(np.int32)
    )  # each touches each
    assert len(np.unique(instance_colours(labels, 40)[1:], axis=0)) == 40


@pytest.mark.parametrize("eyes", [None, RED_BLIND, GREEN_BLIND], ids=["most", "red", "green"])
def test_colours_differ_to_all_eyes(eyes: tuple[tuple[float, ...], ...] | None) -> None:
    seen_as = palette() / 255
    if eyes is not None:
        linear = np.where(seen_as > 0.04045, ((seen_as + 0.055) / 1.055) ** 2.4, seen_as / 12.92)
        seen = (linear @ np.transpose(eyes)).clip(0, 1)
        seen_as = np.where(seen > 0.0031308, 1.055 * seen ** (1 / 2.4) - 0.055, 12.92 * seen)
    lab = color.rgb2lab(seen_as[None])[0]
    apart = color.deltaE_ciede2000(lab[:, None], lab[None]) + 99 * np.eye(len(lab))
    assert apart.min() > 8  # 1 is just noticeable side by side


def hue(x: float, y: float) -> float:
    """Direction of a colour in CIELAB's (a, b) plane, degrees."""
    _, a, b = color.rgb2lab(offset_colours(np.full((2, 1, 1), [[[x]], [[y]]]), 1.0))[0, 0]
    return float(np.rad2deg(np.arctan2(b, a)))


def test_hue_turns_once_with_the_direction() -> None:
    angles = np.deg2rad(np.arange(0, 360, 15))
    hues = np.array([hue(np.cos(t), np.sin(t)) for t in angles])
    steps = (np.diff(np.append(hues, hues[0])) + 180) % 360 - 180
    assert (steps > 1).all()
    assert steps.sum() == pytest.approx(360)


def test_depth_of_colour_grows_with_the_length() -> None:
    lengths = np.linspace(0, 1, 9)
    lab = color.rgb2lab(offset_colours(np.stack((lengths, 0 * lengths))[:, None], 1.0))[0]
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    assert chroma[0] < 1
    assert (np.diff(chroma) > 0).all()
    assert (np.diff(lab[:, 0]) < 0).all()


def test_offset_colours_know_no_unit() -> None:
    offset = np.random.default_rng(0).normal(size=(2, 20, 30)).astype(np.float32)
    np.testing.assert_array_equal(offset_colours(offset), offset_colours(offset / 1024))
    assert np.ptp(offset_colours(np.zeros((2, 3, 3)))) < 3  # no direction, no hue


def test_colour_map_cuts_what_lies_outside() -> None:
    values = np.array([[-1.0, np.nan, 0.0], [2.0, np.inf, 1.0]])
    colours = colour_map(values, "viridis")
    assert (colours[0] == colours[0, 2]).all()
    assert (colours[1] == colours[1, 2]).all()


def test_margin_colours_are_logarithmic() -> None:
    shown = margin_colours(np.array([[2.0, 8.0, 32.0]]), 2, 32)
    np.testing.assert_array_equal(shown, colour_map(np.array([[0, 0.5, 1]]), "viridis"))


def test_maps_name_the_extra_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpatialEmbedError, match=r"missing_extra.*\[train\]"):
        colour_map(np.zeros((2, 2)), "magma")
