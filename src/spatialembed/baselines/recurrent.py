"""Recurrent pixel embedding (Kong and Fowlkes 2018, arXiv 1712.08273).

    s_ij       (1 + x_i . x_j) / 2                                    of vectors x of length 1
    pair       mean over loops of sum_ij w_i w_j (same ? 1 - s_ij : max(s_ij - alpha, 0))
    loop       X <- normalised X K D^-1,  K_ij = exp(delta^2 (x_i . x_j - 1)),  D = diag(1^T K)
    total      pair + 1 semantic

The sample has SAMPLED pixels of each instance, at even steps (the paper draws them); w of a pixel
is 1 / (sampled pixels of its instance * instances), so that the weights of a sample add up to 1 and
each instance counts the same. In the paper too they go with 1 / (pixels of the instance); their sum
could not be read. i = j is among the pairs. alpha = 0.5. The loss is taken before the first and
after each of five loops of Gaussian blurring mean-shift (step 1) and flows back through all of
them; in the paper three standard deviations are the margin: 1 / delta = (1 - alpha) / 3, so delta
is 6. 64 dimensions. The background is left to the classes, a softmax of the same network.

Grouping: ten loops, within each class. The paper blurs all pixels of small maps, which takes
pixels^2; here at most ANCHORS of them, at even steps, are blurred. Those that end within the
merging similarity of each other are an instance, and each pixel goes to the instance whose anchors
are, on average before blurring, most similar to it. Of noise every anchor ends alone, and that last
step costs pixels * ANCHORS products of vectors; so in a class of more than 700,000 pixels only the
instances of the most anchors are kept, ``MOST_SIMILARITIES`` / pixels of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from spatialembed.baselines.contract import (
    Range,
    as_instances,
    class_probabilities,
    evenly,
    images_of,
    mean_terms,
    semantic_term,
    unit,
    within_classes,
)
from spatialembed.method.instance_term import Truth
from spatialembed.types import Instances, Target

TITLE = "recurrent pixel embedding (Kong 2018)"
DIMENSIONS = 64
MARGIN = 0.5
LOOPS = 5
LOOPS_AT_TEST = 10
SAMPLED = 16
ANCHORS = 1500
MOST_SIMILARITIES = 1 << 30
"""Of pixels to instances, in a class: three seconds."""
PIXELS_AT_ONCE = 1 << 10


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    delta: float = 3 / (1 - MARGIN)
    """Inverse bandwidth of the kernel."""
    merge: float = 0.95
    """Similarity s from which on blurred pixels are of one instance."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {"delta": Range(2, 12, log=True), "merge": Range(0.7, 0.99)}


class RecurrentTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    pair: Tensor
    semantic: Tensor

    def total(self) -> Tensor:
        """Both with weight 1."""
        return self.pair + self.semantic


def channels(num_classes: int) -> tuple[int, int]:
    """An embedding of 64 dimensions, any length; background and classes."""
    return DIMENSIONS, 1 + num_classes


def blurred(vectors: Tensor, delta: float) -> Tensor:
    """One loop of mean-shift: vectors (D, S) of length 1 -> likewise."""
    kernel = (delta**2 * (vectors.T @ vectors - 1)).exp()  # (S, S)
    return unit(vectors @ (kernel / kernel.sum(0)))


def loss(maps: Tensor, targets: Sequence[Target]) -> RecurrentTerms:
    """Terms of maps (B, 64 + 1 + classes, H, W) and B truths."""
    return mean_terms(_image_terms(own, target) for own, target in images_of(maps, targets))


def _image_terms(maps: Tensor, target: Target) -> RecurrentTerms:
    truth = Truth.of(target)
    places, instance = evenly(truth.counts, SAMPLED)  # (S,) both
    vectors = unit(maps[:DIMENSIONS].flatten(1)[:, truth.pixels[places]])  # (D, S)
    sizes = truth.counts.clamp_max(SAMPLED)[instance]
    weight = 1 / (sizes * max(len(truth), 1)).to(maps.dtype)
    same = instance[:, None] == instance
    pair = 0 * maps[:DIMENSIONS].sum()
    for loop in range(LOOPS + 1):
        if loop:
            vectors = blurred(vectors, 3 / (1 - MARGIN))
        similarity = (1 + vectors.T @ vectors) / 2  # (S, S)
        wrong = torch.where(same, 1 - similarity, (similarity - MARGIN).relu())
        pair = pair + weight @ wrong @ weight / (LOOPS + 1)
    return RecurrentTerms(pair, semantic_term(maps[DIMENSIONS:], target))


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (64 + 1 + classes, H, W): blurring mean-shift within each class."""
    probabilities = class_probabilities(maps[DIMENSIONS:])
    points = maps[:DIMENSIONS].detach().float().cpu().flatten(1)  # (D, P)

    def assign(pixels: np.ndarray, _: int) -> np.ndarray:
        return modes(unit(points[:, pixels]), settings)

    labels = within_classes(probabilities, assign)
    return as_instances(labels, probabilities, settings.min_pixels)


def modes(vectors: Tensor, settings: Settings) -> np.ndarray:
    """Ids (P,) from 0 of vectors (D, P) of length 1."""
    places, _ = evenly(torch.tensor([vectors.shape[1]]), ANCHORS)
    anchors = moved = vectors[:, places]  # (D, S)
    for _ in range(LOOPS_AT_TEST):
        moved = blurred(moved, settings.delta)
    near = (1 + moved.T @ moved) / 2 > settings.merge
    near.fill_diagonal_(fill_value=True)
    count, of_anchor = connected_components(near.numpy(), directed=False)
    means = torch.zeros(len(vectors), count).index_add(
        1, torch.from_numpy(of_anchor).long(), anchors
    )
    fullest = np.argsort(-np.bincount(of_anchor), kind="stable")
    kept = np.sort(fullest[: max(1, MOST_SIMILARITIES // vectors.shape[1])])
    means = unit(means[:, kept])
    # In pieces that stay in the cache: N x P similarities at once would take 12 GB at 2 Mpx.
    found = torch.empty(vectors.shape[1], dtype=torch.int64)
    pieces = found.split(PIXELS_AT_ONCE), vectors.split(PIXELS_AT_ONCE, dim=1)
    for place, some in zip(*pieces, strict=True):
        torch.argmax(some.T @ means, 1, out=place)
    return found.numpy()
