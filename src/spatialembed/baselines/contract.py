"""What a method of this wing gives, and the few lines that many of them share.

A method is a module. One whose network gives maps has the parts of ``PixelMethod``: three pure
functions, its settings, and the ranges in which these are tuned. One that brings a network of its
own, torchvision's detectors say, has those of ``NetworkMethod``. Both can be told apart by
``channels``, and ``benchmarks/compare.py`` trains, tunes, times and scores both in the same way.

    images --MapsNet--> maps (B, C, H, W) --loss(maps, targets)--> named terms, .total()
                        maps (C, H, W)    --group(maps, settings)--> Instances

The classes of most methods are a softmax over background and classes, as the semantic masks that
those papers take from elsewhere: ``semantic_term``, ``class_probabilities``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatialembed.types import Instances, Network, Target

IGNORED = -1
"""Class of pixels without truth in ``class_map``."""
MOST_ROUNDS = 2000
"""Groups of a class at most: maps of an untrained network would give one for every pixel."""
SHORTEST = 1e-6
"""Length below which a vector has no direction."""
MOST_PIXELS = 1 << 16
"""Pixels that a slow search looks at, at even steps; all others are then assigned at once. Images
of 256 px a side are searched whole; of 2 megapixels about every thirtieth pixel is looked at."""


class Range(NamedTuple):
    """Where a setting is tuned; drawn evenly, or evenly in its logarithm, as a float."""

    low: float
    high: float
    log: bool = False


class Terms(Protocol):
    """A NamedTuple of unweighted scalars, each a mean over the batch.

    Each image is reduced by itself first, so that all images count the same, and one without
    instances counts with 0 in the terms of instances.
    """

    def total(self) -> Tensor:
        """Their sum with the weights of the paper."""


class PixelMethod(Protocol):
    """A module whose network is ``MapsNet``; it may give another by ``network``."""

    TITLE: str
    """For tables: name, first author, year."""
    TUNED: Mapping[str, Range]
    """Fields of Settings, each with its range; the default of the field lies in it."""
    Settings: Callable[..., Any]
    """Frozen dataclass of what grouping needs; one field is ``min_pixels``, an int: a smaller
    instance is dropped."""

    def channels(self, num_classes: int) -> tuple[int, int]:
        """Outputs of the two decoders, one at least each; their maps are joined in this order."""

    def loss(self, maps: Tensor, targets: Sequence[Target]) -> Terms:
        """maps (B, C, H, W) without activation, and B truths -> terms.

        Ignored pixels enter no term. An image without instances gives terms that are finite and
        attached to the graph.
        """

    def group(self, maps: Tensor, settings: Any) -> Instances:
        """maps (C, H, W) of one image, without activation -> instances, numpy arrays."""


class NetworkMethod(Protocol):
    """A module with a network of its own, say one of torchvision's detectors."""

    TITLE: str
    TUNED: Mapping[str, Range]
    Settings: Callable[..., Any]

    def network(self, num_classes: int, name: Network) -> nn.Module:
        """With random weights; ``name`` may be without meaning for it."""

    def loss(self, net: nn.Module, images: Tensor, targets: Sequence[Target]) -> Terms:
        """The loss in training mode; images (B, 3, H, W) normalised."""

    def predict(self, net: nn.Module, images: Tensor) -> list[Any]:
        """What ``group`` takes, of each image; in evaluation mode."""

    def group(self, found: Any, settings: Any) -> Instances:
        """What was predicted of one image -> instances, numpy arrays; each pixel has one owner."""


# ---------------------------------------------------------------- for losses


T = TypeVar("T", bound=tuple)


def images_of(maps: Tensor, targets: Sequence[Target]) -> Iterator[tuple[Tensor, Target]]:
    """maps (C, H, W) of each image, float32 (float64 stays), with its truth."""
    if len(maps) != len(targets):
        raise ValueError(f"{len(maps)} images in the maps, {len(targets)} targets")
    return zip(maps if maps.dtype == torch.float64 else maps.float(), targets, strict=True)


def mean_terms(terms: Iterable[T]) -> T:
    """Mean over images of NamedTuples of scalars."""
    every = list(terms)
    return type(every[0])(*(torch.stack(values).mean() for values in zip(*every, strict=True)))


def class_map(target: Target) -> Tensor:
    """(H, W) int64: 0 background, 1 + c of an instance of class c, ``IGNORED`` without truth."""
    table = torch.cat((target.classes.new_zeros(1), target.classes + 1))
    return table[target.labels.long()].masked_fill(target.ignore, IGNORED)


