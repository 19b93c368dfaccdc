"""The loss of the paper (Neven et al. 2019, section 3): instance, smoothness and seed term."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from spatialembed.method.geometry import coordinates, embed, precision
from spatialembed.method.instance_term import Truth, instance_term
from spatialembed.types import UNIT, Embeddings, Target

Center = Literal["centroid", "learnable", "medoid"]

SMOOTHNESS = 10.0
"""Published weight of the smoothness term; the other two have weight 1."""


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
        truth = Truth.of(target)
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


def _image_terms(
    offset: Tensor,
    log_precision: Tensor,
    seed: Tensor,
    target: Target,
    center: Center,
    foreground_weight: float | Sequence[float],
) -> LossTerms:
    """Terms of one image: offset (2, H, W), log_precision (S, H, W), seed (C, H, W)."""
    truth = Truth.of(target)
    embedding = embed(offset).flatten(1)  # (2, P)
    if len(truth) == 0:
        nothing = 0 * (embedding.sum() + log_precision.sum())
        phi = embedding.new_zeros(0)
        return LossTerms(nothing, nothing, _seed_term(seed, truth, phi, foreground_weight))

    own_raw = log_precision.flatten(1)[:, truth.pixels]  # (S, M)
    mean_raw = truth.mean(own_raw)  # (S, K)
    centers = _centers(truth, embedding[:, truth.pixels], target.labels.shape, center)  # (2, K)
    instance, phi = instance_term(embedding, centers, precision(mean_raw), truth)

    spread = (own_raw - mean_raw.detach()[:, truth.instance]).square().mean(0)  # (M,)
    seed_term = _seed_term(seed, truth, phi, foreground_weight)
    return LossTerms(instance, truth.mean_of_means(spread), seed_term)


def _centers(truth: Truth, own: Tensor, shape: Sequence[int], center: Center) -> Tensor:
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
    seed: Tensor, truth: Truth, phi: Tensor, foreground_weight: float | Sequence[float]
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
