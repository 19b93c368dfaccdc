"""Objects of other sizes: the scale that suits an image, by a network that knows one size only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import model_file
from spatialembed.inference.diameter import (
    DIAMETERS,
    Seen,
    best_scale,
    factor_for,
    parse_diameter,
    rescaled_options,
)
from spatialembed.inference.engine import map_back, resize
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor, load
from spatialembed.inference.tiling import image_context, tile_for
from spatialembed.method.calibration import Calibration
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import UNIT, Embeddings, Instances, Normalization

KNOWN_PX = (12, 32)
"""Diameters, as it sees them, of the discs that ``OneSize`` knows."""


class OneSize:
    """Finds bright discs of known sizes; other ones it breaks into squares it is not sure of."""

    name = "one size"
    precision = "float32"
    device = torch.device("cpu")

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.seen: list[tuple[int, int]] = []

    def __call__(self, images: Tensor) -> Embeddings:
        height, width = images.shape[-2:]
        size = round(height * self.scale), round(width * self.scale)
        self.seen.append(size)
        maps = [_maps(image[0].numpy()) for image in resize(images, size)]
        whole = Embeddings(*(torch.from_numpy(np.stack(m)) for m in zip(*maps, strict=True)))
        return map_back(whole, (height, width))


def _maps(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from skimage.measure import label, regionprops

    offset = np.zeros((2, *grey.shape), np.float32)
    seed = np.zeros((1, *grey.shape), np.float32)
    for part in regionprops(label(grey > 0.5)):
        ys, xs = part.coords.T
        if KNOWN_PX[0] <= part.equivalent_diameter_area <= KNOWN_PX[1]:
            (y, x), sure = part.centroid, 0.97
        else:
            y, x, sure = ys // 8 * 8 + 4, xs // 8 * 8 + 4, 0.92  # type: ignore[assignment]
        offset[0, ys, xs], offset[1, ys, xs] = (x - xs) / UNIT, (y - ys) / UNIT
        seed[0, ys, xs] = sure
    return offset, np.full((2, *grey.shape), 1.1, np.float32), seed


CALIBRATION = Calibration((0.9, 0.96, 0.98), (0.2, 0.9, 0.95), 1000, 0.0, 0.0)
INFO = ModelInfo(
    ("disc",),
    True,
    Normalization("none"),
    ClusterOptions(min_pixels=20),
    training={DIAMETERS: {"p5": 12.0, "p50": 20.0, "p95": 32.0}},
    calibration=CALIBRATION,
)


def picture(diameter: float, side: int = 256, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on black, uint8, and their labels."""
    ys, xs = np.mgrid[:side, :side] + 0.5
    labels = np.zeros((side, side), np.int32)
    for k in range(count):
        y, x = (side / 4 + side / 2 * (k // 2)), (side / 4 + side / 2 * (k % 2))
        labels[np.hypot(ys - y, xs - x) < diameter / 2] = k + 1
    return (labels > 0).astype(np.uint8) * 230, labels


def right(found: Instances, labels: np.ndarray) -> int:
    """True discs that were found with an IoU above 0.8."""
    count = 0
    for k in range(1, labels.max() + 1):
        hit = np.bincount(found.labels[labels == k]).argmax()
        both = ((found.labels == hit) & (labels == k)).sum()
        count += hit > 0 and both / ((found.labels == hit) | (labels == k)).sum() > 0.8
    return int(count)


@pytest.mark.parametrize(("diameter", "engine_scale"), [(20, 1), (50, 1), (100, 1), (100, 0.5)])
def test_auto_finds_the_scale(diameter: float, engine_scale: float) -> None:
    image, labels = picture(diameter)
    predictor = Predictor(OneSize(engine_scale), INFO, "auto")
    found = predictor(image)
    assert found.labels.shape == labels.shape
    assert right(found, labels) == len(found) == 4
    [of_many] = predictor.map([image])
    assert np.array_equal(of_many.labels, found.labels)


def test_native_does_not_look_for_it() -> None:
    image, labels = picture(100)
    engine = OneSize()
    assert right(Predictor(engine, INFO)(image), labels) == 0
    assert engine.seen == [(256, 256)]


def test_usual_images_cost_one_more_look() -> None:
    engine = OneSize()
    Predictor(engine, INFO, "auto")(picture(20)[0])
    assert engine.seen == [(256, 256), (128, 128)]  # its copies share the list


def test_a_diameter_in_px() -> None:
    image, labels = picture(100)
    predictor = Predictor(OneSize(), INFO, 100.0)
    assert right(predictor(image), labels) == 4
    assert predictor.settings.min_pixels == 500
    assert Predictor(OneSize(), INFO, 30.0).engine.scale == 1  # as it was trained


@pytest.mark.parametrize("diameter", np.geomspace(2, 600, 40).tolist())
def test_large_images_can_be_tiled_at_any_diameter(diameter: float) -> None:
    predictor = Predictor(OneSize(), INFO, diameter)
    scale, wanted = predictor.engine.scale, factor_for(INFO, diameter)
    assert abs(scale / wanted - 1) < 0.05
    assert predictor.settings.min_pixels == round(20 / scale**2)
    context = image_context(128, scale, 16)
    assert tile_for(2.1e9, context, scale, 16) > context


def test_factor() -> None:
    assert factor_for(INFO, 12.0) == factor_for(INFO, 32.0) == 1
    assert factor_for(INFO, 100.0) == 0.2
    assert factor_for(INFO, 5.0) == 4
    with pytest.raises(SpatialEmbedError, match="no_diameter"):
        factor_for(replace(INFO, training={}), 20.0)


def test_thresholds_follow_the_size() -> None:
    assert rescaled_options(ClusterOptions(min_pixels=20), 0.5).min_pixels == 80


def test_a_min_pixels_that_is_given_counts_pixels_of_the_image() -> None:
    image, labels = picture(100)  # discs of 7,854 px
    assert right(Predictor(OneSize(), INFO, "auto")(image, min_pixels=5000), labels) == 4


def test_turns_are_averaged_at_every_scale() -> None:
    image, labels = picture(100)
    engine = OneSize()
    assert right(Predictor(engine, INFO, "auto")(image, augment=True), labels) == 4
    assert len(engine.seen) % 8 == 0


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("native", "native"), ("35", 35.0)])
def test_parsed(text: str, value: object) -> None:
    assert parse_diameter(text) == value


