"""The instance term of the loss: Lovasz hinges that look only at pixels that count.

The term is the Lovasz hinge of every instance's soft mask against all valid pixels of the image.
Done plainly that sorts the whole image once an instance. But the hinge is sparse, exactly:

    error of an own pixel 2 - 2 phi, of any other 2 phi; sorted in descending order, the Jaccard
    loss is 1 from the last own pixel on, and every later weight is 0

so others with phi <= 1 - max(own phi), that is with exponent d >= -log(-expm1(-min own d)), touch
neither value nor gradient. What is left are the own pixels of an instance and the pixels that
embed near its centre: they are found by binning all pixels by embedding position, and one sort and
one closed-form gradient serve all instances of an image. ``kernels.hinge`` does the same, compiled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spatialembed.method.lovasz import jaccard_steps
from spatialembed.types import UNIT, Target

FLOAT32_LIMIT = 24 * math.log(2)
"""Exponent at which phi = 2^-24 is lost beside an own phi that rounds to 1 in float32."""
TWICE_ONE_BITS = 2 * 0x3F800000
"""Twice the bits of the float32 1.0: what the keys of an error e and of 2 - e add up to."""
CELL = 8 / UNIT
"""Side of a bin of embeddings, in units: about the margin of a small object."""
MOST_ACROSS = 2048
"""Bins along an axis at most; of maps that reach farther than this many cells, wider ones."""
PAIRS_AT_ONCE = 1 << 22
"""About so many (instance, pixel) pairs are held at a time, some 50 bytes each."""


@dataclass(frozen=True)
class Truth:
    """The K instances of an image that have valid pixels, numbered anew, and their M pixels."""

    valid: Tensor  # (P,) bool
    pixels: Tensor  # (M,) int64 linear index, sorted by instance, then by index
    instance: Tensor  # (M,) int64 in [0, K)
    counts: Tensor  # (K,) int64
    classes: Tensor  # (K,) int64
    number: Tensor  # (P,) int32, instance of each valid pixel, -1 elsewhere

    @classmethod
    def of(cls, target: Target) -> Truth:
        """Those of a target; an ignored pixel belongs to none."""
        valid = ~target.ignore.flatten()
        labels = torch.where(valid, target.labels.flatten(), 0)
        pixels = labels.nonzero()[:, 0]
        own_labels, order = labels[pixels].sort(stable=True)
        ids, instance, counts = own_labels.unique_consecutive(
            return_inverse=True, return_counts=True
        )
        pixels = pixels[order]
        number = torch.full_like(labels, -1)
        number[pixels] = instance.to(number.dtype)
        return cls(valid, pixels, instance, counts, target.classes[ids.long() - 1], number)

    def __len__(self) -> int:
        return len(self.counts)

    def mean(self, values: Tensor) -> Tensor:
        """Mean (N, K) of values (N, M) over each instance, summed in float64 where there is one."""
        wide = values if values.device.type == "mps" else values.double()
        sums = wide.new_zeros(len(values), len(self)).index_add(1, self.instance, wide)
        return (sums / self.counts).to(values.dtype)

    def mean_of_means(self, values: Tensor) -> Tensor:
        """Mean over instances of the mean of values (M,) over their pixels, 0 without instances."""
        return (values / (self.counts[self.instance] * len(self))).sum()


def instance_term(
    embedding: Tensor, centers: Tensor, precisions: Tensor, truth: Truth
) -> tuple[Tensor, Tensor]:
    """Mean over instances of the Lovasz hinge of 2 phi - 1, a scalar; and phi (M,), detached.

    embedding (2, P) and centers (2, K), (x, y), in units; precisions (S, K) in 1/unit^2.
    """
    value, phi = _InstanceTerm.apply(embedding, centers, precisions, truth)
    return value, phi


class _InstanceTerm(torch.autograd.Function):
    """Mean over instances of the Lovasz hinge of 2 phi - 1; and phi of the own pixels.

    The value is linear in the sorted errors, so the gradient is known as soon as the value is: it
    is summed in the forward pass, chunk by chunk, and no pair outlives its chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, embedding: Tensor, centers: Tensor, precisions: Tensor, truth: Truth
    ) -> tuple[Tensor, Tensor]:
        """embedding (2, P), centers (2, K), precisions (S, K) -> scalar, phi (M,)."""
        inputs = (embedding, centers, precisions)
        if not all(bool(t.isfinite().all()) for t in inputs):
            # A NaN loss reveals a diverged network; NaN has no bin to fall into.
            gradients = [torch.full_like(t, math.nan) for t in inputs]
            value, phi = embedding.new_tensor(math.nan), embedding[0, truth.pixels] * math.nan
        elif embedding.device.type == "cpu" and embedding.dtype == torch.float32:
            value, *gradients, phi = _fused(*inputs, truth)
        else:
            value, *gradients, phi = _batched(*inputs, truth)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(phi)
        return value, phi

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_value: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad_value * gradient for gradient in ctx.saved_tensors), None)


