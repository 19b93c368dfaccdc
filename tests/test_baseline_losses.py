"""The losses of the wing baselines: value by loops over their equations, gradient by its slope."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

import oracle_baselines
from baseline_scenes import empty, scene
from spatialembed.baselines import (
    associative,
    discriminative,
    hinge,
    metric_learning,
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


def test_pixels_at_one_place_have_a_finite_gradient() -> None:
    """Maps of zeros: every distance is 0, and with it every root."""
    for method in METHODS:
        maps = torch.zeros((1, sum(method.channels(2)), SIZE, SIZE), requires_grad=True)
        terms = method.loss(maps, [scene(1, SIZE)])
        terms.total().backward()
        assert terms.total().isfinite()
        assert maps.grad is not None
        assert maps.grad.isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_half_precision_is_computed_in_float32(method: ModuleType) -> None:
    maps = maps_for(method, 1, 2, 0)
    terms = method.loss(maps.bfloat16(), [scene(0, SIZE)])
    assert {term.dtype for term in terms} == {torch.float32}
