"""Outlines out: GeoJSON by shapely, ROIs by roifile, Detections by supervision, and back."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roifile
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.draw import polygon2mask

from drawn_labels import cells
from spatialembed.errors import SpatialEmbedError
from spatialembed.method.labels import relabel
from spatialembed.results.outline_files import features, write_geojson, write_imagej
from spatialembed.results.polygons import polygons
from spatialembed.results.supervision_detections import to_detections
from spatialembed.types import Instances

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it tells that OpenCV is not there
    import supervision

RING = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 2]], np.int32)  # a hole, a touching corner
PINCHED = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], np.int32)
HOOK = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.int32)  # a hole open to a corner
APART = np.array([[1, 0, 2], [0, 1, 0], [1, 1, 0]], np.int32)  # parts that meet in a corner
INSIDE = np.array([[1, 1, 1], [1, 2, 1], [1, 1, 1]], np.int32)
SCATTER = (
    arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))
    .map(lambda labels: relabel(labels)[0])
)  # fmt: skip


def found_in(labels: np.ndarray) -> Instances:
    count = int(labels.max(initial=0))
    scores = np.linspace(0.99, 0.5, count, dtype=np.float32)
    return Instances(labels, scores, np.arange(count) % 2, ("car", "person"))


def shapes(labels: np.ndarray, simplify: float = 0.0) -> list[shapely.MultiPolygon]:
    return [
        shapely.MultiPolygon([shapely.Polygon(outer, holes) for outer, *holes in parts])
        for parts in polygons(labels, int(labels.max(initial=0)), simplify)
    ]


def rasterised(shapes: list[shapely.Geometry], shape_hw: tuple[int, ...]) -> np.ndarray:
    """Each pixel to the shape that holds its centre."""
    y, x = np.mgrid[: shape_hw[0], : shape_hw[1]] + 0.5
    labels = np.zeros(shape_hw, np.int32)
    for label, shape in enumerate(shapes, start=1):
        labels[shapely.contains_xy(shape, x, y)] = label
    return labels


# --- polygons -------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@example(RING)
@example(PINCHED)
@example(HOOK)
@example(APART)
@example(INSIDE)
@example(np.zeros((3, 4), np.int32))
@given(SCATTER)
def test_polygons_are_exact_and_valid(labels: np.ndarray) -> None:
    drawn = shapes(labels)
    np.testing.assert_array_equal(rasterised(drawn, labels.shape), labels)
    for label, shape in enumerate(drawn, start=1):
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.area == (labels == label).sum()
        for part in shape.geoms:  # RFC 7946, 3.1.6
            assert part.exterior.is_ccw
            assert not any(hole.is_ccw for hole in part.interiors)
            corners = np.asarray(part.exterior.coords)
            steps = np.diff(np.concatenate((corners, corners[1:2])), axis=0)
            assert (np.abs(steps).min(axis=1) == 0).all()  # along the axes
            assert ((steps[1:] != 0) != (steps[:-1] != 0)).all()  # every corner is a turn


@pytest.mark.parametrize(
    ("labels", "parts", "holes"),
    [
        pytest.param(RING, 1, 1, id="ring"),
        pytest.param(PINCHED, 1, 2, id="holes-that-touch"),
        pytest.param(HOOK, 1, 1, id="hole-open-to-a-corner"),
        pytest.param(APART, 2, 0, id="LBL-10-parts"),
        pytest.param(INSIDE, 1, 1, id="LBL-11-concentric"),
        pytest.param(np.ones((1, 1), np.int32), 1, 0, id="LBL-12-one-pixel"),
    ],
)
def test_parts_and_holes(labels: np.ndarray, parts: int, holes: int) -> None:
    first = polygons(labels, int(labels.max()))[0]
    assert len(first) == parts
    assert sum(len(polygon) - 1 for polygon in first) == holes


@settings(max_examples=60, deadline=None)
@example(cells(12, 40), 2.0)
@given(SCATTER, st.sampled_from([0.5, 1.0, 2.0]))
def test_simplified_polygons_stay_near(labels: np.ndarray, distance: float) -> None:
    for exact, simple in zip(shapes(labels), shapes(labels, distance), strict=True):
        assert simple.is_valid
        assert len(simple.geoms) == len(exact.geoms)
        assert all(part.exterior.is_ccw for part in simple.geoms)
        # The distance of a corner that was left out, to the line that replaces it.
        assert shapely.hausdorff_distance(exact.boundary, simple.boundary) <= distance * 1.5
        assert shapely.get_num_coordinates(simple) <= shapely.get_num_coordinates(exact)
    many = cells(12, 40)
    assert sum(map(shapely.get_num_coordinates, shapes(many, 2.0))) < 0.5 * sum(
        map(shapely.get_num_coordinates, shapes(many))
    )


@pytest.mark.parametrize("simplify", [-1.0, float("nan"), float("inf")])
def test_senseless_distances_are_refused(simplify: float) -> None:
    with pytest.raises(SpatialEmbedError, match="bad_setting: simplify"):
        polygons(RING, 2, simplify)


# --- GeoJSON --------------------------------------------------------------------------------


def test_geojson_tells_of_every_object(tmp_path: Path) -> None:
    found = replace(found_in(APART), expected_iou=np.array([0.81239, 0.4], np.float32))
    path = write_geojson(tmp_path / "a.geojson", found)
    read = json.loads(path.read_text())
    assert read["type"] == "FeatureCollection"
    first, second = read["features"]
    assert first["geometry"]["type"] == "MultiPolygon"
    assert second["geometry"] == {
        "type": "Polygon",
        "coordinates": [[[2, 0], [3, 0], [3, 1], [2, 1], [2, 0]]],
    }
    assert first["properties"]["measurements"] == {
        "label": 1, "score": 0.99, "expected_iou": 0.8124,
    }  # fmt: skip
    assert [f["properties"]["classification"]["name"] for f in (first, second)] == ["car", "person"]
    colours = [f["properties"]["classification"]["color"] for f in (first, second)]
    assert colours[0] != colours[1]
    assert all(len(c) == 3 and all(0 <= v <= 255 for v in c) for c in colours)
    assert {f["properties"]["objectType"] for f in (first, second)} == {"detection"}
    assert write_geojson(tmp_path / "b.geojson", found).read_bytes() == path.read_bytes()


@settings(max_examples=50, deadline=None)
@example(PINCHED)
@example(np.zeros((2, 2), np.int32))
@given(SCATTER)
def test_geojson_and_back(labels: np.ndarray) -> None:
    written = json.loads(json.dumps(list(features(found_in(labels)))))
    read = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in written]
    assert all(shape.is_valid for shape in read)
    np.testing.assert_array_equal(rasterised(read, labels.shape), labels)


# --- ImageJ ROIs ----------------------------------------------------------------------------


def filled(roi: roifile.ImagejRoi, shape_hw: tuple[int, ...]) -> np.ndarray:
    """Pixels within an odd number of its rings; a ring holds pixels by their centres."""
    read = roi.coordinates(multi=True)
    mask = np.zeros(shape_hw, bool)
    for ring in read if isinstance(read, list) else [read]:
        mask ^= polygon2mask(shape_hw, np.asarray(ring)[:, ::-1] - 0.5)
    return mask


@settings(max_examples=50, deadline=None)
@example(RING)
@example(APART)
@example(np.zeros((2, 2), np.int32))
@given(SCATTER)
def test_rois_and_back(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray) -> None:
    path = write_imagej(tmp_path_factory.mktemp("rois") / "a_rois.zip", found_in(labels))
    rebuilt = np.zeros_like(labels)
    for roi in roifile.roiread(path):
        mask = filled(roi, labels.shape)
        assert not rebuilt[mask].any()
        rebuilt[mask] = int(roi.name)
        y, x = np.nonzero(mask)
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert (roi.left, roi.top, roi.right, roi.bottom) == box
    np.testing.assert_array_equal(rebuilt, labels)


def test_rois_name_class_and_score(tmp_path: Path) -> None:
    found = replace(found_in(RING), class_names=("a\nb\U0001f600\udce9", "person"))
    first, second = roifile.roiread(write_imagej(tmp_path / "a.zip", found))
    assert first.properties == {"class": "a?b??", "score": 0.99}
    assert (second.name, second.group) == ("2", 2)
    again = write_imagej(tmp_path / "b.zip", found)
    assert again.read_bytes() == (tmp_path / "a.zip").read_bytes()


def test_rois_beyond_16_bits(tmp_path: Path) -> None:
    """Coordinates of ImageJ are 16-bit; roifile and ImageJ take those above 32,767 for unsigned."""
    labels = np.zeros((1, 40_000), np.int32)
    labels[0, 39_990:] = 1
    (roi,) = roifile.roiread(write_imagej(tmp_path / "a.zip", found_in(labels)))
    np.testing.assert_array_equal(filled(roi, labels.shape), labels == 1)


# --- supervision ----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@example(np.zeros((2, 3), np.int32), True)
@given(SCATTER, st.booleans())
def test_detections_and_back(labels: np.ndarray, compact: bool) -> None:
    found = found_in(labels)
    detections = to_detections(found, compact=compact)
    masks = np.asarray(detections.mask).reshape(-1, *labels.shape)
    rebuilt = np.zeros_like(labels)
    for label, mask in zip(detections.data["label"], masks, strict=True):
        rebuilt[mask.astype(bool)] = label
    np.testing.assert_array_equal(rebuilt, labels)
    np.testing.assert_array_equal(detections.xyxy, found.boxes)
    np.testing.assert_array_equal(detections.confidence, found.scores)
    np.testing.assert_array_equal(detections.class_id, found.classes)
    assert [*detections.data["class_name"]] == [found.class_names[c] for c in found.classes]


def test_detections_can_be_selected_and_drawn() -> None:
    detections = to_detections(found_in(cells(6, 30)))
    assert len(detections[detections.class_id == 1]) == 3
    picture = supervision.MaskAnnotator().annotate(np.zeros((30, 30, 3), np.uint8), detections)
    assert picture.any()


# --- many -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["LBL-01-3000"])
def test_three_thousand_objects(tmp_path: Path, fault: str) -> None:
    labels = np.zeros((220, 220), np.int32)
    labels[::4, ::4] = np.arange(1, 55 * 55 + 1).reshape(55, 55)
    labels[1::4, ::4] = labels[::4, ::4]
    found = found_in(labels)
    read = json.loads(write_geojson(tmp_path / "a.geojson", found).read_text())["features"]
    assert [feature["properties"]["measurements"]["label"] for feature in read] == [
        *range(1, len(found) + 1)
    ]
    drawn = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in read]
    assert [shape.bounds for shape in drawn] == [tuple(map(float, box)) for box in found.boxes]
    rois = roifile.roiread(write_imagej(tmp_path / "a.zip", found))
    boxes = [(roi.left, roi.top, roi.right, roi.bottom) for roi in rois]
    assert boxes == [tuple(box) for box in found.boxes.tolist()]


def test_simplified_outlines_are_valid() -> None:
    """Two parts and a hole, of which shapely's simplification lets rings cross."""
    rows = """.....########## ..###...#####.. ...###.###..... .#.####.###.### ##.#####.#####.
        #######...##...
        #.#####.###...# .###.####....## .######..##..## .###########.## .##.###.######.
        ###..#####.#### #.##..#.####.## ##....#######.. ###.######.#..."""
    labels = np.array([[int(c == "#") for c in row] for row in rows.split()], np.int32)
    noise = np.random.default_rng(3).random((40, 24, 24)) < 0.6
    for mask in (labels, *noise.astype(np.int32)):
        for simplify in (0.5, 1, 1.5, 2, 3, 5):
            (shape,) = shapes(mask, simplify)
            assert shape.is_valid, shapely.is_valid_reason(shape)


def test_rois_that_their_boxes_cannot_hold_are_refused(tmp_path: Path) -> None:
    wide = np.zeros((1, 60_535), np.int32)
    wide[0, -20:] = 1
    found = found_in(wide)
    roi = roifile.roiread(write_imagej(tmp_path / "a.zip", found))[0]
    assert (roi.left, roi.right) == (60_515, 60_535)
    too_wide = replace(found, labels=np.pad(wide, ((0, 0), (0, 1))))
    with pytest.raises(SpatialEmbedError, match="too_large"):
        write_imagej(tmp_path / "b.zip", too_wide)
    assert not (tmp_path / "b.zip").exists()