def _fused(
    embedding: Tensor, centers: Tensor, precisions: Tensor, truth: Truth
) -> tuple[Tensor, ...]:
    """Value, gradients by embedding, centers and precisions, and phi (M,), by the CPU kernel."""
    from spatialembed.method.kernels import hinge  # numba takes half a second to import

    number = torch.where(truth.valid, truth.number, -2)
    value, *arrays = hinge.instance_term(
        embedding.numpy(),
        centers.contiguous().numpy(),
        precisions.expand(2, -1).contiguous().numpy(),
        number.numpy(),
        truth.pixels.numpy(),
        truth.counts.numpy(),
        CELL,
        FLOAT32_LIMIT,
    )
    grad_embedding, grad_centers, grad_precisions, phi = map(torch.from_numpy, arrays)
    if len(precisions) == 1:
        grad_precisions = grad_precisions.sum(0, keepdim=True)
    return embedding.new_tensor(value), grad_embedding, grad_centers, grad_precisions, phi


def _batched(
    embedding: Tensor, centers: Tensor, precisions: Tensor, truth: Truth
) -> tuple[Tensor, ...]:
    """The same in batched torch, for any device and dtype."""
    own_d, _ = _exponent(embedding, centers, precisions, truth.pixels, truth.instance)  # (M,)
    least = own_d.new_full((len(truth),), torch.inf)
    least = least.scatter_reduce(0, truth.instance, own_d, "amin")
    # From this exponent on a pixel of the others has no part in the hinge of an instance.
    limits = -(-torch.expm1(-least)).log()  # (K,)
    if limits.dtype != torch.float64:
        limits = limits.clamp_max(FLOAT32_LIMIT)
    value = embedding.new_zeros(())
    gradients = tuple(torch.zeros_like(t) for t in (embedding, centers, precisions))
    own_start = truth.counts.cumsum(0) - truth.counts
    bins = _Bins(embedding, truth.valid)
    for first, last, others, near in bins.near(centers, precisions, limits):
        begin, end = own_start[first], own_start[last - 1] + truth.counts[last - 1]
        kept = truth.number[others] != near
        pixel = torch.cat((truth.pixels[begin:end], others[kept]))
        instance = torch.cat((truth.instance[begin:end], near[kept]))
        own = torch.arange(len(pixel), device=pixel.device) < end - begin
        value = value + _add_pairs(
            gradients, (embedding, centers, precisions), truth, limits, pixel, instance, own
        )
    return value, *gradients, (-own_d).exp()


def _exponent(
    embedding: Tensor, centers: Tensor, precisions: Tensor, pixel: Tensor, instance: Tensor
) -> tuple[Tensor, Tensor]:
    """Exponent d (N,) = sum_axis p (e - C)^2 of (pixel, instance) pairs, and e - C (2, N)."""
    difference = embedding[:, pixel] - centers[:, instance]
    return (precisions[:, instance] * difference.square()).sum(0), difference


def _add_pairs(
    gradients: tuple[Tensor, ...],
    parameters: tuple[Tensor, Tensor, Tensor],
    truth: Truth,
    limits: Tensor,
    pixel: Tensor,
    instance: Tensor,
    own: Tensor,
) -> Tensor:
    """Value of some instances from their (pixel, instance) pairs (N,); gradients add in place.

    own (N,) bool: the pixel belongs to the instance. All own pixels are among them.
    """
    embedding, centers, precisions = parameters
    d, _ = _exponent(embedding, centers, precisions, pixel, instance)
    kept = (own | (d < limits[instance])).nonzero()[:, 0]
    d, pixel, instance, own = d[kept], pixel[kept], instance[kept], own[kept]
    # 1 - phi by expm1: near the centre it has digits that 1 - exp has not.
    errors = 2 * torch.where(own, -torch.expm1(-d), (-d).exp())

    order = _by_instance_then_error(instance, own, d)
    d, pixel, instance, own, errors = (t[order] for t in (d, pixel, instance, own, errors))
    steps = _segment_steps(own, instance, truth)
    share = (steps / len(truth)).to(d)

    # d error / d d: +2 phi for an own pixel, -2 phi for any other
    slope = 2 * share * (-d).exp() * torch.where(own, 1.0, -1.0).to(d)  # (N,)
    difference = embedding[:, pixel] - centers[:, instance]  # (2, N)
    pull = 2 * slope * precisions[:, instance] * difference  # (2, N)
    gradients[0].index_add_(1, pixel, pull)
    gradients[1].index_add_(1, instance, -pull)
    square = slope * difference.square()
    if len(precisions) == 1:
        square = square.sum(0, keepdim=True)
    gradients[2].index_add_(1, instance, square)
    return (errors * share).sum()


