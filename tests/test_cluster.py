"""Clustering: two ways and an oracle agree; known answers; linear work on hostile maps."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle_cluster
from plain_cluster import cluster_plain
from spatialembed.errors import SpatialEmbedError
from spatialembed.method import geometry
from spatialembed.method.cluster import cluster
from spatialembed.method.ground_truth import cluster_with_truth
from spatialembed.method.kernels import candidates, cpu, groups
from spatialembed.options import ClusterOptions
from spatialembed.types import UNIT, Embeddings, Instances, Target

EVERYTHING = ClusterOptions(min_pixels=0)


def embeddings(offset: Any, log_precision: Any, seed: Any) -> Embeddings:
    """One image: offset (2, H, W) in units, log_precision (S, H, W), seed (C, H, W)."""
    maps = (torch.as_tensor(np.asarray(m, np.float32))[None] for m in (offset, log_precision, seed))
    return Embeddings(*maps)


def pointing(
    target_px: np.ndarray, log_precision: float | np.ndarray, seed: np.ndarray, channels: int = 1
) -> Embeddings:
    """Pixels that embed at target_px (2, H, W) (x, y), of one bandwidth."""
    height, width = target_px.shape[1:]
    y, x = np.mgrid[:height, :width]
    offset = (target_px - np.stack((x, y))) / UNIT
    return embeddings(offset, np.broadcast_to(log_precision, (channels, height, width)), seed)


def log_precision_of(margin_px: float) -> float:
    return math.log(math.log(2) / (margin_px / UNIT) ** 2) / 10


def random_maps(  # one knob for each trap
    rng: np.random.Generator,
    size: tuple[int, int] = (9, 11),
    *,
    classes: int = 1,
    channels: int = 1,
    spread_px: float = 12.0,
    margin_px: tuple[float, float] = (0.5, 8.0),
    levels: int = 12,
) -> Embeddings:
    """Noise: embeddings over ``spread_px``, margins log-uniform, few values of seeds: ties."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    offset = (rng.uniform(0, spread_px, (2, height, width)) - np.stack((x, y))) / UNIT
    raw = [log_precision_of(m) for m in margin_px]
    log_precision = rng.uniform(raw[1], raw[0], (channels, height, width))
    seed = 0.4 + 0.6 * rng.integers(0, levels + 1, (classes, height, width)) / levels
    return embeddings(offset, log_precision, seed)


def same(a: Instances, b: Instances) -> None:
    """Equal to the last bit."""
    assert torch.equal(a.labels, b.labels)
    assert torch.equal(a.scores, b.scores)
    assert torch.equal(a.classes, b.classes)
    assert (a.class_names, a.truncated) == (b.class_names, b.truncated)


def both(prediction: Embeddings, options: ClusterOptions = EVERYTHING) -> Instances:
    """The one image of a prediction, clustered in both ways, after checking the invariants."""
    fast, plain = cluster(prediction, options)[0], cluster_plain(prediction, options)[0]
    same(fast, plain)
    n = len(fast)
    assert fast.labels.dtype == torch.int32
    assert fast.scores.dtype == torch.float32
    assert fast.classes.dtype == torch.int64
    assert sorted(fast.labels.unique().tolist()) in (list(range(n + 1)), list(range(1, n + 1)))
    assert (fast.scores[1:] <= fast.scores[:-1]).all()
    return fast


def against_oracle(prediction: Embeddings, options: ClusterOptions = EVERYTHING) -> Instances:
    found = both(prediction, options)
    e = geometry.embed(prediction.offset)[0].numpy()
    p = oracle_cluster.precision(prediction.log_precision[0].numpy())
    labels, scores, classes, truncated = oracle_cluster.cluster(
        e, p, prediction.seed[0].numpy(), options
    )
    assert np.array_equal(found.labels, labels)
    assert found.scores.tolist() == scores
    assert found.classes.tolist() == classes
    assert found.truncated == truncated
    return found


