"""The floor of a stretch by percentiles, from every way that an image becomes network input."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from known_predictor import known
from spatialembed.images.overview import look_over
from spatialembed.images.windows import open_large
from spatialembed.inference.device import device_input
from spatialembed.method.noise import (
    SIGNAL_PX,
    block_deviations,
    out_of_noise,
    quiet_noise,
    stretch_is_noise,
)
from spatialembed.method.normalization import network_input
from spatialembed.types import Normalization

PLAIN = Normalization()
FLOOR = Normalization(noise_floor=10.0, ceiling=1.5)


def noise(deviation: float, *, ground: float = 500.0, side: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(ground, deviation, (side, side))


def discs(image: np.ndarray, level: float, *, count: int = 2, radius: int = 5) -> np.ndarray:
    """Which pixels were made bright, in place."""
    ys, xs = np.mgrid[: image.shape[0], : image.shape[1]]
    inside = np.zeros(image.shape, bool)
    for k in range(count):
        inside |= np.hypot(ys - 40 - 90 * k, xs - 60 - 70 * k) < radius
    image[inside] += level
    return inside


@pytest.mark.parametrize("deviation", [1.0, 7.5, 300.0])
def test_noise_is_measured(deviation: float) -> None:
    image = noise(deviation, ground=3000).astype(np.float32)
    assert quiet_noise(image)[0] == pytest.approx(deviation, rel=0.1)
    discs(image, 50 * deviation)  # objects do not count
    assert quiet_noise(image)[0] == pytest.approx(deviation, rel=0.1)


def test_noise_of_channels() -> None:
    image = np.stack([noise(s, seed=i) for i, s in enumerate((2, 20, 5))], axis=-1)
    assert quiet_noise(image) == pytest.approx([2, 20, 5], rel=0.1)


def test_noise_of_eight_bits_is_two_levels_at_least() -> None:
    assert quiet_noise(np.full((64, 64), 7, np.uint8)).tolist() == [2.0]
    assert quiet_noise(np.full((64, 64), 7, np.uint16)).tolist() == [0.0]


def test_small_images_tell_nothing() -> None:
    assert block_deviations(np.zeros((15, 400, 3))).shape == (0, 3)
    assert quiet_noise(np.zeros((15, 400, 3))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(16, 16, 1), (50, 70, 3), (1300, 1500, 1)])
def test_deviations_of_integers_are_those_of_floats(
    dtype: type, size: tuple[int, int, int]
) -> None:
    image = np.random.default_rng(0).integers(np.iinfo(dtype).max, size=size, endpoint=True)
    image[: size[0] // 2] //= 9  # of other kinds of blocks
    found = block_deviations(image.astype(dtype))
    np.testing.assert_allclose(found, block_deviations(image.astype(np.float64)), rtol=1e-12)
    turned = np.moveaxis(image, 0, 1).astype(dtype)
    np.testing.assert_array_equal(block_deviations(turned.copy()), block_deviations(turned))
    top = 32  # of a band in a larger image
    band, whole = image[top:], size[:2]
    np.testing.assert_allclose(
        block_deviations(band.astype(dtype), whole, top),
        block_deviations(band.astype(np.float64), whole, top),
        rtol=1e-12,
    )


def test_large_images_are_sampled_evenly() -> None:
    image = np.zeros((2048, 2048), np.uint8)
    assert len(block_deviations(image)) == 4096


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_blank_field_stays_dim(dtype: type) -> None:
    image = noise(4, ground=60).astype(dtype)
    assert float(network_input(image, PLAIN).std()) > 0.15
    assert float(network_input(image, FLOOR).std()) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("sign", [1, -1])
def test_few_objects_are_as_bright_as_many(dtype: type, sign: int) -> None:
    """Two discs of 0.15 % of the pixels: the plain 99.8 percentile lies in the noise."""
    image = noise(3, ground=128, side=320)
    inside = discs(image, 100.0 * sign, radius=5)
    image = image.astype(dtype)
    assert inside.mean() < 0.002
    plain, floored = (network_input(image, how)[0].numpy() for how in (PLAIN, FLOOR))
    assert abs(float(np.median(plain[inside]))) > 5
    here, there = float(np.median(floored[inside])), float(np.median(floored[~inside]))
    assert (here, there) == pytest.approx((1, 0) if sign > 0 else (0, 1), abs=0.12)


def test_a_speck_is_no_object() -> None:
    image = noise(3, ground=100)
    image[10, 10 : 10 + SIGNAL_PX - 1] = 4000
    found = network_input(image.astype(np.float32), FLOOR)
    assert float(found.std()) == pytest.approx(0.1, abs=0.02)
    assert float(found.max()) == 1.5  # the ceiling


def test_usual_images_are_stretched_as_before() -> None:
    image = noise(3, ground=30)
    inside = discs(image, 90, radius=25)
    image = image.astype(np.uint8)
    assert inside.mean() > 0.05
    before, now = network_input(image, PLAIN), network_input(image, FLOOR)
    assert torch.equal(before.clamp_max(1.5), now)


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_a_blank_jpeg_stays_dim(quality: int) -> None:
    file = io.BytesIO()
    grey = Image.fromarray(noise(1.5, ground=30, side=512).astype(np.uint8))
    grey.save(file, "JPEG", quality=quality)
    image = np.asarray(Image.open(file))
    assert float(network_input(image, FLOOR).std()) < 0.12


def test_constant_images_become_zero() -> None:
    for dtype in (np.uint8, np.uint16, np.float32):
        assert not network_input(np.full((40, 40), 9, dtype), FLOOR).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_way_gives_the_same(dtype: type, tmp_path: Path) -> None:
    image = noise(3, ground=100)
    discs(image, 100, count=1)
    image = image.astype(dtype)
    expected = network_input(image, FLOOR)
    if dtype == np.uint8:
        found = device_input(image, FLOOR, torch.device("cpu"))
        assert torch.equal(found, expected)
    tifffile.imwrite(tmp_path / "a.tif", image)
    large = open_large(tmp_path / "a.tif", tmp_path)
    overview = look_over(large, FLOOR, side=64)
    large.close()
    # Floats of a large image are counted coarsely but at the percentiles themselves.
    most = 0.02 if dtype == np.float32 else 0
    found = network_input(image, FLOOR, overview.levels)
    torch.testing.assert_close(found, expected, rtol=0, atol=most)


@pytest.mark.parametrize("rows", [1, 10, 33, 400])
def test_noise_of_bands_is_that_of_the_whole(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more blocks than are looked at, in bands that are no whole number of blocks."""
    monkeypatch.setattr("spatialembed.images.overview.BAND_PIXELS", rows * 1610)
    monkeypatch.setattr("spatialembed.method.noise.BLOCKS", 1000)
    rng = np.random.default_rng(0)
    image = rng.normal(500, np.linspace(1, 9, 1610), (1290, 1610)).astype(np.uint16)
    assert 500 < len(block_deviations(image)) < 4000
    tifffile.imwrite(tmp_path / "a.tif", image)
    large = open_large(tmp_path / "a.tif", tmp_path)
    levels = look_over(large, replace(FLOOR, noise_floor=300.0), side=999).levels
    large.close()
    floored = network_input(image, replace(FLOOR, noise_floor=300.0))
    assert torch.equal(network_input(image, replace(FLOOR, noise_floor=300.0), levels), floored)


