"""The ambiguity map: known answers on drawn maps, and the plain way over every pair."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from known_predictor import known, scene
from spatialembed.inference.predict_folder import predict_folder
from spatialembed.method.ambiguity import LEAST, ambiguity, seed_pixels
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.types import UNIT, Embeddings, Instances

PX_OF_HALF = UNIT * math.sqrt(math.log(2) / math.exp(10))  # margin of log-precision 1
MANY = ClusterOptions(foreground=0.1, start=0.3, min_pixels=3, min_free=0.3)


def maps_of(seed: int, size: tuple[int, int] = (18, 23), classes: int = 1) -> Embeddings:
    g = torch.Generator().manual_seed(seed)
    offset = torch.randn(1, 2, *size, generator=g) * 3 / UNIT
    raw = 0.9 + 0.1 * torch.randn(1, 2, *size, generator=g)
    return Embeddings(offset, raw, torch.rand(1, classes, *size, generator=g))


def plainly(maps: Embeddings, found: Instances, seeds: np.ndarray) -> np.ndarray:
    """Every instance against every pixel, in float64."""
    height, width = found.labels.shape
    at = np.stack(np.meshgrid(np.arange(width), np.arange(height))).reshape(2, -1) / UNIT
    e = at + maps.offset[0].double().numpy().reshape(2, -1)
    p = np.exp(10 * maps.log_precision[0].double().numpy()).reshape(2, -1)
    owner = found.labels.ravel()
    result = np.zeros(len(owner))
    for i in range(len(owner)):
        for k, s in enumerate(seeds):
            phi = math.exp(-float((p[:, s] * (e[:, i] - e[:, s]) ** 2).sum()))
            result[i] = max(result[i], 1 - phi if owner[i] == k + 1 else phi)
    return result.reshape(height, width)


@given(seed=st.integers(0, 10_000), classes=st.integers(1, 2))
@settings(max_examples=8, deadline=None)
def test_as_by_every_pair(seed: int, classes: int) -> None:
    maps = maps_of(seed, classes=classes)
    found = cluster(maps, MANY)[0].numpy()
    seeds = seed_pixels(found, maps.seed[0].flatten(1).numpy())
    said = ambiguity(maps, found)
    assert said.dtype == np.float32
    np.testing.assert_allclose(said, plainly(maps, found, seeds), atol=1.01 * LEAST)


def test_seed_pixels_are_those_of_the_clustering() -> None:
    """With one class the seed is the highest of its instance, unless it was taken before."""
    maps = maps_of(0)
    found = cluster(maps, MANY)[0].numpy()
    assert len(found) > 3
    seeds = seed_pixels(found, maps.seed[0].flatten(1).numpy())
    assert np.array_equal(maps.seed.flatten().numpy()[seeds], found.scores)
    assert found.labels.ravel()[seeds].tolist() == list(range(1, len(found) + 1))


def border_scene() -> tuple[Embeddings, Instances]:
    """A row of pixels that embed where they stand; two instances that grew from x = 10 and 20."""
    width = 40
    seed = torch.full((1, 1, 1, width), 0.6)
    seed[..., 10], seed[..., 20] = 0.99, 0.95
    maps = Embeddings(torch.zeros(1, 2, 1, width), torch.ones(1, 1, 1, width), seed)
    labels = np.zeros((1, width), np.int32)
    labels[0, 5:16], labels[0, 16:26] = 1, 2
    return maps, Instances(labels, np.array([0.99, 0.95], np.float32), np.zeros(2, np.int64))


def test_a_known_answer() -> None:
    said = ambiguity(*border_scene())[0]

    def phi(distance_px: float) -> float:
        return 0.5 ** ((distance_px / PX_OF_HALF) ** 2)

    assert said[10] == pytest.approx(phi(10), abs=1e-6)  # its own seed, seen from the other
    assert said[15] == pytest.approx(max(1 - phi(5), phi(5)), abs=1e-6)  # disputed
    assert said[30] == pytest.approx(phi(10), abs=1e-6)  # background
    assert said[39] == 0  # far from all
    alone = border_scene()[1][[0]]
    assert ambiguity(border_scene()[0], alone)[0, 10] == 0


def test_nothing_found_is_nothing_ambiguous() -> None:
    nothing = Instances(
        np.zeros((18, 23), np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    )
    assert not ambiguity(maps_of(0), nothing).any()


def test_the_picture_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    Image.fromarray(scene(0)).save(tmp_path / "a.png")
    predictor = known()
    for asked in (False, True):
        out = tmp_path / f"out{asked}"
        predict_folder(predictor, [tmp_path / "a.png"], out, ambiguity=asked, progress=False)
        assert (out / "a_ambiguity.png").exists() == asked
    picture = np.asarray(Image.open(tmp_path / "outTrue" / "a_ambiguity.png"))
    expected = ambiguity(predictor.embeddings(scene(0)), predictor(scene(0)))
    assert picture.dtype == np.uint8
    np.testing.assert_allclose(picture, 255 * expected, atol=0.501)