@settings(max_examples=60, deadline=None)
@given(
    rng_seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    classes=st.integers(1, 3),
    channels=st.integers(1, 2),
    spread_px=st.sampled_from((0.0, 1e-3, 3.0, 12.0, 900.0)),
    margin_px=st.sampled_from(((1e-6, 1e-3), (0.3, 1.0), (0.5, 8.0), (1e-6, 1e11), (1e6, 1e11))),
    levels=st.sampled_from((1, 3, 12, 1000)),
    options=st.builds(
        ClusterOptions,
        foreground=st.sampled_from((0.0, 0.45, 0.5, 0.9)),
        start=st.sampled_from((0.0, 0.7, 0.9)),
        membership=st.sampled_from((0.1, 0.5, 0.95)),
        min_pixels=st.integers(0, 4),
        min_free=st.sampled_from((0.0, 0.3, 0.5, 0.8)),
        max_instances=st.sampled_from((None, 1, 3)),
    ),
)
def test_ways_equal_oracle(rng_seed: int, options: ClusterOptions, **maps: Any) -> None:
    against_oracle(random_maps(np.random.default_rng(rng_seed), **maps), options)


@pytest.mark.parametrize("rng_seed", range(6))
@pytest.mark.parametrize("channels", [1, 2])
def test_ways_equal_where_trees_grow(rng_seed: int, channels: int) -> None:
    rng = np.random.default_rng(rng_seed)
    margin_px = [(0.05, 0.5), (0.5, 30.0), (1e-3, 15.0)][rng_seed % 3]
    prediction = random_maps(
        rng, (48, 53), classes=2, channels=channels, spread_px=60, margin_px=margin_px, levels=400
    )
    assert len(both(prediction)) > 5


@pytest.mark.parametrize("height", range(1, 34))
def test_every_size(height: int) -> None:
    """INF-08, as far as the clustering goes."""
    rng = np.random.default_rng(height)
    for width in (height, 34 - height):
        prediction = random_maps(rng, (height, width), spread_px=40)
        found = both(prediction) if height * width > 99 else against_oracle(prediction)
        assert found.labels.shape == (height, width)