def test_floats_beyond_the_sample_have_nearly_their_percentiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spatialembed.images.overview.SAMPLED", 40_000)
    monkeypatch.setattr("spatialembed.images.overview.BAND_PIXELS", 7000)
    image = np.random.default_rng(0).random((600, 700)).astype(np.float32)  # uniform: value = rank
    tifffile.imwrite(tmp_path / "a.tif", image)
    large = open_large(tmp_path / "a.tif", tmp_path)
    levels = look_over(large, PLAIN, side=64).levels
    large.close()
    assert levels is not None
    assert (levels.low, levels.high) == pytest.approx((0.01, 0.998), abs=0.002)
    assert (levels.least, levels.most) == (image.min(), image.max())


def test_ends_of_a_stretch() -> None:
    values = np.array([0.0, 1, 2, 50, 60])
    assert out_of_noise(0, 2, values, np.array([10, 900, 10, 0, 0]), 5) == (0, 5)
    assert out_of_noise(0, 2, values, np.array([10, 900, 10, 20, 2]), 5) == (0, 50)
    assert out_of_noise(0, 2, values, np.array([10, 900, 10, 8, 7]), 5) == (0, 5)


def test_noise_alone_is_told() -> None:
    blank = noise(3, ground=100)
    assert stretch_is_noise(blank.astype(np.uint16), 1, 99.8)
    assert not stretch_is_noise(np.full((64, 64), 5, np.uint8), 1, 99.8)
    discs(blank, 200, radius=30)
    assert not stretch_is_noise(blank.astype(np.uint16), 1, 99.8)


@pytest.mark.parametrize("floor", [0.0, 10.0])
@pytest.mark.parametrize("way", ["call", "many", "tiles"])
def test_a_model_without_floor_warns(
    way: str, floor: float, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    image = noise(3, ground=100, side=64).astype(np.uint8)
    predictor, how = known(), Normalization(noise_floor=floor)
    predictor.info = replace(predictor.info, normalization=how)
    if way == "call":
        predictor(image)
    elif way == "many":
        next(predictor.map([image]))
    else:
        tifffile.imwrite(tmp_path / "a.tif", image)
        with closing(open_large(tmp_path / "a.tif", tmp_path)) as large:
            look_over(large, how, side=64)
    assert ("percentiles lie in the noise" in caplog.text) == (floor == 0)
