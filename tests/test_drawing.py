"""Pictures: what can be computed of them. Whether they please is for the eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import color, io

from drawn_labels import cells, discs
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.write import write_png
from spatialembed.pictures.captions import COVERED, legible
from spatialembed.pictures.colour import instance_colours
from spatialembed.pictures.drawing import PAPER, display, outlines, overlay, panel, zoom_for
from spatialembed.pictures.maps import LARGEST_TILE_PX, maps_panel

SIZES = [(1, 1), (1, 9), (9, 1), (7, 7), (33, 17), (1, 3000), (1100, 40)]


# --- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_display_stretches_every_type_alike(dtype: type[np.generic]) -> None:
    ramp = np.arange(200).reshape(10, 20)
    shown = display(ramp.astype(dtype))
    assert shown.dtype == np.uint8
    assert shown.shape == (10, 20, 3)
    assert shown.min() == 0
    assert shown.max() == 255
    np.testing.assert_array_equal(shown, display(ramp.astype(np.uint8)))
    assert (np.diff(shown[..., 0].ravel().astype(int)) >= 0).all()


def test_display_keeps_sixteen_bit_levels() -> None:
    faint = (40_000 + np.arange(256)).astype(np.uint16).reshape(16, 16)
    assert len(np.unique(display(faint))) > 240


def test_display_keeps_hues() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    image[:10], image[10:] = (40, 20, 0), (0, 20, 40)
    shown = display(image)
    np.testing.assert_allclose(shown[0, 0], (255, 127.5, 0), atol=1)
    np.testing.assert_allclose(shown[-1, -1], (0, 127.5, 255), atol=1)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_display_of_a_constant_image(value: int) -> None:
    assert (display(np.full((4, 5, 3), value, np.uint8)) == value).all()
    assert (display(np.full((4, 5), value, np.float32)) == 0).all()


def test_display_of_non_finite_pixels() -> None:
    image = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    image[0, 0], image[5, 5] = np.nan, np.inf
    assert (display(image)[[0, 5], [0, 5]] == 0).all()
    assert display(image)[9, 9].tolist() == [255] * 3


def test_the_image_is_left_as_it_was() -> None:
    image = np.full((20, 20, 3), 90, np.uint8)
    labels = discs(20, [(10, 10)], 5)
    overlay(image, labels)
    assert (image == 90).all()
    assert labels.max() == 1


# --- instances ------------------------------------------------------------------------------


def test_outlines_of_a_square_and_of_a_border() -> None:
    labels = np.zeros((9, 9), np.int32)
    labels[2:7, 2:7] = 1
    ring = np.zeros((9, 9), bool)
    ring[2:7, 2:7] = True
    ring[3:6, 3:6] = False
    np.testing.assert_array_equal(outlines(labels), ring)
    ring[3:6, 3:6] = True
    ring[4, 4] = False
    np.testing.assert_array_equal(outlines(labels, 2), ring)
    halves = np.repeat([[1, 1, 1, 2, 2, 2]], 4, axis=0)
    assert outlines(halves).tolist() == [[False, False, True, True, False, False]] * 4


@pytest.mark.parametrize("shape", SIZES)
def test_overlay_has_the_size_of_the_image(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    labels = (np.arange(image.size).reshape(shape) // 5 % 4).astype(np.int32)
    picture = overlay(image, labels)
    assert picture.dtype == np.uint8
    assert picture.shape == (*shape, 3)
    outside = labels == 0
    np.testing.assert_array_equal(picture[outside], display(image)[outside])


def test_overlay_fill_is_the_stated_mixture() -> None:
    labels = discs(60, [(30, 30)], 20)
    grey = np.full((60, 60), 100, np.uint8)
    colour = instance_colours(labels, 1)[1].astype(float)
    for alpha in (0.0, 0.3, 1.0):
        expected = 100 * (1 - alpha) + alpha * colour
        np.testing.assert_allclose(overlay(grey, labels, alpha=alpha)[30, 30], expected, atol=0.51)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_ids_with_gaps_look_like_ids_without(data: st.DataObject) -> None:
    dense = cells(6, 24)
    ids = data.draw(st.lists(st.integers(1, 2**31 - 1), min_size=6, max_size=6, unique=True))
    sparse = np.array(sorted(ids))[dense - 1]
    black = np.zeros(dense.shape, np.uint8)
    np.testing.assert_array_equal(overlay(black, sparse), overlay(black, dense))


def test_labels_that_are_none_are_refused() -> None:
    for labels in (np.zeros((4, 4)), -np.ones((4, 4), np.int32)):
        with pytest.raises(SpatialEmbedError, match="bad_labels"):
            overlay(np.zeros((4, 4), np.uint8), labels)


@pytest.mark.parametrize("grey", [5, 250])
def test_outline_stands_out_on_dark_and_light(grey: int) -> None:
    labels = discs(60, [(30, 30)], 20)
    picture = color.rgb2lab(overlay(np.full((60, 60), grey, np.uint8), labels))
    edge, ground = picture[30, 10], picture[0, 0]
    assert np.linalg.norm(edge - ground) > 35
    assert np.linalg.norm(edge - picture[30, 30]) > 15


def test_overlay_without_objects_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 60_000, (30, 40)).astype(np.uint16)
    nothing = np.zeros((30, 40), np.int32)
    np.testing.assert_array_equal(overlay(image, nothing), display(image))


def test_zoomed_overlay_keeps_every_object_in_place() -> None:
    labels = cells(9, 16)
    picture = overlay(np.zeros((16, 16), np.uint8), labels, zoom=5, alpha=1)
    np.testing.assert_array_equal(picture[2::5, 2::5], instance_colours(labels, 9)[labels])


@pytest.mark.parametrize(
    ("side", "zoom"), [(1, 8), (40, 8), (64, 6), (256, 2), (360, 1), (4000, 1)]
)
def test_zoom(side: int, zoom: int) -> None:
    assert zoom_for(side, 1) == zoom_for(1, side) == zoom


def test_captions_stand_only_where_they_fit() -> None:
    labels = discs(300, [(80, 80), (250, 250)], 60)
    labels[labels == 2] = 0
    labels[250:255, 250:255] = 2
    black = np.zeros((300, 300), np.uint8)
    plain = overlay(black, labels)
    written = overlay(black, labels, scores=[0.91, 0.5], class_names=["car", "person"])
    differs = (plain != written).any(axis=2)
    assert differs[labels == 1].sum() > 100
    assert not differs[labels != 1].any()


@pytest.mark.parametrize(("side", "radius", "thick"), [(300, 100, 1), (2600, 900, 3), (2600, 8, 1)])
def test_outlines_suit_picture_and_objects(side: int, radius: int, thick: int) -> None:
    labels = discs(side, [(side // 2, side // 2)], radius)
    black = np.zeros((side, side), np.uint8)
    row = overlay(black, labels)[side // 2, : side // 2].astype(int)
    left = side // 2 - radius
    assert (row[left : left + thick] == row[left]).all()
    assert (row[left + thick :] == row[-1]).all()
    assert (row[left] > row[-1]).any()  # the outline stands out from the fill
    assert (row[:left] == 0).all()


def test_an_outline_suits_the_ground_of_its_own_object() -> None:
    image = np.repeat(np.array([[10] * 60 + [245] * 60], np.uint8), 60, axis=0)
    labels = discs(60, [(30, 30)], 12)
    labels = np.concatenate((labels, 2 * labels), axis=1)
    picture = overlay(image, labels).mean(axis=2)
    assert picture[30, 18] > picture[30, 30]  # bright on dark
    assert picture[30, 78] < picture[30, 90]  # dark on light


def test_captions_lie_in_their_objects_and_leave_most_of_them() -> None:
    labels = cells(40, 400)
    black = np.zeros((400, 400), np.uint8)
    plain, written = (
        overlay(
            black, labels, scores=scores, class_names=["cell"] * 40 if scores is not None else None
        )
        for scores in (None, np.linspace(0.99, 0.1, 40))
    )
    differs = (plain != written).any(axis=2)
    share = np.bincount(labels[differs], minlength=41)[1:] / np.bincount(labels.ravel())[1:]
    assert (share > 0).sum() > 10
    assert share.max() < COVERED
    edge = outlines(labels)
    assert (plain[edge] == written[edge]).mean() > 0.98


def test_captions_for_other_instances_are_refused() -> None:
    with pytest.raises(ValueError, match="of 1 labels"):
        overlay(np.zeros((20, 20)), discs(20, [(9, 9)], 4), scores=[0.9, 0.8])


# --- panels ---------------------------------------------------------------------------------


def test_panel_holds_every_tile_unchanged() -> None:
    random = np.random.default_rng(0)
    tiles = [
        (f"tile {i}", random.integers(0, 256, (400, 450, 3)).astype(np.uint8)) for i in range(5)
    ]
    picture = panel(tiles, 3)
    gap, strip = 9, 36
    assert picture.shape == (gap + 2 * (400 + strip + gap), gap + 3 * (450 + gap), 3)
    for i, (_, tile) in enumerate(tiles):
        top = gap + strip + i // 3 * (400 + strip + gap)
        left = gap + i % 3 * (450 + gap)
        np.testing.assert_array_equal(picture[top : top + 400, left : left + 450], tile)
        caption = picture[top - strip : top, left : left + 450]
        assert (caption > 150).all(axis=2).sum() > 50
    assert (picture[-400:, -440:] == PAPER).all()  # the sixth place stays empty


@pytest.mark.parametrize(
    "caption", ["x", "a caption far too long for the narrow tile that it is given"]
)
def test_captions_stay_in_their_cell(caption: str) -> None:
    black = np.zeros((390, 390, 3), np.uint8)
    alone = panel([(caption, black), ("", black)], 2)
    assert (alone[:, 8 + 390 :] <= PAPER).all()


def test_captions_are_written_in_letters_that_there_are() -> None:
    assert legible("Zellkörper é 细 a_1") == "Zellkorper e ? a_1"
    black = np.zeros((60, 200, 3), np.uint8)
    np.testing.assert_array_equal(panel([("Köln", black)], 1), panel([("Koln", black)], 1))


def test_panel_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 tiles"):
        panel([], 3)


def maps(shape: tuple[int, int], axes: int, classes: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    return (
        random.integers(0, 256, shape).astype(np.uint8),
        random.normal(0, 0.01, (2, *shape)).astype(np.float32),
        random.normal(0.8, 0.1, (axes, *shape)).astype(np.float32),
        random.uniform(0, 1, (classes, *shape)).astype(np.float32),
        random.integers(0, 5, shape).astype(np.int32),
    )


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(("axes", "classes"), [(1, 1), (2, 3)])
def test_maps_panel_of_any_size(shape: tuple[int, int], axes: int, classes: int) -> None:
    arrays = maps(shape, axes, classes)
    picture = maps_panel(*arrays, truth_labels=arrays[-1])
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert max(picture.shape) < 4 * LARGEST_TILE_PX


def test_maps_panel_shows_offsets_without_their_shared_part() -> None:
    """A shift of all offsets, which a learnable centre leaves free, changes the caption alone."""
    image, offset, log_precision, seed, labels = arrays = maps((60, 80), 2, 1)
    shifted = maps_panel(image, offset + 0.25, log_precision, seed, labels)
    plain = maps_panel(*arrays)
    differs = np.abs(shifted.astype(int) - plain).max(axis=2) > 8
    assert differs.any()
    assert len(np.flatnonzero(differs.any(axis=1))) < 60  # rows: those of one caption


def test_maps_panel_takes_tensors() -> None:
    arrays = maps((48, 64), 2, 1)
    tensors = [torch.from_numpy(array) for array in arrays]
    np.testing.assert_array_equal(maps_panel(*tensors), maps_panel(*arrays))


def test_maps_panel_where_nothing_was_found() -> None:
    image, offset, log_precision, seed, labels = maps((64, 64), 2, 1)
    picture = maps_panel(image, offset, log_precision, 0 * seed, 0 * labels, 0 * labels)
    assert picture.shape[1] > 3 * 384


def test_maps_panel_survives_wild_maps() -> None:
    image, offset, log_precision, seed, labels = maps((32, 32), 2, 1)
    for wild in (-20.0, 20.0):
        assert maps_panel(image, offset, 0 * log_precision + wild, seed, labels).dtype == np.uint8
    assert maps_panel(image, 0 * offset, log_precision, seed, labels).dtype == np.uint8


GREY = np.arange(200, dtype=np.uint8).reshape(10, 20)


@pytest.mark.parametrize(
    "picture",
    [GREY, GREY * np.uint16(300), np.stack((GREY, GREY + 1, GREY + 2), axis=-1)],
    ids=["grey", "16-bit", "rgb"],
)
def test_written_pictures_are_read_back(tmp_path: Path, picture: np.ndarray) -> None:
    path = write_png(tmp_path / "new folder" / "x.png", picture)
    np.testing.assert_array_equal(io.imread(path), picture)
    assert list(path.parent.iterdir()) == [path]