def discs(size: int, step: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth (size, size) int32 of discs in rows, and each pixel's centre (2, size, size)."""
    y, x = np.mgrid[:size, :size]
    column, row = x // step, y // step
    center = np.stack((column, row)) * step + step // 2
    inside = ((x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2) & (
        (np.maximum(column, row) + 1) * step <= size
    )
    truth = np.where(inside, row * (size // step) + column + 1, 0).astype(np.int32)
    return truth, np.where(inside, center, np.stack((x, y)))


def same_partition(found: np.ndarray, truth: np.ndarray) -> bool:
    pairs = np.unique(np.stack((found.ravel(), truth.ravel())), axis=1)
    return (
        len(pairs[0]) == len(np.unique(found)) == len(np.unique(truth)) and (pairs[:, 0] == 0).all()
    )


@pytest.mark.parametrize(
    ("size", "step", "radius", "count"),
    [
        pytest.param(64, 32, 12, 4, id="few"),
        pytest.param(256, 4, 1, 4096, id="thousands"),
        pytest.param(400, 4, 1, 10_000, id="INF-05-10000"),
        pytest.param(52, 3, 1, 289, id="LBL-01-300"),
    ],
)
def test_discs_come_back(size: int, step: int, radius: int, count: int) -> None:
    truth, center = discs(size, step, radius)
    prediction = pointing(center, log_precision_of(step / 3), np.where(truth, 0.95, 0.0)[None], 2)
    found = cluster(prediction, ClusterOptions(min_pixels=3))[0]
    assert len(found) == truth.max() == count
    assert same_partition(found.labels.numpy(), truth)
    if count < 5000:
        same(found, cluster_plain(prediction, ClusterOptions(min_pixels=3))[0])


@pytest.mark.parametrize("count", [pytest.param(70_000, id="INF-05-LBL-01-70000")])
def test_more_ids_than_16_bits(count: int) -> None:
    size = 530  # 265 x 265 blocks of 2 x 2: 70,225
    y, x = np.mgrid[:size, :size]
    center = np.stack((x // 2, y // 2)) * 2.0 + 0.5
    found = cluster(
        pointing(center, log_precision_of(0.5), np.full((1, size, size), 0.95)), EVERYTHING
    )[0]
    assert len(found) == 265**2 > count
    assert (torch.bincount(found.labels.flatten())[1:] == 4).all()


@pytest.mark.parametrize("classes", [1, 3])
def test_background_only(classes: int) -> None:
    """INF-01"""
    found = both(pointing(np.zeros((2, 7, 5)), 1.0, np.full((classes, 7, 5), 0.5)))
    assert len(found) == 0
    assert found.labels.shape == (7, 5)
    assert not found.labels.any()
    assert not found.truncated
    assert found.class_names == (("object",) if classes == 1 else ("class 0", "class 1", "class 2"))


def test_seeds_below_start_only() -> None:
    assert len(both(pointing(np.zeros((2, 7, 5)), 1.0, np.full((1, 7, 5), 0.89)))) == 0


def test_thresholds_are_float32() -> None:
    """float32(0.9) starts, float32(0.7) is not above 0.7, on whatever side of the decimal."""
    seed = np.full((1, 2, 2), 0.9, np.float32)
    options = ClusterOptions(foreground=0.7, min_pixels=0)
    assert both(pointing(np.zeros((2, 2, 2)), 1.0, seed), options).areas.tolist() == [4]
    seed[0, 1, 1] = np.float32(0.7)
    assert both(pointing(np.zeros((2, 2, 2)), 1.0, seed), options).areas.tolist() == [3]
    seed[0, 0] = np.nextafter(np.float32(0.9), np.float32(0))
    seed[0, 1] = np.float32(0.8)
    assert len(both(pointing(np.zeros((2, 2, 2)), 1.0, seed), options)) == 0


@pytest.mark.parametrize(("min_pixels", "found"), [(11, 1), (12, 0), (13, 0)])
def test_min_pixels_is_exclusive(min_pixels: int, found: int) -> None:
    prediction = pointing(np.zeros((2, 3, 4)), 1.0, np.full((1, 3, 4), 0.95))
    assert len(both(prediction, ClusterOptions(min_pixels=min_pixels))) == found


@pytest.mark.parametrize(("shared", "kept"), [(3, True), (4, False), (5, False)])
def test_more_than_half_must_be_free(shared: int, kept: bool) -> None:
    """Eight members at 10 px; ``shared`` of them belong to an earlier seed at 0 px as well."""
    target = np.zeros((2, 1, 20))
    target[0, 0, 8:] = 10.0
    target[0, 0, 8 : 8 + shared] = 6.0  # within 7 px of the first centre, within 5 px of the second
    log_precision = np.full((1, 1, 20), log_precision_of(7.0))
    log_precision[..., 8:] = log_precision_of(5.0)
    seed = np.full((1, 1, 20), 0.95)
    seed[..., :8], seed[..., 16:] = 0.99, 0.0
    found = against_oracle(pointing(target, log_precision, seed))
    assert found.areas.tolist() == ([8 + shared, 8 - shared] if kept else [8 + shared])


def test_rejected_round_leaves_its_members_to_others() -> None:
    """A small strong heap is no instance but takes its pixels; a wide one over them wins them."""
    target = np.zeros((2, 1, 12))
    target[0, 0, 3:] = 4.0
    seed = np.full((1, 1, 12), 0.95)
    seed[..., :3] = 0.99
    log_precision = np.where(np.arange(12) < 3, log_precision_of(1.0), log_precision_of(9.0))[
        None, None
    ]
    found = against_oracle(pointing(target, log_precision, seed), ClusterOptions(min_pixels=5))
    assert found.areas.tolist() == [12]
    assert found.scores.tolist() == [np.float32(0.95).item()]


@pytest.mark.parametrize("value", [0.95, pytest.param(1.0, id="INF-04")])
def test_ties_take_the_lowest_index(value: float) -> None:
    """Of equal seeds in a chain the first in reading order starts, run after run."""
    target = np.zeros((2, 4, 4))
    target[0] = np.arange(16).reshape(4, 4) * 4.0  # a chain; a margin of 5 px holds the neighbours
    prediction = pointing(target, log_precision_of(5.0), np.full((1, 4, 4), value))
    found = against_oracle(prediction)
    assert found.labels.flatten()[:3].tolist() == [1, 1, 2]
    for _ in range(3):
        same(cluster(prediction, EVERYTHING)[0], found)


@pytest.mark.parametrize(
    ("second", "owner"), [(0.97, 1), pytest.param(0.95, 0, id="INF-06"), (0.92, 0)]
)
def test_overlap_goes_to_the_higher_score_then_the_lower_class(second: float, owner: int) -> None:
    """One heap in two classes; a class left without a pixel is dropped."""
    seed = np.stack((np.full((5, 5), 0.95), np.full((5, 5), second)))
    found = against_oracle(pointing(np.zeros((2, 5, 5)), 1.0, seed))
    assert found.classes.tolist() == [owner]
    assert found.areas.tolist() == [25]


def test_overlapping_proposals_share_no_pixel() -> None:
    """INF-06: areas add up to the labelled pixels."""
    prediction = random_maps(
        np.random.default_rng(0), (40, 40), classes=3, channels=2, spread_px=50
    )
    found = both(prediction)
    assert found.areas.sum() == (found.labels > 0).sum()
    assert (found.areas > 0).all()


@pytest.mark.parametrize(
    ("most", "count", "truncated"), [(None, 4, False), (4, 4, False), (3, 3, True), (1, 1, True)]
)
def test_max_instances(most: int | None, count: int, truncated: bool) -> None:
    truth, center = discs(64, 32, 12)
    seed = np.where(truth, 0.9 + truth / 100, 0.0)[None]
    prediction = pointing(center, log_precision_of(6.0), seed)
    found = both(prediction, ClusterOptions(max_instances=most))
    assert (len(found), found.truncated) == (count, truncated)
    assert found.scores.tolist() == [np.float32(0.94 - i / 100).item() for i in range(count)]


def test_max_instances_counts_all_classes() -> None:
    truth, center = discs(64, 32, 12)
    seed = np.stack([np.where(truth == k, 0.9 + k / 100, 0.0) for k in (1, 2, 3, 4)])
    prediction = pointing(center, log_precision_of(6.0), seed)
    found = against_oracle(prediction, ClusterOptions(max_instances=2))
    assert found.classes.tolist() == [3, 2]
    assert found.truncated


@pytest.mark.parametrize("raw", [-20.0, 20.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_extreme_bandwidths(raw: float, channels: int) -> None:
    target = np.random.default_rng(0).uniform(-2000, 3000, (2, 6, 6))  # outside the image too
    found = against_oracle(pointing(target, raw, np.full((1, 6, 6), 0.95), channels))
    assert len(found) == (1 if raw < 0 else 36)


@pytest.mark.parametrize("thin", [0, 1])
def test_extreme_aspect_ratio(thin: int) -> None:
    """Margins of a row of the universe, a hair thick."""
    y, x = np.mgrid[:6, :7]
    log_precision = np.full((2, 6, 7), -20.0)
    log_precision[thin] = 20.0
    found = against_oracle(
        pointing(np.stack((x, y)).astype(float), log_precision, np.full((1, 6, 7), 0.95), 2)
    )
    assert len(found) == (7 if thin == 0 else 6)


def hostile(kind: str, size: int) -> Embeddings:
    """Maps on which a loop over candidates, or one fixed grid of bins, takes quadratic time."""
    rng = np.random.default_rng(0)
    shape = (size, size)
    spread = rng.uniform(-500, 1500, (2, *shape))
    one_bin = 0.3 + rng.normal(0, 1e-3, (2, *shape))
    seed = rng.uniform(0.9, 1.0, (1, *shape))
    share = rng.uniform(size=shape)
    maps = {
        "tiny-spread": (spread, 4.0, seed),
        "tiny-one-bin": (one_bin, 4.0, seed),
        "tiny-one-point": (np.zeros((2, *shape)), 4.0, seed),
        "all-wide": (spread, -4.0, seed),
        "equal-seeds": (spread, 2.0, np.full((1, *shape), 0.95)),
        "wide-and-tiny": (spread, np.where(share < 0.05, 0.4, 4.0), seed),
        "wide-last": (spread, np.where(share < 0.2, 0.6, 4.0), np.where(share < 0.2, 0.91, seed)),
        "thin-x": (spread, np.array([4.0, -4.0])[:, None, None], seed),
        "thin-both-ways": (
            spread,
            np.where(share < 0.5, [[[4.0]], [[-4.0]]], [[[-4.0]], [[4.0]]]),
            seed,
        ),
        "towards-zero": (np.exp2(-rng.uniform(0, 20, (2, *shape))), 4.0, seed),
    }
    target, log_precision, seed = maps[kind]
    return pointing(target, log_precision, seed, 2)


def work(prediction: Embeddings) -> int:
    """Nodes and points that the fast way looked at."""
    return cpu.cluster(*(m[0].numpy() for m in prediction), ClusterOptions(min_pixels=3)).work


HOSTILE = (
    "tiny-spread", "tiny-one-bin", "tiny-one-point", "all-wide", "equal-seeds", "wide-and-tiny",
    "wide-last", "thin-x", "thin-both-ways", "towards-zero",
)  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: f"INF-02-{kind}")
def test_hostile_maps_stay_linear(kind: str) -> None:
    """Steps per pixel, which cannot flicker as seconds do. Quadratic: 4,096 and 65,536."""
    assert work(hostile(kind, 64)) / 64**2 < 100
    assert work(hostile(kind, 256)) / 256**2 < 140


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_maps_have_one_result(kind: str) -> None:
    both(hostile(kind, 40), ClusterOptions(min_pixels=2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", Embeddings._fields)
@pytest.mark.parametrize("way", [cluster, cluster_plain], ids=lambda way: way.__name__)
def test_non_finite_maps(value: float, field: str, way: Any) -> None:
    """INF-03"""
    prediction = pointing(np.zeros((2, 4, 4)), 1.0, np.full((1, 4, 4), 0.95), 2)
    getattr(prediction, field)[0, 0, 1, 2:] = value
    with pytest.raises(SpatialEmbedError, match=f"2 in {field}") as fault:
        way(prediction)
    assert (fault.value.code, fault.value.exit_code) == ("non_finite_output", 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_geometry_is_float32_whatever_the_network(dtype: torch.dtype) -> None:
    """INF-07: the grid and exp(10 r) come after the cast; r = 1.2 overflows a float16 exp."""
    truth, center = discs(32, 16, 6)
    prediction = pointing(center, 1.2, np.where(truth, 0.95, 0.0)[None], 2)
    low = Embeddings(*(m.to(dtype) for m in prediction))
    found = both(low, ClusterOptions(min_pixels=3))
    same(found, both(Embeddings(*(m.float() for m in low)), ClusterOptions(min_pixels=3)))
    assert same_partition(found.labels.numpy(), truth)


def test_batched_equals_single() -> None:
    """INF-10: nor do the order in the batch, threads and memory layout change a bit."""
    rng = np.random.default_rng(0)
    images = [random_maps(rng, (23, 31), classes=2, channels=2, spread_px=40) for _ in range(3)]
    alone = [both(image) for image in images]
    batch = Embeddings(*(torch.cat(maps) for maps in zip(*images, strict=True)))
    backwards = Embeddings(*(maps.flip(0).to(memory_format=torch.channels_last) for maps in batch))
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            for way in (cluster, cluster_plain):
                for a, b in zip(alone, way(batch, EVERYTHING), strict=True):
                    same(a, b)
                for a, b in zip(alone[::-1], way(backwards, EVERYTHING), strict=True):
                    same(a, b)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def small_parts(part: int = 3, batch: int = 16) -> Iterator[None]:
    """Parts, batches and windows so small that every map has many."""
    with (
        mock.patch.object(cpu, "PART", part),
        mock.patch.object(groups, "BATCH", batch),
        mock.patch.object(cpu, "WINDOW", 7),
        mock.patch.object(candidates, "PER_THREAD", 8),
    ):
        yield


@settings(max_examples=40, deadline=None)
@given(
    rng_seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    classes=st.integers(1, 3),
    channels=st.integers(1, 2),
    spread_px=st.sampled_from((3.0, 60.0, 900.0, 1e5)),
    margin_px=st.sampled_from(((0.3, 1.0), (0.5, 40.0), (1.0, 1e4), (1e-6, 1e11))),
    levels=st.sampled_from((1, 12, 1000)),
    part=st.sampled_from((1, 3, 20)),
    options=st.builds(
        ClusterOptions,
        foreground=st.sampled_from((0.0, 0.5)),
        start=st.sampled_from((0.0, 0.7, 0.95)),
        min_pixels=st.integers(0, 2),
        min_free=st.sampled_from((0.0, 0.5)),
        max_instances=st.sampled_from((None, 1, 4, 30)),
    ),
)
def test_groups_apart_equal_oracle(
    rng_seed: int, options: ClusterOptions, part: int, **maps: Any
) -> None:
    """Parts of a few candidates, batches of a few parts: the same as one loop over everything."""
    with small_parts(part):
        against_oracle(random_maps(np.random.default_rng(rng_seed), **maps), options)


@pytest.mark.parametrize("rng_seed", range(4))
@pytest.mark.parametrize("most", [1, 4, 30])
def test_ties_across_groups(rng_seed: int, most: int) -> None:
    """INF-04: which of equal seeds are the first ones does not depend on their parts."""
    rng = np.random.default_rng(rng_seed)
    prediction = random_maps(rng, (16, 16), spread_px=900, margin_px=(1, 40), levels=1)
    with small_parts():
        assert both(prediction, ClusterOptions(min_pixels=0, max_instances=most)).truncated


def by_hand(prediction: Embeddings, threads: int | None = None, **settings: Any) -> cpu.Found:
    offset, log_precision, seed = (m[0].numpy() for m in prediction)
    settings = {"min_pixels": 0, **settings}
    return cpu.cluster(offset, log_precision, seed, ClusterOptions(**settings), threads=threads)


def same_found(a: cpu.Found, b: cpu.Found) -> None:
    for x, y in zip(a[:3], b[:3], strict=True):
        assert np.array_equal(x, y)
    assert a.truncated == b.truncated


@pytest.mark.parametrize("threads", [pytest.param(n, id=f"INF-10-{n}") for n in (1, 2, 4, None)])
@pytest.mark.parametrize("most", [None, 50])
def test_any_number_of_threads(threads: int | None, most: int | None) -> None:
    prediction = random_maps(
        np.random.default_rng(1), (70, 90), classes=2, channels=2, spread_px=400, levels=400
    )
    expected = by_hand(prediction, 1, max_instances=most)
    assert len(expected.scores) >= 50
    with small_parts(50, 1000):
        same_found(by_hand(prediction, threads, max_instances=most), expected)


def test_from_several_threads_at_once() -> None:
    """As from the workers of a pipeline; numba's own threads could not be used like that."""
    rng = np.random.default_rng(2)
    images = [random_maps(rng, (50, 60), spread_px=300, levels=400) for _ in range(8)]
    expected = [by_hand(image, 1) for image in images]
    with small_parts(100, 1000), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: by_hand(image, 2), images * 3))
    for a, b in zip(found, expected * 3, strict=True):
        same_found(a, b)


def test_after_fork_and_without_torch() -> None:
    """A child of a process that has clustered on threads does not hang; torch is not needed."""
    code = (
        "import os, sys, numpy as np\n"
        "sys.modules['torch'] = None\n"
        "from spatialembed.method.kernels import candidates, cpu\n"
        "from spatialembed.options import ClusterOptions\n"
        "candidates.PER_THREAD = 4\n"
        "maps = [np.full((n, 8, 8), 0.95, np.float32) for n in (2, 1, 1)]\n"
        "options = ClusterOptions(min_pixels=0)\n"
        "def run(): return len(cpu.cluster(*maps, options, threads=2).scores)\n"
        "count, child = run(), os.fork()\n"
        "if child == 0: os._exit(0 if run() == count else 1)\n"
        "print(count, os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "1 0\n", done.stderr


def in_tiles(prediction: Embeddings, side: int, foreground: float = 0.5) -> list[cpu.Candidates]:
    """The candidates of each class, gathered tile by tile and then put in order."""
    height, width = prediction.seed.shape[-2:]
    found: list[list[cpu.Candidates]] = [[] for _ in range(prediction.seed.shape[1])]
    for top in range(0, height, side):
        for left in range(0, width, side):
            window = (m[0, :, top : top + side, left : left + side].numpy() for m in prediction)
            new = candidates.candidates(
                *window, foreground=foreground, origin_yx=(top, left), image_width=width
            )
            for c, its in enumerate(new):
                found[c].append(its)
    merged = []
    for tiles in found:
        joined = cpu.Candidates(*(np.concatenate(a, axis=-1) for a in zip(*tiles, strict=True)))
        order = np.argsort(joined.pixel)
        merged.append(cpu.Candidates(*(a[..., order] for a in joined)))
    return merged


def settle(by_class: list[cpu.Candidates], **settings: Any) -> cpu.Settled:
    settings = {"min_pixels": 0, "min_free": 0.5, "max_instances": None, **settings}
    threads = settings.pop("threads", None)
    return cpu.cluster_candidates(by_class, ClusterOptions(**settings), threads=threads)


@pytest.mark.parametrize("side", [7, 16])
def test_candidates_of_tiles_are_those_of_the_image(side: int, tmp_path: Path) -> None:
    """INF-12, as far as the clustering goes; from read-only files, as for huge images."""
    prediction = random_maps(
        np.random.default_rng(3), (40, 50), classes=2, channels=2, spread_px=300, levels=400
    )
    by_class = in_tiles(prediction, side)
    whole = candidates.candidates(*(m[0].numpy() for m in prediction), foreground=0.5)
    on_disk = []
    for c, (a, b) in enumerate(zip(by_class, whole, strict=True)):
        for name, x, y in zip(a._fields, a, b, strict=True):
            assert np.array_equal(x, y)
            assert x.dtype == y.dtype
            np.save(tmp_path / f"{c}{name}.npy", x)
        files = (np.load(tmp_path / f"{c}{name}.npy", mmap_mode="r") for name in a._fields)
        on_disk.append(cpu.Candidates(*files))
    expected = by_hand(prediction)
    with small_parts(20, 100):
        settled = settle(on_disk)
    labels = np.zeros(40 * 50, np.int32)
    for found, owner in zip(by_class, settled.owners, strict=True):
        assert not labels[found.pixel[owner > 0]].any()
        labels[found.pixel] += owner
    assert np.array_equal(labels.reshape(40, 50), expected.labels)
    assert np.array_equal(settled.scores, expected.scores)
    assert np.array_equal(settled.classes, expected.classes)


def test_batches_bound_what_is_in_memory() -> None:
    truth, center = discs(256, 4, 1)
    prediction = pointing(center, log_precision_of(4 / 3), np.where(truth, 0.95, 0.0)[None], 2)
    by_class = candidates.candidates(*(m[0].numpy() for m in prediction), foreground=0.5)
    sizes = []
    batches = groups.batches

    def counted(*arguments: Any) -> Any:
        for parts in batches(*arguments):
            sizes.append(sum(len(part.x) for part in parts))
            yield parts

    with small_parts(100, 1000), mock.patch.object(groups, "batches", counted):
        settled = settle(by_class)
    assert len(settled.scores) == truth.max()
    assert sum(sizes) == len(by_class[0].pixel)
    assert max(sizes) <= 1000
    assert len(sizes) < 2.5 * sum(sizes) / 1000  # and they are filled


def test_no_candidates_at_all() -> None:
    """INF-01"""
    nothing = np.zeros((2, 0), np.float32)
    empty = cpu.Candidates(np.zeros(0, np.int64), nothing[0], nothing[0], nothing, nothing[0])
    settled = settle([empty, empty])
    assert [len(owner) for owner in settled.owners] == [0, 0]
    assert len(settled.scores) == len(settled.classes) == settled.work == 0
    assert not settled.truncated


def test_precision_is_the_same_in_both_libraries() -> None:
    raw = np.random.default_rng(4).uniform(-5, 5, 10_000).astype(np.float32)
    expected = geometry.precision(torch.from_numpy(raw).double()).float().numpy()
    assert np.array_equal([groups.precision(r) for r in raw], expected)


def test_maps_are_left_alone_and_need_no_gradient() -> None:
    prediction = random_maps(np.random.default_rng(0), (20, 20))
    before = [m.clone() for m in prediction]
    found = cluster(Embeddings(*(m.requires_grad_() for m in prediction)), EVERYTHING)[0]
    assert all(torch.equal(a, b) for a, b in zip(before, prediction, strict=True))
    assert not found.scores.requires_grad


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("foreground", -0.1), ("foreground", 1.0), ("foreground", math.nan), ("foreground", "0.5"),
        ("start", 1.1), ("start", math.inf), ("membership", 0.0), ("membership", 1),
        ("min_free", 1.0),
        ("min_free", -1), ("min_pixels", -1), ("min_pixels", 2.5), ("min_pixels", True),
        ("min_pixels", 1 << 31), ("max_instances", 0), ("max_instances", 1.0),
        ("max_instances", 10**30),
    ],
)  # fmt: skip
def test_bad_setting_is_named(setting: str, value: Any) -> None:
    with pytest.raises(SpatialEmbedError, match=setting) as fault:
        ClusterOptions(**{setting: value})
    assert (fault.value.code, fault.value.exit_code) == ("bad_setting", 2)


def test_class_names() -> None:
    prediction = pointing(np.zeros((2, 4, 4)), 1.0, np.full((2, 4, 4), 0.95))
    for way in (cluster, cluster_plain):
        assert way(prediction, EVERYTHING, ("car", "bus"))[0].class_names == ("car", "bus")
        with pytest.raises(SpatialEmbedError, match="2 names"):
            way(prediction, EVERYTHING, ("car",))


@pytest.mark.parametrize("rng_seed", range(8))
def test_truth_sampling_equals_oracle(rng_seed: int) -> None:
    rng = np.random.default_rng(rng_seed)
    count = 7
    prediction = random_maps(
        rng, (13, 10), classes=3, channels=1 + rng_seed % 2, spread_px=14, margin_px=(1, 9)
    )
    labels = rng.integers(0, count + 1, (13, 10)).astype(np.int32)
    labels[labels == 3] = 0  # not there
    ignore = (rng.uniform(size=(13, 10)) < 0.2) | (labels == 5)  # 5: nothing valid
    classes = rng.integers(0, 3, count)
    target = Target(torch.from_numpy(labels), torch.from_numpy(classes), torch.from_numpy(ignore))
    found = cluster_with_truth(prediction, [target])[0]
    e = geometry.embed(prediction.offset)[0].numpy()
    expected = oracle_cluster.owner_by_truth(e, prediction.log_precision[0].numpy(), labels, ignore)
    kept = np.unique(expected[expected > 0])
    assert np.array_equal(np.append(0, kept)[found.labels], expected)
    assert found.classes.tolist() == classes[kept - 1].tolist()
    assert (found.scores == 1).all()
    assert found.labels.dtype == torch.int32
    assert len(found) > 1


def truth_of(labels: Any, ignore: Any = None) -> Target:
    labels = torch.as_tensor(labels, dtype=torch.int32)
    count = int(labels.max())
    nothing = torch.zeros(labels.shape, dtype=torch.bool)
    classes = torch.arange(count) % 2
    return Target(labels, classes, nothing if ignore is None else torch.as_tensor(ignore))


def test_truth_sampling_tie_goes_to_the_lower_number() -> None:
    """Two true instances of one centre and bandwidth: the second wins no pixel and is dropped."""
    prediction = pointing(np.zeros((2, 2, 4)), 1.0, np.zeros((2, 2, 4)))
    found = cluster_with_truth(prediction, [truth_of([[2, 2, 1, 1], [0, 0, 1, 2]])])[0]
    assert found.labels.unique().tolist() == [1]
    assert found.classes.tolist() == [0]


def test_truth_sampling_of_empty_and_batch() -> None:
    rng = np.random.default_rng(0)
    images = [random_maps(rng, (8, 8), classes=2) for _ in range(2)]
    targets = [truth_of(np.zeros((8, 8))), truth_of(rng.integers(0, 4, (8, 8)))]
    batch = Embeddings(*(torch.cat(maps) for maps in zip(*images, strict=True)))
    results = cluster_with_truth(batch, targets)
    assert len(results[0]) == 0
    assert not results[0].labels.any()
    for i in range(2):
        same(results[i], cluster_with_truth(images[i], [targets[i]])[0])


def test_truth_sampling_of_70_000() -> None:
    """LBL-01"""
    size = 530
    y, x = np.mgrid[:size, :size]
    labels = (y // 2) * 265 + x // 2 + 1
    center = np.stack((x // 2, y // 2)) * 2.0 + 0.5
    prediction = pointing(center, log_precision_of(0.5), np.zeros((2, size, size)))
    found = cluster_with_truth(prediction, [truth_of(labels)])[0]
    assert np.array_equal(found.labels, labels)


def test_truth_sampling_refuses_bad_membership() -> None:
    prediction = pointing(np.zeros((2, 2, 2)), 1.0, np.zeros((1, 2, 2)))
    with pytest.raises(SpatialEmbedError, match="membership"):
        cluster_with_truth(prediction, [truth_of(np.ones((2, 2)))], membership=1.0)


def test_read_only_installation_compiles_without_cache(tmp_path: Path) -> None:
    """Neither beside the file nor in the home can a cache be written: slower, not an error."""
    code = (
        "import numba.core.caching as c\n"
        "def full(self): raise OSError('read-only')\n"
        "c._CacheLocator.ensure_cache_path = full\n"
        "import numpy as np\n"
        "from spatialembed.method.kernels.candidates import candidates\n"
        "maps = [np.full((n, 2, 3), 0.95, np.float32) for n in (2, 1, 1)]\n"
        "print(candidates(*maps, foreground=0.5)[0].pixel.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[0, 1, 2, 3, 4, 5]\n", done.stderr


def test_import_loads_no_compiler() -> None:
    code = "import sys, spatialembed.method.cluster; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
