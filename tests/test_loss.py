"""The loss against slow loops, finite differences, its dense form, and what must hold of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle_loss as oracle
from oracle_loss import Scene
from spatialembed.method import instance_term
from spatialembed.method.geometry import coordinates
from spatialembed.method.loss import Center, LossTerms, hinge_loss, spatial_embedding_loss
from spatialembed.method.lovasz import lovasz_hinge
from spatialembed.types import UNIT, Embeddings, Target

CENTERS: tuple[Center, ...] = ("centroid", "learnable", "medoid")
PATHS = ("float64", "fused float32", "batched float32")
KERNEL_TOLERANCE = 2e-4


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The dtype of one of the three ways that the instance term is computed."""
    if request.param == "batched float32":  # what runs on a GPU
        monkeypatch.setattr(instance_term, "_fused", instance_term._batched)
    return torch.float64 if request.param == "float64" else torch.float32


every_path = pytest.mark.parametrize("path", PATHS, indirect=True)


def disks(rng: np.random.Generator, shape: tuple[int, int], count: int) -> np.ndarray:
    """Label map (H, W) int32 of disks that cover one another; all ``count`` ids are left."""
    height, width = shape
    ys, xs = np.mgrid[:height, :width]
    labels = np.zeros(shape, np.int32)
    for k in range(1, count + 1):
        y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(1.5, height / 4)
        labels[(ys - y) ** 2 + (xs - x) ** 2 < radius**2] = k
    free = rng.permutation(labels.size)[:count]  # a lost instance comes back as a single pixel
    for k in sorted(set(range(1, count + 1)) - set(np.unique(labels))):
        labels.flat[free[k - 1]] = k
    return np.searchsorted(np.unique(labels[labels > 0]), labels).astype(np.int32) + (labels > 0)


def scene(
    seed: int,
    shape: tuple[int, int] = (12, 15),
    *,
    count: int = 5,
    channels: int = 2,
    classes: int = 1,
    ignored: float = 0.0,
    raw: float = 0.8,
    labels: np.ndarray | None = None,
) -> Scene:
    """Random maps on a random truth; float32 numbers, so that every path has the same."""
    rng = np.random.default_rng(seed)
    labels = disks(rng, shape, count) if labels is None else labels
    height, width = labels.shape

    def single(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float32).astype(np.float64)

    return Scene(
        offset=single(rng.normal(0, 4 / UNIT, (2, height, width))),
        log_precision=single(rng.normal(raw, 0.1, (channels, height, width))),
        seed=single(rng.uniform(0.01, 0.99, (classes, height, width))),
        labels=labels,
        classes=[int(c) for c in rng.integers(0, classes, int(labels.max()))],
        ignore=rng.uniform(size=labels.shape) < ignored,
    )


def tensors(
    scenes: Sequence[Scene], dtype: torch.dtype = torch.float64, *, grad: bool = False
) -> tuple[Embeddings, list[Target]]:
    maps = [
        torch.tensor(np.stack([getattr(s, name) for s in scenes]), dtype=dtype, requires_grad=grad)
        for name in ("offset", "log_precision", "seed")
    ]
    targets = [
        Target(
            torch.tensor(s.labels, dtype=torch.int32),
            torch.tensor(s.classes, dtype=torch.int64),
            torch.tensor(s.ignore),
        )
        for s in scenes
    ]
    return Embeddings(*maps), targets


def terms_of(
    scenes: Sequence[Scene], center: Center = "learnable", weight: Any = 10.0
) -> list[float]:
    """The three terms in float64."""
    terms = spatial_embedding_loss(*tensors(scenes), center=center, foreground_weight=weight)
    return [t.item() for t in terms]