@pytest.mark.parametrize("text", ["", "big", "-3", "0", "nan", "inf"])
def test_refused(text: str) -> None:
    with pytest.raises(SpatialEmbedError, match="diameter is"):
        parse_diameter(text)


def test_without_calibration_nothing_is_tried() -> None:
    engine = OneSize()
    image = torch.from_numpy(picture(100)[0] / np.float32(255)).expand(3, 256, 256)
    maps = engine(image[None])
    none = Instances(np.zeros((256, 256), np.int32), np.zeros(0), np.zeros(0, np.int64))
    info = replace(INFO, calibration=None)
    result = best_scale(engine, info, image, Seen(none, maps), INFO.thresholds, augment=False)
    assert result == (none, maps, 1.0)
    assert len(engine.seen) == 1


def test_a_model_says_whether_other_scales_are_tried(tmp_path: Path) -> None:
    net = SpatialEmbeddingNet(1)
    info = ModelInfo(("cell",), True, Normalization(), ClusterOptions(), diameter="auto")
    model_file.save(tmp_path / "model", net, info)
    assert load(tmp_path / "model", device="cpu").diameter == "auto"
    assert load(tmp_path / "model", device="cpu", diameter="native").diameter == "native"
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    facts["diameter"] = "large"
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(SpatialEmbedError, match=r"bad_model.*diameter"):
        load(tmp_path / "model", device="cpu")


def test_an_uneven_light_is_no_object() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    field = 60 - 25 * (x**2 + y**2) + rng.normal(0, 3, (512, 512))
    found = load("nuclei", device="cpu")(np.clip(field, 0, 255).astype(np.uint8))
    assert len(found) == 0
