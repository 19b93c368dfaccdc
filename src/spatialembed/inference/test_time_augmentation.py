"""Averaging over the turns and flips of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spatialembed.types import Embeddings


def average_over_turns(run: Callable[[Tensor], Embeddings], images: Tensor) -> Embeddings:
    """Test-time augmentation: mean of the maps over the 8 turns and flips of images (B, 3, H, W).

    Offsets are vectors and turn with the image; elliptical log-precisions swap on quarter turns.
    """
    total: list[Tensor] = []
    for flip in (False, True):
        for quarters in range(4):
            maps = turn_back(run(turn(images, quarters, flip)), quarters, flip)
            total = [a + b for a, b in zip(total, maps, strict=True)] if total else list(maps)
    return Embeddings(*(t / 8 for t in total))


def turn(images: Tensor, quarters: int, flip: bool) -> Tensor:
    """Images (..., H, W), mirrored left to right if ``flip``, turned left ``quarters`` times."""
    return torch.rot90(images.flip(-1) if flip else images, quarters, (-2, -1))


def turn_back(maps: Embeddings, quarters: int, flip: bool) -> Embeddings:
    """Maps of ``turn(images, quarters, flip)`` as maps of the images."""
    for _ in range(quarters):
        maps = _quarter_back(maps)
    if not flip:
        return maps
    offset, log_precision, seed = (m.flip(-1) for m in maps)
    return Embeddings(offset * offset.new_tensor((-1, 1)).view(2, 1, 1), log_precision, seed)


def _quarter_back(maps: Embeddings) -> Embeddings:
    """A quarter turn to the right: the vector (x, y) becomes (-y, x), y pointing down."""
    offset, log_precision, seed = (torch.rot90(m, -1, (-2, -1)) for m in maps)
    x, y = offset.unbind(-3)
    return Embeddings(torch.stack((-y, x), dim=-3), log_precision.flip(-3), seed)
