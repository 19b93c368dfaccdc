"""The loss of the paper (Neven et al. 2019, section 3): instance, smoothness and seed term.

The instance term is the Lovasz hinge of every instance's soft mask against all valid pixels of the
image. Done plainly that sorts the whole image once an instance. But the hinge is sparse, exactly:

    error of an own pixel 2 - 2 phi, of any other 2 phi; sorted in descending order, the Jaccard
    loss is 1 from the last own pixel on, and every later weight is 0

so others with phi <= 1 - max(own phi), that is with exponent d >= -log(-expm1(-min own d)), touch
neither value nor gradient. What is left are the own pixels of an instance and the pixels that
embed near its centre: they are found by binning all pixels by embedding position, and one sort and
one closed-form gradient serve all instances of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from spatialembed.method.embedding_bins import CELL, Bins
from spatialembed.method.geometry import coordinates, embed, precision
from spatialembed.method.lovasz import jaccard_steps
from spatialembed.types import UNIT, Embeddings, Target

Center = Literal["centroid", "learnable", "medoid"]

FLOAT32_LIMIT = 24 * math.log(2)
"""Exponent at which phi = 2^-24 is lost beside an own phi that rounds to 1 in float32."""
SMOOTHNESS = 10.0
"""Published weight of the smoothness term; the other two have weight 1."""
TWICE_ONE_BITS = 2 * 0x3F800000
"""Twice the bits of the float32 1.0: what the keys of an error e and of 2 - e add up to."""


class LossTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    instance: Tensor
    smoothness: Tensor
    seed: Tensor

    def total(self, instance: float = 1, smoothness: float = SMOOTHNESS, seed: float = 1) -> Tensor:
        """The weighted sum, by default with the published weights."""
        return instance * self.instance + smoothness * self.smoothness + seed * self.seed


def spatial_embedding_loss(
    prediction: Embeddings,
    targets: Sequence[Target],
    *,
    center: Center,
    foreground_weight: float | Sequence[float] = 10.0,
) -> LossTerms:
    """Instance, smoothness and seed term of a batch (Neven et al. 2019).

    Args:
        prediction: Maps of B images, any float dtype (computed in float32; float64 stays).
        targets: B truths on the same device. Ignored pixels enter no term, and an instance without
            a valid pixel is not counted.
        center: Centre of the soft mask: "centroid", the mean position of the instance's pixels;
            "learnable", the mean of their embeddings (gradients flow through it); "medoid", the
            pixel nearest to the centroid.
        foreground_weight: w_c of the seed term, one for all classes or one each.

    Returns:
        Three unweighted scalars, means over the batch. An image without instances gives instance =
        smoothness = 0, attached to the graph.

    Raises:
        ValueError: For an unknown centre, or numbers of targets or weights that do not fit.
    """
    return _mean_terms(
        _image_terms(offset, log_precision, seed, target, center, foreground_weight)
        for (offset, log_precision, seed), target in _images(prediction, targets)
    )


def hinge_loss(
    prediction: Embeddings,
    targets: Sequence[Target],
    *,
    margin_px: float,
    center: Center = "centroid",
    foreground_weight: float | Sequence[float] = 10.0,
) -> LossTerms:
    """The fixed-bandwidth baseline (Neven et al. 2019): embeddings within a margin of the centre.

    Args:
        prediction: As of ``spatial_embedding_loss``, like the targets and the weight.
        targets: B truths on the same device.
        margin_px: Margin delta in px, above 0.
        center: As of ``spatial_embedding_loss``.
        foreground_weight: w_c of the seed term.

    Returns:
        instance: mean over instances of the mean over their pixels of max(|e - C| - margin, 0), in
        units; smoothness: 0, since no bandwidth is learned; seed: against the Gaussian whose 0.5
        contour is the margin.

    Raises:
        ValueError: For a margin of 0 or less, and as ``spatial_embedding_loss``.
    """
    if margin_px <= 0:
        raise ValueError(f"margin_px is {margin_px}; it is a positive number of pixels")
    margin = margin_px / UNIT
    terms = []
    for (offset, log_precision, seed), target in _images(prediction, targets):
        truth = _Truth.of(target)
        embedding = embed(offset).flatten(1)  # (2, P)
        own = embedding[:, truth.pixels]  # (2, M)
        centers = _centers(truth, own, target.labels.shape, center)  # (2, K)
        distance_sq = (own - centers[:, truth.instance]).square().sum(0)  # (M,)
        # The root has no slope at 0; what lies inside the margin has none anyway.
        excess = distance_sq.clamp_min(margin**2).sqrt() - margin
        phi = (-math.log(2) / margin**2 * distance_sq).exp()
        nothing = 0 * (embedding.sum() + log_precision.sum())
        terms.append(
            LossTerms(
                truth.mean_of_means(excess) + nothing,
                nothing,
                _seed_term(seed, truth, phi.detach(), foreground_weight),
            )
        )
    return _mean_terms(iter(terms))


def _images(
    prediction: Embeddings, targets: Sequence[Target]
) -> Iterator[tuple[tuple[Tensor, ...], Target]]:
    """The maps and the truth of each image of the batch."""
    if len(targets) != len(prediction.seed):
        raise ValueError(f"{len(prediction.seed)} images in the prediction, {len(targets)} targets")
    # float32 once for the batch: every conversion is a map-sized buffer in the backward pass.
    maps = [m if m.dtype == torch.float64 else m.float() for m in prediction]
    return zip(zip(*maps, strict=True), targets, strict=True)


def _mean_terms(terms: Iterator[LossTerms]) -> LossTerms:
    return LossTerms(*(torch.stack(values).mean() for values in zip(*terms, strict=True)))


@dataclass(frozen=True)
class _Truth:
    """The K instances of an image that have valid pixels, numbered anew, and their M pixels."""

    valid: Tensor  # (P,) bool
    pixels: Tensor  # (M,) int64 linear index, sorted by instance, then by index
    instance: Tensor  # (M,) int64 in [0, K)
    counts: Tensor  # (K,) int64
    classes: Tensor  # (K,) int64
    number: Tensor  # (P,) int32, instance of each valid pixel, -1 elsewhere

    @classmethod
    def of(cls, target: Target) -> _Truth:
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


def _image_terms(
    offset: Tensor,
    log_precision: Tensor,
    seed: Tensor,
    target: Target,
    center: Center,
    foreground_weight: float | Sequence[float],
) -> LossTerms:
    """Terms of one image: offset (2, H, W), log_precision (S, H, W), seed (C, H, W)."""
    truth = _Truth.of(target)
    embedding = embed(offset).flatten(1)  # (2, P)
    if len(truth) == 0:
        nothing = 0 * (embedding.sum() + log_precision.sum())
        phi = embedding.new_zeros(0)
        return LossTerms(nothing, nothing, _seed_term(seed, truth, phi, foreground_weight))

    own_raw = log_precision.flatten(1)[:, truth.pixels]  # (S, M)
    mean_raw = truth.mean(own_raw)  # (S, K)
    centers = _centers(truth, embedding[:, truth.pixels], target.labels.shape, center)  # (2, K)
    instance, phi = _InstanceTerm.apply(embedding, centers, precision(mean_raw), truth)

    spread = (own_raw - mean_raw.detach()[:, truth.instance]).square().mean(0)  # (M,)
    seed_term = _seed_term(seed, truth, phi, foreground_weight)
    return LossTerms(instance, truth.mean_of_means(spread), seed_term)


def _centers(truth: _Truth, own: Tensor, shape: Sequence[int], center: Center) -> Tensor:
    """Centres (2, K) (x, y) in units; own (2, M) are the embeddings of the instances' pixels."""
    if center == "learnable":
        return truth.mean(own)
    position = coordinates(shape[0], shape[1], own).flatten(1)[:, truth.pixels]  # (2, M)
    centroid = truth.mean(position)  # (2, K)
    if center == "centroid":
        return centroid
    if center != "medoid":
        raise ValueError(f"center is {center!r}; it is centroid, learnable or medoid")
    # In whole pixels and as integers, so that ties are ties: n^2 |x - mean|^2 = |n x - sum|^2.
    pixel = torch.stack((truth.pixels % shape[1], truth.pixels // shape[1]))  # (2, M)
    total = pixel.new_zeros(2, len(truth)).index_add(1, truth.instance, pixel)
    n = truth.counts[truth.instance]
    distance_sq = (n * pixel - total[:, truth.instance]).square().sum(0)  # (M,)
    nearest = distance_sq.new_full((len(truth),), torch.iinfo(torch.int64).max)
    nearest = nearest.scatter_reduce(0, truth.instance, distance_sq, "amin")
    candidates = (distance_sq == nearest[truth.instance]).nonzero()[:, 0]
    # Sorted by instance, then linear index: the first candidate of an instance is the lowest.
    owner = truth.instance[candidates]
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    return position[:, candidates[first]]


def _seed_term(
    seed: Tensor, truth: _Truth, phi: Tensor, foreground_weight: float | Sequence[float]
) -> Tensor:
    """Seed term (Neven et al. 2019, eq. 11), scalar; seed (C, H, W), phi (M,) of the own pixels.

    Pixels of an instance regress phi, every other valid pixel regresses 0. The sum is divided by
    the size of the image, ignored pixels included.
    """
    num_classes = len(seed)
    flat = seed.flatten(1)  # (C, P)
    weights = torch.as_tensor(foreground_weight, dtype=flat.dtype, device=flat.device)
    if weights.ndim and len(weights) != num_classes:
        raise ValueError(f"{len(weights)} foreground weights for {num_classes} classes")
    own_class = truth.classes[truth.instance]  # (M,)
    goal = torch.zeros_like(flat)
    goal[own_class, truth.pixels] = phi
    weight = truth.valid.to(flat.dtype).repeat(num_classes, 1)  # (C, P)
    weight[own_class, truth.pixels] = weights.expand(num_classes)[own_class]
    return (weight * (flat - goal).square()).sum() / flat.shape[1]


class _InstanceTerm(torch.autograd.Function):
    """Mean over instances of the Lovasz hinge of 2 phi - 1; and phi of the own pixels.

    The value is linear in the sorted errors, so the gradient is known as soon as the value is: it
    is summed in the forward pass, chunk by chunk, and no pair outlives its chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, embedding: Tensor, centers: Tensor, precisions: Tensor, truth: _Truth
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
    embedding: Tensor, centers: Tensor, precisions: Tensor, truth: _Truth
) -> tuple[Tensor, ...]:
    """Value, gradients by embedding, centers and precisions, and phi (M,), by the CPU kernel."""
    from spatialembed.method.kernels.hinge import (
        instance_term,  # numba takes half a second to import
    )

    number = torch.where(truth.valid, truth.number, -2)
    value, *arrays = instance_term(
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
    embedding: Tensor, centers: Tensor, precisions: Tensor, truth: _Truth
) -> tuple[Tensor, ...]:
    """The same in batched torch, for any device and dtype."""
    own_d = _exponent(embedding, centers, precisions, truth.pixels, truth.instance)[0]  # (M,)
    limits = _sparsity_limits(own_d, truth)  # (K,)
    value = embedding.new_zeros(())
    gradients = tuple(torch.zeros_like(t) for t in (embedding, centers, precisions))
    own_start = truth.counts.cumsum(0) - truth.counts
    bins = Bins(embedding, truth.valid)
    for first, last, others in bins.near(centers, precisions, limits):
        begin, end = own_start[first], own_start[last - 1] + truth.counts[last - 1]
        pixel, instance = others
        kept = truth.number[pixel] != instance
        pixel = torch.cat((truth.pixels[begin:end], pixel[kept]))
        instance = torch.cat((truth.instance[begin:end], instance[kept]))
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


def _sparsity_limits(own_d: Tensor, truth: _Truth) -> Tensor:
    """(K,) exponents from which on a pixel of the others has no part in the hinge of instance k."""
    least = own_d.new_full((len(truth),), torch.inf)
    least = least.scatter_reduce(0, truth.instance, own_d, "amin")
    limits = -(-torch.expm1(-least)).log()
    return limits if limits.dtype == torch.float64 else limits.clamp_max(FLOAT32_LIMIT)


def _add_pairs(
    gradients: tuple[Tensor, ...],
    parameters: tuple[Tensor, Tensor, Tensor],
    truth: _Truth,
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
    d, pixel, instance, own, errors = (
        t[order] for t in (d, pixel, instance, own, errors)
    )  # all (N,) sorted
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


def _segment_steps(own: Tensor, instance: Tensor, truth: _Truth) -> Tensor:
    """Jaccard steps (N,) of sorted pairs, each instance a segment of its own."""
    dtype = torch.float64 if instance.device.type != "mps" else torch.float32
    own_before = own.cumsum(0) - own.long()  # over all segments
    place = torch.arange(len(own), device=own.device)
    start = torch.searchsorted(instance, instance)  # of the segment
    own_before = own_before - own_before[start]
    other_before = place - start - own_before
    total = truth.counts[instance].to(dtype)
    return jaccard_steps(own, own_before.to(dtype), other_before.to(dtype), total)