def semantic_term(logits: Tensor, target: Target) -> Tensor:
    """Cross entropy, mean over the valid pixels of an image; logits (1 + classes, H, W).

    0, attached to the graph, where no pixel is valid.
    """
    truth = class_map(target)[None]
    total = F.cross_entropy(logits[None], truth, ignore_index=IGNORED, reduction="sum")
    return total / (truth != IGNORED).sum().clamp_min(1)


def evenly(counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most ``most`` elements of each of K runs, at even steps: a sample that has no seed.

    counts: (K,) int64 lengths of runs that follow each other. Returns places (S,) among all
    elements, ascending, and the run (S,) of each.
    """
    taken = counts.clamp_max(most)
    run = torch.arange(len(counts), device=counts.device).repeat_interleave(taken)  # (S,)
    rank = torch.arange(len(run), device=counts.device) - (taken.cumsum(0) - taken)[run]
    start = (counts.cumsum(0) - counts)[run]
    return start + rank * counts[run] // taken[run], run


def norm(vectors: Tensor, at_least: float = 0.0) -> Tensor:
    """Euclidean length (N,) of vectors (D, N), or ``at_least``; no slope where it is not longer."""
    floor = max(at_least**2, torch.finfo(vectors.dtype).tiny)
    return vectors.square().sum(0).clamp_min(floor).sqrt()


def unit(vectors: Tensor) -> Tensor:
    """Vectors (D, N) of length 1; those shorter than ``SHORTEST`` become 0, without slope.

    Not ``F.normalize``: the slope of that at 0 is 10^12.
    """
    length = norm(vectors)
    known = length >= SHORTEST
    return vectors.where(known, 0) / length.where(known, 1)


# ---------------------------------------------------------------- for groupings


def class_probabilities(logits: Tensor) -> np.ndarray:
    """Softmax (1 + classes, H, W) float32 of the logits of background and classes."""
    return logits.detach().float().softmax(0).cpu().numpy()


def bins_of(whole: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equal rows of (P, D) int64: the first (N,) of each kind, the kind (P,) and the counts (N,).

    A random sum of its numbers stands for a row: rows are slow to sort, 8 s at 2 Mpx.
    """
    keys = whole @ np.random.default_rng(0).integers(1 << 62, size=whole.shape[1])
    _, first, kind, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    return first, kind.ravel(), counts


def within_classes(
    probabilities: np.ndarray, assign: Callable[[np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """Labels (H, W) int32, each class grouped by itself; a pixel is of its likeliest class.

    probabilities: (1 + classes, H, W). assign: linear indices (P,) of the pixels of a class, and
    that class -> ids (P,), from 0 without gaps; -1 is in no instance.
    """
    likeliest = probabilities.argmax(0).ravel()
    labels, count = np.zeros(likeliest.size, np.int32), 0
    for c in range(len(probabilities) - 1):
        pixels = np.flatnonzero(likeliest == c + 1)
        if not len(pixels):
            continue
        ids = assign(pixels, c)
        labels[pixels] = np.where(ids >= 0, ids + 1 + count, 0)
        count += int(ids.max()) + 1
    return labels.reshape(probabilities.shape[1:])


def as_instances(labels: np.ndarray, probabilities: np.ndarray, min_pixels: int) -> Instances:
    """Instances of a label image, with the class that is likeliest on the mean of their pixels.

    Args:
        labels: (H, W) int, 0 background, any ids above it.
        probabilities: (1 + classes, H, W), background first.
        min_pixels: Smaller instances are dropped.

    Returns:
        By descending score, which is the mean probability of the class; numpy arrays.
    """
    ids, flat = np.unique(labels, return_inverse=True)
    flat = flat.ravel()
    areas = np.bincount(flat, minlength=len(ids))
    means = np.stack([np.bincount(flat, p.ravel(), len(ids)) for p in probabilities[1:]]) / areas
    classes, scores = means.argmax(0), means.max(0)  # (N,) of each id, background too
    kept = np.flatnonzero((ids > 0) & (areas >= max(min_pixels, 1)))
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    number = np.zeros(len(ids), np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    return Instances(
        number[flat].reshape(labels.shape),
        scores[kept].astype(np.float32),
        classes[kept].astype(np.int64),
        tuple(f"class {c}" for c in range(len(means))),
    )
