"""Turns and flips of images, undone on their maps, and the average over them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spatialembed.inference.test_time_augmentation import average_over_turns, turn, turn_back
from spatialembed.method import geometry
from spatialembed.types import UNIT, Embeddings

ALL_TURNS = [(quarters, flip) for flip in (False, True) for quarters in range(4)]


def images(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(2))


def one_centre(height: int, width: int, center_px: tuple[float, float]) -> Tensor:
    """Offsets (1, 2, height, width) by which every pixel points at one centre (x, y)."""
    center = torch.tensor(center_px).view(2, 1, 1) / UNIT
    return (center - geometry.coordinates(height, width, torch.zeros(())))[None]


def slopes(x: Tensor) -> Embeddings:
    """A network that turns with its image: offsets are the slopes of the first channel."""
    value = x[:, :1]
    s_x = value.roll(-1, -1) - value.roll(1, -1)
    s_y = value.roll(-1, -2) - value.roll(1, -2)
    return Embeddings(torch.cat((s_x, s_y), 1), torch.cat((s_x**2, s_y**2), 1), value)


def towards_marker(x: Tensor) -> Embeddings:
    """Every pixel points at the brightest one, found by its index."""
    _, _, height, width = x.shape
    at = int(x[0, 0].argmax())
    offset = one_centre(height, width, (at % width, at // width))
    raw = torch.stack((x[:, 1], x[:, 2]), 1)
    return Embeddings(offset, raw, x[:, :1])


@pytest.mark.parametrize(("quarters", "flip"), ALL_TURNS)
@pytest.mark.parametrize("size", [(5, 8), (6, 6), (1, 4)])
def test_each_turn_is_undone_exactly(quarters: int, flip: bool, size: tuple[int, int]) -> None:
    x = images(2, 3, *size)
    back = turn_back(slopes(turn(x, quarters, flip)), quarters, flip)
    for found, expected in zip(back, slopes(x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("quarters", "flip"), ALL_TURNS)
def test_vectors_keep_their_target(quarters: int, flip: bool) -> None:
    """The marker is looked up in the turned image: no formula of the turn is used to find it."""
    x = torch.zeros(1, 3, 5, 9)
    x[0, 0, 1, 6] = 1
    back = turn_back(towards_marker(turn(x, quarters, flip)), quarters, flip)
    target = geometry.embed(back.offset)[0] * UNIT
    torch.testing.assert_close(target[0], torch.full((5, 9), 6.0))
    torch.testing.assert_close(target[1], torch.full((5, 9), 1.0))


def test_the_eight_turns_differ() -> None:
    x = images(1, 3, 4, 4)
    turned = [turn(x, *t) for t in ALL_TURNS]
    assert not any(torch.equal(turned[i], turned[j]) for i in range(8) for j in range(i))


def test_precisions_swap_on_quarter_turns_only() -> None:
    tall = torch.tensor((1.0, 2.0)).view(1, 2, 1, 1)
    maps = Embeddings(torch.zeros(1, 2, 3, 3), tall.expand(1, 2, 3, 3), torch.zeros(1, 1, 3, 3))
    for quarters, flip in ALL_TURNS:
        first = turn_back(maps, quarters, flip).log_precision[0, 0, 0, 0]
        assert first == (2 if quarters % 2 else 1)


@pytest.mark.parametrize("run", [slopes, towards_marker])
def test_average_of_an_equivariant_network_is_its_own(run: Callable[[Tensor], Embeddings]) -> None:
    x = images(1, 3, 6, 9)
    x[:, 1:] = 0.5  # what towards_marker gives as precisions: the same on both axes
    for found, expected in zip(average_over_turns(run, x), run(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_average_removes_what_depends_on_the_direction() -> None:
    def biased(x: Tensor) -> Embeddings:
        offset = torch.tensor((0.1, 0.3)).view(1, 2, 1, 1).expand(1, 2, *x.shape[-2:])
        raw = torch.tensor((1.0, 2.0)).view(1, 2, 1, 1).expand(1, 2, *x.shape[-2:])
        return Embeddings(offset, raw, x[:, :1])

    maps = average_over_turns(biased, images(1, 3, 4, 6))
    torch.testing.assert_close(maps.offset, torch.zeros(1, 2, 4, 6), rtol=0, atol=1e-7)
    torch.testing.assert_close(maps.log_precision, torch.full((1, 2, 4, 6), 1.5))