def gradients(
    scenes: Sequence[Scene], dtype: torch.dtype, center: Center
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the total by offset, log-precision and seed, float64."""
    prediction, targets = tensors(scenes, dtype, grad=True)
    spatial_embedding_loss(prediction, targets, center=center).total().backward()
    offset, log_precision, seed = (m.grad.double() for m in prediction)  # type: ignore[union-attr]
    return offset, log_precision, seed


def dense_instance_term(prediction: Embeddings, target: Target, center: Center) -> Tensor:
    """The plain way on one image: every instance against all valid pixels, by autograd."""
    valid = ~target.ignore.flatten()
    position = coordinates(*target.labels.shape, prediction.offset).flatten(1)
    embedding = position + prediction.offset[0].flatten(1)
    raw = prediction.log_precision[0].flatten(1)
    terms = []
    for k in range(1, len(target.classes) + 1):
        own = (target.labels.flatten() == k) & valid
        middle = (embedding if center == "learnable" else position)[:, own].mean(1, keepdim=True)
        p = (10 * raw[:, own].mean(1, keepdim=True)).exp()
        phi = (-(p * (embedding - middle).square()).sum(0)).exp()
        terms.append(lovasz_hinge(2 * phi[valid] - 1, own[valid]))
    return torch.stack(terms).mean()


def batch(channels: int) -> tuple[list[Scene], list[float]]:
    """Images of one size in three classes (two random, one empty, one full) and weights."""
    one = scene(1, channels=channels, classes=3, ignored=0.15)
    two = scene(2, channels=channels, classes=3, count=8, raw=1.0)
    empty = scene(3, channels=channels, classes=3, labels=np.zeros(one.labels.shape, np.int32))
    full = scene(4, channels=channels, classes=3, raw=0.3, labels=np.ones_like(one.labels))
    return [one, two, empty, full], [10.0, 3.0, 0.5]


# ---------------------------------------------------------------- value and gradient


@every_path
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("channels", [1, 2], ids=["circular", "elliptical"])
def test_value_of_a_batch_is_that_of_the_slow_loops(
    channels: int, center: Center, path: torch.dtype
) -> None:
    scenes, weights = batch(channels)
    expected = oracle.batch_loss(scenes, center, weights)
    terms = spatial_embedding_loss(*tensors(scenes, path), center=center, foreground_weight=weights)
    assert all(t.dtype == path for t in terms)
    found = [t.item() for t in terms]
    assert found == pytest.approx(expected, rel=1e-9 if path == torch.float64 else KERNEL_TOLERANCE)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("channels", [1, 2], ids=["circular", "elliptical"])
@pytest.mark.parametrize(
    ("term", "inputs"), [("instance", (0, 1)), ("smoothness", (1,)), ("seed", (2,))]
)
def test_gradient_is_that_of_finite_differences(
    term: str, inputs: tuple[int, ...], channels: int, center: Center
) -> None:
    """By the maps that a term may move; phi in the seed term is a goal, not a function."""
    prediction, targets = tensors([scene(5, (6, 7), count=3, channels=channels, ignored=0.1)])

    def function(*moved: Tensor) -> Tensor:
        maps = list(prediction)
        for i, tensor in zip(inputs, moved, strict=True):
            maps[i] = tensor
        value: Tensor = getattr(
            spatial_embedding_loss(Embeddings(*maps), targets, center=center), term
        )
        return value

    moved = tuple(prediction[i].clone().requires_grad_() for i in inputs)
    assert torch.autograd.gradcheck(function, moved, eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("path", PATHS[1:], indirect=True)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("channels", [1, 2], ids=["circular", "elliptical"])
def test_float32_gradient_is_that_of_float64(
    channels: int, center: Center, path: torch.dtype
) -> None:
    scenes, _ = batch(channels)
    expected = gradients(scenes, torch.float64, center)
    for found, true in zip(gradients(scenes, path, center), expected, strict=True):
        assert float((found - true).abs().max() / true.abs().max()) < KERNEL_TOLERANCE


@pytest.mark.parametrize("center", CENTERS)
def test_kernel_gradient_is_the_slope_of_the_slow_loops(center: Center) -> None:
    one = scene(6, (9, 10), count=3, ignored=0.1)
    prediction, targets = tensors([one], torch.float32, grad=True)
    spatial_embedding_loss(prediction, targets, center=center).instance.backward()
    rng = np.random.default_rng(6)
    for name in ("offset", "log_precision"):
        gradient = getattr(prediction, name).grad[0]
        largest = float(gradient.abs().max())
        for index in zip(*(rng.integers(0, n, 12) for n in gradient.shape), strict=True):
            slope = []
            for step in (1e-6, -1e-6):
                moved = getattr(one, name).copy()
                moved[index] += step
                slope.append(oracle.image_loss(replace(one, **{name: moved}), center, [10.0])[0])
            expected = (slope[0] - slope[1]) / 2e-6
            assert float(gradient[index]) == pytest.approx(expected, abs=1e-3 * largest)


# ---------------------------------------------------------------- the sparsity


@every_path
@pytest.mark.parametrize("raw", [-0.2, 0.3, 0.6, 0.9, 1.5])
def test_sparse_is_dense(raw: float, path: torch.dtype) -> None:
    """From bandwidths wider than the image to ones below a pixel, value and gradient."""
    one = scene(7, (40, 52), count=14, raw=raw, ignored=0.1)
    prediction, targets = tensors([one], path, grad=True)
    value = spatial_embedding_loss(prediction, targets, center="learnable").instance
    value.backward()
    truth, _ = tensors([one], grad=True)
    expected = dense_instance_term(truth, targets[0], "learnable")
    expected.backward()
    near = 1e-9 if path == torch.float64 else KERNEL_TOLERANCE
    assert value.item() == pytest.approx(expected.item(), rel=near)
    for ours, theirs in ((prediction.offset, truth.offset), (prediction[1], truth[1])):
        assert ours.grad is not None
        assert theirs.grad is not None
        # By the norm: where two errors round to one number, two pixels may change places.
        assert float((ours.grad.double() - theirs.grad).norm()) <= near * float(theirs.grad.norm())


@pytest.mark.parametrize("raw", [0.2, 0.8])
def test_chunks_change_nothing(raw: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [scene(8, (30, 34), count=9, raw=raw, ignored=0.1)]
    whole = terms_of(scenes), gradients(scenes, torch.float64, "learnable")
    calls = []
    add_pairs = instance_term._add_pairs
    monkeypatch.setattr(instance_term, "_add_pairs", lambda *a: calls.append(1) or add_pairs(*a))
    monkeypatch.setattr(instance_term, "PAIRS_AT_ONCE", 100)
    assert terms_of(scenes) == pytest.approx(whole[0], rel=1e-12)
    assert len(calls) > 3
    for ours, theirs in zip(gradients(scenes, torch.float64, "learnable"), whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def graph_nodes(value: Tensor) -> int:
    seen: set[Any] = set()
    todo = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(parent for parent, _ in node.next_functions)
    return len(seen)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_graph_and_its_memory_do_not_grow_with_the_instances(path: torch.dtype) -> None:
    """The same foreground cut into 2 and into 200 instances."""
    nodes, saved = [], []
    for count in (2, 200):
        labels = np.zeros((60, 60), np.int32)
        labels[10:50, 10:50] = np.arange(1600).reshape(40, 40) * count // 1600 + 1
        prediction, targets = tensors([scene(9, labels=labels)], path, grad=True)
        held: dict[int, int] = {}

        def note(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            total = spatial_embedding_loss(prediction, targets, center="learnable").total()
        nodes.append(graph_nodes(total))
        saved.append(sum(held.values()))
    assert nodes[0] == nodes[1]
    assert saved[1] < saved[0] + 60 * 60  # no map for each of 198 further instances


# ---------------------------------------------------------------- what must hold


@every_path
def test_permuted_ids_change_nothing(path: torch.dtype) -> None:
    one = scene(10, count=6, classes=2, ignored=0.1)
    new = np.random.default_rng(0).permutation(len(one.classes))
    other = replace(
        one,
        labels=np.where(one.labels > 0, new[one.labels - 1] + 1, 0),
        classes=[one.classes[i] for i in np.argsort(new)],
    )
    terms = [spatial_embedding_loss(*tensors([s], path), center="medoid") for s in (one, other)]
    near = 1e-12 if path == torch.float64 else 1e-6
    assert [float(t) for t in terms[0]] == pytest.approx([float(t) for t in terms[1]], rel=near)


@every_path
def test_batch_is_the_mean_of_its_images(path: torch.dtype) -> None:
    scenes, weights = batch(2)
    together = spatial_embedding_loss(
        *tensors(scenes, path), center="centroid", foreground_weight=weights
    )
    alone = [
        spatial_embedding_loss(*tensors([s], path), center="centroid", foreground_weight=weights)
        for s in scenes
    ]
    for i, value in enumerate(together):
        assert float(value) == pytest.approx(np.mean([float(a[i]) for a in alone]), rel=1e-6)


def blank(s: Scene) -> Scene:
    return replace(s, labels=np.zeros_like(s.labels), classes=[])


def void(s: Scene) -> Scene:
    return replace(s, ignore=np.ones_like(s.ignore))


@every_path
@pytest.mark.parametrize(
    "change", [pytest.param(blank, id="LBL-13 empty"), pytest.param(void, id="LBL-13 ignored")]
)
@pytest.mark.parametrize("function", ["spatial", "hinge"])
def test_no_instance_is_exactly_zero_and_attached(
    function: str, change: Callable[[Scene], Scene], path: torch.dtype
) -> None:
    one = change(scene(11))
    prediction, targets = tensors([one], path, grad=True)
    if function == "spatial":
        terms = spatial_embedding_loss(prediction, targets, center="learnable")
    else:
        terms = hinge_loss(prediction, targets, margin_px=5)
    assert (terms.instance.item(), terms.smoothness.item()) == (0.0, 0.0)
    assert terms.seed.item() == pytest.approx(
        (one.seed**2 * ~one.ignore).sum() / one.labels.size, rel=1e-6
    )
    terms.total().backward()
    for tensor in prediction[:2]:
        assert tensor.grad is not None
        assert not tensor.grad.any()
    assert prediction.seed.grad is not None
    assert bool(prediction.seed.grad.any()) == (change is blank)


@every_path
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.ones((9, 11), np.int32), id="LBL-13 full"),
        pytest.param(
            np.arange(1, 100, dtype=np.int32).reshape(9, 11), id="LBL-12 all of one pixel"
        ),
        pytest.param(np.eye(9, 11, 2, dtype=np.int32) * np.arange(11, dtype=np.int32), id="LBL-12"),
        pytest.param(np.ones((1, 1), np.int32), id="LBL-12 one pixel in all"),
    ],
)
def test_extreme_instances(labels: np.ndarray, center: Center, path: torch.dtype) -> None:
    ids = np.unique(labels[labels > 0])
    one = scene(
        12, labels=np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0).astype(np.int32)
    )
    prediction, targets = tensors([one], path, grad=True)
    terms = spatial_embedding_loss(prediction, targets, center=center)
    expected = oracle.image_loss(one, center, [10.0])
    near = 1e-9 if path == torch.float64 else KERNEL_TOLERANCE
    assert [t.item() for t in terms] == pytest.approx(expected, rel=near, abs=1e-6)
    terms.total().backward()
    assert all(bool(m.grad.isfinite().all()) for m in prediction if m.grad is not None)


@every_path
def test_offsets_that_reach_far_cost_no_memory(path: torch.dtype) -> None:
    """Bins of 8 px over 2,000 units would be 65 thousand million."""
    one = scene(5)
    one.offset[:, 0, 0], one.offset[:, 0, 1] = -1000, 1000
    prediction, targets = tensors([one], path, grad=True)
    terms = spatial_embedding_loss(prediction, targets, center="centroid")
    expected = oracle.image_loss(one, "centroid", [10.0])
    near = 1e-9 if path == torch.float64 else KERNEL_TOLERANCE
    assert [t.item() for t in terms] == pytest.approx(expected, rel=near, abs=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16],
    ids=lambda d: f"TRN-03 {d}",
)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("raw", [-20, -4, 4, 6, 20, "all"])
def test_wild_bandwidths_are_finite(raw: float | str, center: Center, dtype: torch.dtype) -> None:
    one = scene(13, count=6)
    rng = np.random.default_rng(13)
    wild = rng.uniform(-20, 20, one.log_precision.shape) if raw == "all" else raw
    offset = rng.uniform(-1, 1, one.offset.shape)
    one = replace(one, log_precision=np.broadcast_to(wild, one.log_precision.shape), offset=offset)
    for function in (instance_term._fused, instance_term._batched):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(instance_term, "_fused", function)
            prediction, targets = tensors([one], dtype, grad=True)
            terms = spatial_embedding_loss(prediction, targets, center=center)
            terms.total().backward()
        assert all(bool(t.isfinite()) for t in terms)
        for tensor in prediction:
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()


@every_path
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_maps_that_are_not_finite_give_no_finite_loss(
    value: float, which: int, path: torch.dtype
) -> None:
    """TRN-01 rests on it: a diverged network must be told by its loss, not end the process."""
    prediction, targets = tensors([scene(14)], path)
    y, x = (int(i[0]) for i in np.nonzero(targets[0].labels.numpy()))
    prediction[which][0, :, y, x] = value
    terms = spatial_embedding_loss(prediction, targets, center="centroid")
    assert not terms.total().isfinite()


@every_path
def test_an_instance_without_a_valid_pixel_is_not_counted(path: torch.dtype) -> None:
    one = scene(15, count=5, classes=2)
    hidden = replace(one, ignore=one.labels == 2)
    absent = replace(
        hidden,
        labels=np.where(one.labels == 2, 0, one.labels - (one.labels > 2)),
        classes=[c for k, c in enumerate(one.classes, start=1) if k != 2],
    )
    with_it, without = (
        spatial_embedding_loss(*tensors([s], path), center="medoid") for s in (hidden, absent)
    )
    assert with_it == without


@every_path
def test_nothing_enters_from_ignored_pixels(path: torch.dtype) -> None:
    one = scene(16, ignored=0.3)
    noise = np.random.default_rng(16).uniform(0.1, 0.9, one.labels.shape) * one.ignore
    other = replace(
        one,
        offset=one.offset + noise / UNIT,
        log_precision=one.log_precision + noise,
        seed=one.seed * (1 - noise),
        labels=np.where(one.ignore, 1 + one.labels % len(one.classes), one.labels),
    )
    first, second = (
        spatial_embedding_loss(*tensors([s], path), center="learnable") for s in (one, other)
    )
    for a, b in zip(first, second, strict=True):
        # Bins start at another place: sums of float32 may round otherwise.
        assert float(a) == pytest.approx(float(b), rel=1e-6)


@pytest.mark.parametrize("path", PATHS, indirect=True, ids=[f"LBL-01 {p}" for p in PATHS])
def test_three_hundred_instances(path: torch.dtype) -> None:
    y, x = np.mgrid[:60, :45]
    labels = (y // 3 * 15 + x // 3 + 1).astype(np.int32)
    one = scene(17, labels=labels)
    assert labels.max() == 300
    prediction, targets = tensors([one], path)
    value = spatial_embedding_loss(prediction, targets, center="centroid").instance
    expected = dense_instance_term(tensors([one])[0], targets[0], "centroid")
    near = 1e-9 if path == torch.float64 else KERNEL_TOLERANCE
    assert float(value) == pytest.approx(float(expected), rel=near)


@pytest.mark.parametrize("center", ["centroid", "medoid"])
@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_perfect_maps_cost_nothing(center: Center, path: torch.dtype) -> None:
    """Every pixel at its centre and no neighbour near: all terms vanish."""
    labels = np.zeros((40, 40), np.int32)
    labels[3:8, 3:8], labels[25:34, 20:29] = 1, 2
    one = scene(18, labels=labels)
    position = np.stack(np.mgrid[:40, :40][::-1]) / UNIT  # (2, H, W) (x, y)
    middle = np.array([[0, 0], [5, 5], [24, 29]]).T[:, labels] / UNIT
    one = replace(
        one,
        offset=np.where(labels > 0, middle - position, 0.0),
        log_precision=np.full_like(one.log_precision, 1.6),
        seed=(labels > 0)[None].astype(float),
    )
    terms = spatial_embedding_loss(*tensors([one], path), center=center)
    assert [t.item() for t in terms] == pytest.approx([0, 0, 0], abs=1e-6)


def test_smoothness_looks_at_each_channel_alone() -> None:
    """Two constant channels of different value are smooth; an early release mixed them."""
    one = scene(19)
    constant = np.empty_like(one.log_precision)
    constant[0], constant[1] = 0.25, 0.75
    assert terms_of([replace(one, log_precision=constant)])[1] == 0
    slope = constant.copy()
    slope[1] += 0.01 * np.arange(one.labels.shape[1])
    expected = oracle.image_loss(replace(one, log_precision=slope), "centroid", [10.0])[1]
    assert terms_of([replace(one, log_precision=slope)])[1] == pytest.approx(expected)
    assert expected > 0


def test_seed_weights_are_those_of_the_classes() -> None:
    one = scene(20, count=6, classes=3)
    zero = terms_of([one], weight=[0.0, 0.0, 0.0])[2]
    parts = [terms_of([one], weight=list(row))[2] - zero for row in np.eye(3)]
    assert terms_of([one], weight=[2.0, 5.0, 0.5])[2] == pytest.approx(
        zero + 2 * parts[0] + 5 * parts[1] + 0.5 * parts[2]
    )
    assert terms_of([one], weight=7.0)[2] == pytest.approx(zero + 7 * sum(parts))


@every_path
def test_no_gradient_from_the_seed_term_through_phi(path: torch.dtype) -> None:
    prediction, targets = tensors([scene(21)], path, grad=True)
    seed = spatial_embedding_loss(prediction, targets, center="learnable").seed
    found = torch.autograd.grad(seed, prediction[:2], allow_unused=True)
    assert all(g is None or not g.any() for g in found)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_gradient_flows_through_the_learnable_centre(path: torch.dtype) -> None:
    """Alone in its image, an instance may be anywhere: the pulls on its pixels cancel."""
    one = scene(22, labels=np.ones((7, 8), np.int32))
    pull = {}
    for center in ("learnable", "centroid"):
        prediction, targets = tensors([one], path, grad=True)
        spatial_embedding_loss(prediction, targets, center=center).instance.backward()
        assert prediction.offset.grad is not None
        pull[center] = float(prediction.offset.grad.sum((0, 2, 3)).norm())
    assert pull["learnable"] < 1e-4 * pull["centroid"]


def test_total_weights_the_terms_as_published() -> None:
    terms = LossTerms(torch.tensor(1.0), torch.tensor(0.1), torch.tensor(0.01))
    assert float(terms.total()) == pytest.approx(1 + 10 * 0.1 + 0.01)
    assert float(terms.total(2, 3, 4)) == pytest.approx(2 + 0.3 + 0.04)


# ---------------------------------------------------------------- the fixed-bandwidth baseline


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_hinge_is_that_of_the_slow_loops(dtype: torch.dtype, center: Center) -> None:
    scenes, weights = batch(2)
    expected = np.mean([oracle.hinge_image(s, center, 3.0, weights) for s in scenes], axis=0)
    terms = hinge_loss(
        *tensors(scenes, dtype), margin_px=3.0, center=center, foreground_weight=weights
    )
    found = [terms.instance.item(), terms.seed.item()]
    assert found == pytest.approx(expected, rel=1e-9 if dtype == torch.float64 else 1e-5)
    assert terms.smoothness.item() == 0


@pytest.mark.parametrize("center", CENTERS)
def test_hinge_gradient_is_that_of_finite_differences(center: Center) -> None:
    prediction, targets = tensors([scene(23, (6, 7), count=3, ignored=0.1)])

    def function(offset: Tensor) -> Tensor:
        maps = prediction._replace(offset=offset)
        return hinge_loss(maps, targets, margin_px=2.0, center=center).instance

    moved = prediction.offset.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, moved, eps=1e-8, atol=1e-6, rtol=1e-4)


def test_hinge_has_a_slope_of_zero_at_the_centre() -> None:
    """The root of the distance has none there."""
    one = scene(24, labels=np.ones((1, 1), np.int32))
    prediction, targets = tensors([replace(one, offset=np.zeros((2, 1, 1)))], grad=True)
    hinge_loss(prediction, targets, margin_px=2.0).instance.backward()
    assert prediction.offset.grad is not None
    assert not prediction.offset.grad.any()


# ---------------------------------------------------------------- misuse


def test_misuse_is_named() -> None:
    prediction, targets = tensors([scene(25, classes=2)])
    with pytest.raises(ValueError, match="1 images in the prediction, 2 targets"):
        spatial_embedding_loss(prediction, targets * 2, center="centroid")
    with pytest.raises(ValueError, match="center is 'middle'"):
        spatial_embedding_loss(prediction, targets, center="middle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 foreground weights for 2 classes"):
        spatial_embedding_loss(
            prediction, targets, center="centroid", foreground_weight=[1.0, 2.0, 3.0]
        )
    with pytest.raises(ValueError, match="margin_px is 0"):
        hinge_loss(prediction, targets, margin_px=0)
