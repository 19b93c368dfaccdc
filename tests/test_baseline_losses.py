"""The losses of the wing baselines: value by loops over their equations, gradient by its slope."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch

import oracle_baselines
from baseline_scenes import empty, scene
from spatialembed.baselines import (
    affinities,
    associative,
    contract,
    deep_watershed,
    discriminative,
    hinge,
    metric_learning,
    proposal_free,
    recurrent,
    regression,
    semi_convolutional,
)
from spatialembed.types import Target

METHODS = [
    associative,
    discriminative,
    hinge,
    metric_learning,
    recurrent,
    regression,
    semi_convolutional,
]
SIZE = 12


def name(method: ModuleType) -> str:
    return method.__name__.rpartition(".")[2]


def maps_for(method: ModuleType, images: int, classes: int, seed: int) -> torch.Tensor:
    """Random maps."""
    shape = (images, sum(method.channels(classes)), SIZE, SIZE)
    maps = np.random.default_rng(seed).normal(size=shape)
    if method is metric_learning:
        maps[:, :64] *= 0.1  # distances of about one
    return torch.from_numpy(maps)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_terms_are_those_of_the_equations(method: ModuleType, seed: int) -> None:
    targets = [scene(seed, SIZE), empty(SIZE), scene(seed + 10, SIZE, classes=1)]
    maps = maps_for(method, 3, 2, seed)
    oracle = getattr(oracle_baselines, name(method))
    every = [oracle(m.numpy(), t) for m, t in zip(maps, targets, strict=True)]
    found = [float(term) for term in method.loss(maps, targets)]
    np.testing.assert_allclose(found, np.mean(every, axis=0), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_gradient_is_the_slope(method: ModuleType) -> None:
    targets = [scene(4, SIZE, instances=4), empty(SIZE)]
    maps = maps_for(method, 2, 2, 1).requires_grad_()

    def checked(m: torch.Tensor) -> torch.Tensor:
        terms = method.loss(m, targets)
        # The goal of its seeds moves with the offsets, and by design has no gradient.
        return terms.hinge if method is hinge else terms.total()

    assert torch.autograd.gradcheck(checked, (maps,), fast_mode=True)


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_pixels_without_truth_do_not_matter(method: ModuleType) -> None:
    target = scene(2, SIZE, ignored=5)
    maps = maps_for(method, 1, 2, 0).requires_grad_()
    method.loss(maps, [target]).total().backward()
    assert maps.grad is not None
    assert maps.grad[0, :, target.ignore].abs().max() == 0


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_nothing_and_all_ignored(method: ModuleType) -> None:
    """Finite, attached to the graph; without any truth exactly 0."""
    nothing = empty(SIZE)
    blind = Target(nothing.labels, nothing.classes, torch.ones_like(nothing.ignore))
    maps = maps_for(method, 1, 2, 0).requires_grad_()
    for target in (nothing, blind):
        terms = method.loss(maps, [target])
        terms.total().backward()
        assert all(bool(torch.isfinite(term)) for term in terms)
        assert maps.grad is not None
        assert maps.grad.isfinite().all()
    assert [float(term.detach()) for term in terms] == [0] * len(terms)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.5])
@pytest.mark.parametrize("method", [*METHODS, affinities, deep_watershed, proposal_free], ids=name)
def test_pixels_at_one_place_have_a_gradient_of_order_one(method: ModuleType, value: float) -> None:
    """Maps of one value: every distance between embeddings is 0, and with it every root."""
    shape = (1, sum(method.channels(2)), SIZE, SIZE)
    maps = torch.full(shape, value, requires_grad=True)
    terms = method.loss(maps, [scene(1, SIZE)])
    terms.total().backward()
    assert terms.total().isfinite()
    assert maps.grad is not None
    assert maps.grad.abs().max() < 10


@pytest.mark.parametrize("method", [associative, discriminative], ids=name)
def test_one_instance_is_not_pushed(method: ModuleType) -> None:
    labels = torch.zeros((SIZE, SIZE), dtype=torch.int32)
    labels[2:7, 3:9] = 1
    alone = Target(labels, torch.zeros(1, dtype=torch.int64), torch.zeros((SIZE, SIZE)).bool())
    maps = maps_for(method, 1, 1, 0).requires_grad_()
    terms = method.loss(maps, [alone])
    terms.total().backward()
    assert float(terms.push.detach()) == 0
    assert float(terms.pull.detach()) > 0
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_every_image_counts_the_same(method: ModuleType) -> None:
    """However many pixels and instances it has, and if it has none."""
    targets = [scene(0, SIZE), scene(7, SIZE, instances=2, ignored=8), empty(SIZE)]
    maps = maps_for(method, 3, 2, 5)
    alone = [method.loss(maps[i : i + 1], [targets[i]]) for i in range(3)]
    every = torch.tensor([[float(term) for term in terms] for terms in alone])
    torch.testing.assert_close(torch.stack(list(method.loss(maps, targets))).float(), every.mean(0))


def test_terms_of_a_scene_worked_out_by_hand() -> None:
    """Two instances of one class, tags and embeddings on a line, and one of another class."""
    labels = torch.tensor([[1, 1, 2, 2, 3]], dtype=torch.int32)
    target = Target(labels, torch.tensor([0, 0, 1]), torch.zeros((1, 5)).bool())
    places = torch.tensor([[[[0.0, 2.0, 2.0, 2.0, 2.0]]]])
    maps = torch.cat((places, torch.zeros(1, 10, 1, 5)), dim=1)  # 8 + 3 channels
    found = discriminative.loss(maps, [target])
    # Means 1, 2, 2. Away from them: 1, 1 | 0, 0 | 0, of which the margin forgives 0.5.
    assert [float(t) for t in found[:3]] == pytest.approx([0.25 / 3, 2.0**2, 5 / 3])
    tags = associative.loss(maps[:, [0, 8, 9, 10]], [target])
    push = (4 * math.exp(-0.5) + 2) / 9
    assert [float(t) for t in tags[:2]] == pytest.approx([1 / 3, push])


def test_vectors_without_length_have_no_direction() -> None:
    vectors = torch.tensor([[3.0, 0.0, 1e-9], [4.0, 0.0, 0.0]], requires_grad=True)
    found = contract.unit(vectors)
    found.sum().backward()
    assert vectors.grad is not None
    np.testing.assert_allclose(found.detach(), [[0.6, 0, 0], [0.8, 0, 0]], rtol=1e-6)
    slope = [[(1 - 0.6 * 1.4) / 5, 0, 0], [(1 - 0.8 * 1.4) / 5, 0, 0]]
    np.testing.assert_allclose(vectors.grad, slope, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_half_precision_is_computed_in_float32(method: ModuleType) -> None:
    maps = maps_for(method, 1, 2, 0)
    terms = method.loss(maps.bfloat16(), [scene(0, SIZE)])
    assert {term.dtype for term in terms} == {torch.float32}