def _by_instance_then_error(instance: Tensor, own: Tensor, d: Tensor) -> Tensor:
    """Order (N,) by instance, then by error descending; equal ones as they came.

    Of an error e in [0, 2] near 2, 2 - e has the digits that e has lost: where wide bandwidths put
    thousands of pixels there, float32 errors tie, and the gradient would depend on their order.
    """
    near = d < math.log(2)
    part = 2 * torch.where(near, -torch.expm1(-d), (-d).exp())  # e or 2 - e, whichever is below 1
    low = own == near
    if d.dtype == torch.float32:
        # Non-negative float32 keep their order read as int32, and int32 sort faster.
        bits = part.view(torch.int32)
        order = (-torch.where(low, bits, TWICE_ONE_BITS - bits)).sort(stable=True).indices
    else:
        order = torch.where(low, part, 2 - part).sort(descending=True, stable=True).indices
    return order[instance[order].to(torch.int32).sort(stable=True).indices]


def _segment_steps(own: Tensor, instance: Tensor, truth: Truth) -> Tensor:
    """Jaccard steps (N,) of sorted pairs, each instance a segment of its own."""
    dtype = torch.float64 if instance.device.type != "mps" else torch.float32
    own_before = own.cumsum(0) - own.long()  # over all segments
    place = torch.arange(len(own), device=own.device)
    start = torch.searchsorted(instance, instance)  # of the segment
    own_before = own_before - own_before[start]
    other_before = place - start - own_before
    total = truth.counts[instance].to(dtype)
    return jaccard_steps(own, own_before.to(dtype), other_before.to(dtype), total)


# ---------------------------------------------------------------- which pixels are near


class _Bins:
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
    ) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Runs of instances [first, last), and pixels and instances that may be near each other.

        A superset of d < limit: the pixels of all cells that touch the box around that ellipse.
        """
        reach = (limits / precisions).sqrt() * (1 + 1e-5) + 1e-7  # (S, K)
        edge = self.low[:, None] + self.size[:, None] * self.cell
        start = self._cell((centers - reach).clamp_max(edge)).clamp_min(0)  # (2, K)
        stop = torch.minimum(self._cell((centers + reach).minimum(edge)), self.size[:, None] - 1)
        rows = (stop[1] - start[1] + 1).clamp_min(0)  # (K,)
        instance = torch.arange(len(rows), device=rows.device).repeat_interleave(rows)
        # The cells of one row of the box are neighbours in the sorted keys: one range of pixels.
        base = (start[1][instance] + _count_up(rows)) * self.size[0]
        begin = torch.searchsorted(self.key, (base + start[0][instance]).to(self.key))
        end = torch.searchsorted(self.key, (base + stop[0][instance]).to(self.key), right=True)
        length = (end - begin).clamp_min(0)
        pairs = length.new_zeros(len(rows)).index_add(0, instance, length)
        chunk = (pairs.cumsum(0) - pairs) // PAIRS_AT_ONCE
        sizes = chunk.unique_consecutive(return_counts=True)[1]
        for last, size in zip(sizes.cumsum(0).tolist(), sizes.tolist(), strict=True):
            here = ((instance >= last - size) & (instance < last)).nonzero()[:, 0]
            runs = length[here]
            place = begin[here].repeat_interleave(runs) + _count_up(runs)
            yield last - size, last, self.pixels[place], instance[here].repeat_interleave(runs)


def _count_up(counts: Tensor) -> Tensor:
    """Count up within runs: 0, 1, .., counts[0] - 1, 0, 1, .., counts[1] - 1, ..."""
    total = torch.arange(int(counts.sum()), device=counts.device)
    return total - (counts.cumsum(0) - counts).repeat_interleave(counts)
