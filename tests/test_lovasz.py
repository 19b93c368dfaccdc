"""The Lovasz hinge against known values, slow loops and the Jaccard loss that it extends."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle_loss as oracle
from spatialembed.method.lovasz import jaccard_steps, lovasz_hinge

PIXELS = st.lists(st.tuples(st.floats(-3, 3, width=32), st.booleans()), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(PIXELS)
def test_value_is_that_of_the_slow_loops(pixels: list[tuple[float, bool]]) -> None:
    """Ties included; a mask without pixels too."""
    logits, mask = zip(*pixels, strict=True)
    found = lovasz_hinge(torch.tensor(logits, dtype=torch.float64), torch.tensor(mask))
    assert float(found) == pytest.approx(oracle.lovasz(logits, mask), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=4))[1:])
def test_at_the_corners_it_is_the_jaccard_loss(mask: tuple[bool, ...]) -> None:
    """Errors of 0 and 1 (logits of 1 and 0): one minus the IoU of what is right with the mask."""
    for wrong in itertools.product([False, True], repeat=4):
        logits = [(1 - w) * (1 if m else -1) for m, w in zip(mask, wrong, strict=True)]
        found = {i for i in range(4) if mask[i] != wrong[i]}
        true = {i for i in range(4) if mask[i]}
        iou = len(found & true) / len(found | true)
        value = lovasz_hinge(torch.tensor(logits, dtype=torch.float64), torch.tensor(mask))
        assert float(value) == pytest.approx(1 - iou)


def test_known_value() -> None:
    """Errors 1.5 (other), 0.5 (own), 0 (own): 1.5 * 1/3 + 0.5 * 1/3."""
    value = lovasz_hinge(torch.tensor([0.5, 0.5, 2.0]), torch.tensor([False, True, True]))
    assert float(value) == pytest.approx(2 / 3)


def test_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, dtype=torch.float64, generator=generator, requires_grad=True)
    mask = torch.rand(30, generator=generator) < 0.4
    assert torch.autograd.gradcheck(lambda x: lovasz_hinge(x, mask), logits)


@settings(deadline=None, max_examples=50)
@given(PIXELS, PIXELS, st.floats(0, 1))
def test_it_is_convex(
    one: list[tuple[float, bool]], two: list[tuple[float, bool]], share: float
) -> None:
    count = min(len(one), len(two))
    mask = torch.tensor([m for _, m in one[:count]])
    a, b = (torch.tensor([z for z, _ in p[:count]], dtype=torch.float64) for p in (one, two))
    middle = float(lovasz_hinge(share * a + (1 - share) * b, mask))
    chord = share * float(lovasz_hinge(a, mask)) + (1 - share) * float(lovasz_hinge(b, mask))
    assert middle <= chord + 1e-9


def test_steps_keep_their_digits_in_a_mask_of_millions() -> None:
    """The first other pixel counts 4e-8; differences of float32 ratios are 0 or 6e-8."""
    own = torch.tensor([False])
    count = torch.tensor([0.0])
    total = torch.tensor([25e6])
    assert float(jaccard_steps(own, count, count, total)) == pytest.approx(1 / 25e6, rel=1e-6)


def test_no_pixels_give_zero() -> None:
    logits = torch.zeros(0, requires_grad=True)
    value = lovasz_hinge(logits, torch.zeros(0, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
