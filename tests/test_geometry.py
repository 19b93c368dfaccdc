"""Coordinates and bandwidths: worked numbers, and float32 whatever comes in."""

from __future__ import annotations

import math

import pytest
import torch

from spatialembed.method.geometry import coordinates, embed, margin_px, precision
from spatialembed.types import UNIT

HALVES = [torch.bfloat16, torch.float16]


def test_coordinates_are_x_then_y_in_units() -> None:
    grid = coordinates(3, 5, torch.zeros(1, dtype=torch.float64))
    assert grid.shape == (2, 3, 5)
    assert grid[:, 2, 4].tolist() == [4 / 1024, 2 / 1024]
    assert grid[:, 0, 0].tolist() == [0, 0]


def test_embedding_is_position_plus_offset() -> None:
    """Pixel (y 1, x 512) with offset (-0.25, 0.5) points at (256, 513) px."""
    offset = torch.zeros(2, 2, 600)
    offset[:, 1, 512] = torch.tensor([-0.25, 0.5])
    assert (embed(offset)[:, 1, 512] * UNIT).tolist() == [256, 513]


@pytest.mark.parametrize("dtype", HALVES)
def test_no_two_columns_share_an_embedding(dtype: torch.dtype) -> None:
    """A bfloat16 grid has 641 distinct values out of 2048."""
    embedding = embed(torch.zeros(1, 2, 1, 2048, dtype=dtype))
    assert embedding.dtype == torch.float32
    assert len(embedding[0, 0, 0].unique()) == 2048


@pytest.mark.parametrize(
    ("raw", "margin"), [(1.0, 5.7), (0.8, 15.6), (0.6, 42), (0.5, 70), (0.4, 115), (0.3, 190)]
)
def test_margins(raw: float, margin: float) -> None:
    assert float(margin_px(torch.tensor(raw))) == pytest.approx(margin, rel=0.015)


def test_margin_is_where_phi_is_a_half() -> None:
    raw = torch.linspace(-1, 2, 7, dtype=torch.float64)
    phi = (-precision(raw) * (margin_px(raw) / UNIT).square()).exp()
    torch.testing.assert_close(phi, torch.full_like(phi, 0.5))


def test_sigma_of_the_initial_bandwidth() -> None:
    """p = 1 / (2 sigma^2): 4.9 px at raw 1."""
    sigma = UNIT / math.sqrt(2 * float(precision(torch.tensor(1.0, dtype=torch.float64))))
    assert sigma == pytest.approx(4.9, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_precision_is_clamped_and_wide(dtype: torch.dtype) -> None:
    """exp(10 * 1.2) overflows float16; exp(10 * 20) any float32."""
    raw = torch.tensor([-20, 1.25, 20], dtype=dtype)
    p = precision(raw)
    assert p.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = [math.exp(-40), math.exp(12.5), math.exp(40)]
    assert p.tolist() == pytest.approx(expected, rel=1e-5)
