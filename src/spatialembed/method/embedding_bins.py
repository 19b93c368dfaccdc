"""Which pixels embed near which centres: a grid over the embeddings, in batched torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spatialembed.types import UNIT

CELL = 8 / UNIT
"""Side of a bin of embeddings, in units: about the margin of a small object."""
MOST_ACROSS = 2048
"""Bins along an axis at most; of maps that reach farther than this many cells, wider ones."""
PAIRS_AT_ONCE = 1 << 22
"""(instance, pixel) pairs held at a time, some 50 bytes each; very wide bandwidths drop nothing."""


class Bins:
    """All valid pixels, ordered by the cell of a grid that their embedding falls into."""

    def __init__(self, embedding: Tensor, valid: Tensor) -> None:
        pixels = valid.nonzero()[:, 0]
        points = embedding[:, pixels]  # (2, V)
        self.low = points.amin(1)
        # A network's offsets stay within a unit; those of others may reach anywhere.
        self.cell = max(CELL, float((points.amax(1) - self.low).max()) / MOST_ACROSS)
        self.size = self._cell(points.amax(1)[:, None])[:, 0] + 1  # (2,) columns, rows
        column, row = self._cell(points)
        key = (row * self.size[0] + column).to(torch.int32)
        self.key, order = key.sort(stable=True)
        self.pixels = pixels[order]

    def _cell(self, points: Tensor) -> Tensor:
        """Column and row (2, N) int64 of positions (2, N); floor keeps order, none is missed."""
        return ((points - self.low[:, None]) / self.cell).floor().long()

    def near(
        self, centers: Tensor, precisions: Tensor, limits: Tensor
    ) -> Iterator[tuple[int, int, tuple[Tensor, Tensor]]]:
        """Runs of instances [first, last) and the (pixel, instance) pairs that may be near.

        A superset of d < limit: the pixels of all cells that touch the box around that ellipse.
        """
        reach = (limits / precisions).sqrt() * (1 + 1e-5) + 1e-7  # (S, K)
        edge = self.low[:, None] + self.size[:, None] * self.cell
        start = self._cell((centers - reach).clamp_max(edge)).clamp_min(0)  # (2, K)
        stop = torch.minimum(self._cell((centers + reach).minimum(edge)), self.size[:, None] - 1)
        rows = (stop[1] - start[1] + 1).clamp_min(0)  # (K,)
        instance = torch.arange(len(rows), device=rows.device).repeat_interleave(rows)
        row = start[1][instance] + count_up(rows)
        # The cells of one row of the box are neighbours in the sorted keys: one range of pixels.
        base = row * self.size[0]
        begin = torch.searchsorted(self.key, (base + start[0][instance]).to(self.key))
        end = torch.searchsorted(self.key, (base + stop[0][instance]).to(self.key), right=True)
        length = (end - begin).clamp_min(0)
        for first, last, span in _chunks(instance, length, len(rows)):
            pairs = length[span]
            place = begin[span].repeat_interleave(pairs) + count_up(pairs)
            yield first, last, (self.pixels[place], instance[span].repeat_interleave(pairs))


def count_up(counts: Tensor) -> Tensor:
    """Count up within runs: 0, 1, .., counts[0] - 1, 0, 1, .., counts[1] - 1, ..."""
    ends = counts.cumsum(0)
    total = torch.arange(int(ends[-1]) if len(ends) else 0, device=counts.device)
    return total - (ends - counts).repeat_interleave(counts)


def _chunks(instance: Tensor, length: Tensor, count: int) -> Iterator[tuple[int, int, slice]]:
    """Runs of whole instances with at most PAIRS_AT_ONCE pairs (or one instance)."""
    pairs = length.new_zeros(count).index_add(0, instance, length).tolist()
    ranges = torch.bincount(instance, minlength=count).tolist()
    first = held = begin = end = 0
    for k in range(count):
        if k > first and held + pairs[k] > PAIRS_AT_ONCE:
            yield first, k, slice(begin, end)
            first, held, begin = k, 0, end
        held += pairs[k]
        end += ranges[k]
    yield first, count, slice(begin, end)
