"""What objects.csv tells: against regionprops of scikit-image; units against files of each kind."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import regionprops_table

from spatialembed.images.pixel_size import pixel_size
from spatialembed.images.read import Page
from spatialembed.method.labels import relabel
from spatialembed.results.measurements import Measure, eccentricities, measure
from spatialembed.results.objects_csv import COLUMNS, rows
from spatialembed.types import Instances

SCATTER = (
    arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.integers(0, 3))
    .map(lambda labels: relabel(labels)[0])
)  # fmt: skip
WANTED = ("area", "bbox", "centroid", "perimeter", "eccentricity", "intensity_mean")


def coloured(shape_hw: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65_536, (*shape_hw, 3)).astype(np.uint16)


@settings(max_examples=80, deadline=None)
@given(SCATTER)
def test_measures_are_those_of_regionprops(labels: np.ndarray) -> None:
    pixels = coloured(labels.shape)
    facts = measure(labels, labels.max(), pixels)
    want = regionprops_table(labels, pixels, properties=WANTED) if labels.any() else {}
    if not want:
        assert len(facts.areas) == 0
        return
    np.testing.assert_array_equal(facts.areas, want["area"])
    for axis, column in enumerate(("bbox-1", "bbox-0", "bbox-3", "bbox-2")):
        np.testing.assert_array_equal(facts.boxes[:, axis], want[column])
    np.testing.assert_allclose(facts.centroids[:, 0], want["centroid-1"])
    np.testing.assert_allclose(facts.perimeters, want["perimeter"])
    # A square root of nearly nothing.
    ovals = eccentricities(facts.covariances)
    np.testing.assert_allclose(ovals, want["eccentricity"], atol=1e-5)
    assert facts.means is not None
    for channel in range(3):
        np.testing.assert_allclose(facts.means[:, channel], want[f"intensity_mean-{channel}"])


@settings(max_examples=80, deadline=None)
@given(SCATTER, st.integers(2, 5))
def test_bands_are_measured_as_the_whole(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray, height: int
) -> None:
    pixels, number = coloured(labels.shape), int(labels.max())
    runs = tmp_path_factory.mktemp("runs") / "runs.bin"
    banded = Measure(number, labels.shape, runs, lambda top, bottom: pixels[top:bottom])
    tops = range(0, len(labels), height)
    bands = banded.passed(labels[y : y + height].astype(np.uint32) for y in tops)
    for _ in tops:
        next(bands)  # a writer that knows the size does not ask for the end
    for whole, parts in zip(measure(labels, number, pixels), banded.facts(), strict=True):
        np.testing.assert_allclose(parts, whole, atol=1e-9)


def test_eccentricity_of_pixels_that_are_not_square() -> None:
    """A square of pixels twice as wide as high is as long as a rectangle of square ones."""
    square, wide = np.ones((20, 20), np.int32), np.ones((20, 40), np.int32)
    stretched = eccentricities(measure(square, 1).covariances, (2.0, 1.0))
    np.testing.assert_allclose(stretched, eccentricities(measure(wide, 1).covariances), atol=1e-3)


# --- columns --------------------------------------------------------------------------------

ONE = np.pad(np.ones((4, 6), np.int32), 1)


def row(pixels: np.ndarray, pixel_um: tuple[float, float] | None = None) -> dict[str, str]:
    found = Instances(ONE, np.array([0.9], np.float32), np.array([0]), ("cell",))
    text = ",".join(COLUMNS) + "\n" + rows("a", found, measure(ONE, 1, pixels), pixel_um)
    (only,) = csv.DictReader(io.StringIO(text))
    return only


def test_intensities_are_in_the_values_of_the_image() -> None:
    grey = row(np.full(ONE.shape, 40_000, np.uint16))
    assert (grey["mean_grey"], grey["mean_red"]) == ("40000.0", "")
    colour = row(np.full((*ONE.shape, 3), (0.001234567, 2, 255), np.float32))
    values = [colour[f"mean_{name}"] for name in ("grey", "red", "green", "blue")]
    assert values == ["", "0.00123457", "2.0", "255.0"]


def test_physical_units() -> None:
    grey = np.zeros(ONE.shape, np.uint8)
    plain, square, oblong = row(grey), row(grey, (0.5, 0.5)), row(grey, (0.5, 0.25))
    physical = [name for name in COLUMNS if name.endswith(("_um", "_um2"))]
    assert [plain[name] for name in physical] == [""] * 4
    assert [square[name] for name in physical] == ["6.0", "8.0", "0.5", "0.5"]
    assert [oblong[name] for name in physical] == ["3.0", "", "0.5", "0.25"]
    assert (plain["area"], square["area"], plain["perimeter"]) == ("24", "24", "16.0")


# --- the size of a pixel --------------------------------------------------------------------

OME = {"axes": "YX", "PhysicalSizeX": 250, "PhysicalSizeY": 0.5}


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param(
            {"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}, (0.25, 0.5),
            id="ImageJ-um",
        ),
        pytest.param(
            {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, (0.25, 0.25),
            id="ImageJ-escaped",
        ),
        pytest.param(
            {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "mm"}}, (250, 250),
            id="ImageJ-mm",
        ),
        pytest.param(
            {"imagej": True, "resolution": (1, 1), "metadata": {"unit": "pixel"}}, None,
            id="ImageJ-pixel",
        ),
        pytest.param(
            {"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch"}}, None,
            id="ImageJ-print",
        ),
        pytest.param(
            {"ome": True, "metadata": OME | {"PhysicalSizeXUnit": "nm"}}, (0.25, 0.5), id="OME-nm",
        ),
        pytest.param(
            {"description": '<OME><Pixels PhysicalSizeX="2" PhysicalSizeXUnit="&#xB5;m" '
             'PhysicalSizeY="3" PhysicalSizeYUnit="&#181;m"/></OME>', "metadata": None}, (2, 3),
            id="OME-escaped",
        ),
        pytest.param(
            {"ome": True, "metadata": {"axes": "YX"}, "resolution": (20_000, 10_000),
             "resolutionunit": "CENTIMETER"}, (0.5, 1), id="OME-without-size",
        ),
        pytest.param(
            {"resolution": (2540, 2540), "resolutionunit": "INCH"}, (10, 10), id="inch",
        ),
        pytest.param({"resolution": (72, 72), "resolutionunit": "INCH"}, None, id="print"),
        pytest.param({"resolution": (4, 4), "resolutionunit": "NONE"}, None, id="ratio-only"),
        pytest.param(
            {"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER",
             "extratags": [(274, 3, 1, 6, True)]}, (1, 0.5), id="turned",
        ),
    ],
)  # fmt: skip
def test_pixel_size(
    tmp_path: Path, settings: dict[str, object], size: tuple[float, float] | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((8, 9), np.uint8), **settings)
    assert pixel_size(path) == (None if size is None else pytest.approx(size))
    assert pixel_size(Page(path, 0)) == pixel_size(path)


@pytest.mark.parametrize(("second", "size"), [(0.5, (0.5, 0.5)), (8.0, None)])
def test_pixel_size_of_a_later_image_is_not_guessed(
    tmp_path: Path, second: float, size: tuple[float, float] | None
) -> None:
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for side in (0.5, second):
            sides = {"axes": "YX", "PhysicalSizeX": side, "PhysicalSizeY": side}
            file.write(np.zeros((8, 9), np.uint8), metadata=sides)
    assert pixel_size(path) == pixel_size(Page(path, 0)) == (0.5, 0.5)
    assert pixel_size(Page(path, 1)) == size


def test_pixel_size_of_what_is_no_tiff(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(4))
    assert pixel_size(tmp_path / "a.tif") is None
    assert pixel_size(tmp_path / "gone.tif") is None


@pytest.mark.parametrize("ome", [True, False])
def test_pixel_size_of_zarr(tmp_path: Path, ome: bool) -> None:
    scales = {
        "axes": [{"name": n, "type": "space", "unit": "nanometer"} for n in "yx"],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [500, 250]}]}
        ],
    }
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    if ome:
        group["attributes"] = {"ome": {"version": "0.5", "multiscales": [scales]}}
    (tmp_path / "zarr.json").write_text(json.dumps(group))
    assert pixel_size(tmp_path) == ((0.25, 0.5) if ome else None)
