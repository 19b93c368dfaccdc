"""Hinge with a fixed margin (Neven et al. 2019, eq. 2 to 4): the second start of that paper.

    hinge   1/K sum_k 1/N_k sum_i max(|e_i - C_k| - delta, 0)     C_k the centroid
    seed    squared distance of the seed map from exp(-|e_i - C_k|^2 ln 2 / delta^2), see the paper

The paper sums over pixels; here each instance counts the same. Pixels within the margin have no
slope. The loss is ``method.loss.hinge_loss``, the grouping ``method.cluster`` with one bandwidth
for all: it differs from ours by the learned bandwidth and the Lovasz hinge that learns it. The
published margin is not known; the loss has that at which ours starts, 5.7 px, smaller than most
objects, as the paper asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spatialembed.baselines.contract import Range
from spatialembed.method.cluster import cluster
from spatialembed.method.geometry import log_precision_of
from spatialembed.method.loss import hinge_loss
from spatialembed.options import ClusterOptions
from spatialembed.types import UNIT, Embeddings, Instances, Target

TITLE = "hinge with a fixed margin (Neven 2019, eq. 4)"
MARGIN_PX = 5.7
LENGTH_PX = 32.0
"""Length of an offset of 1, and the unit of the hinge term: so both are of order one at first."""


@dataclass(frozen=True)
class Settings:
    """Of the grouping, the last four as ``ClusterOptions`` has them."""

    margin_px: float = MARGIN_PX
    """Radius of an instance in the embedding."""
    foreground: float = 0.5
    start: float = 0.9
    min_free: float = 0.5
    min_pixels: int = 0


TUNED = {
    "margin_px": Range(3, 24, log=True),
    "foreground": Range(0.2, 0.7),
    "start": Range(0.4, 0.95),
    "min_free": Range(0.2, 0.8),
}


class HingeTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    hinge: Tensor
    seed: Tensor

    def total(self) -> Tensor:
        """Both with weight 1."""
        return self.hinge + self.seed


def channels(num_classes: int) -> tuple[int, int]:
    """Offset (x, y); a seed map for each class."""
    return 2, num_classes


def embeddings(maps: Tensor, margin_px: float) -> Embeddings:
    """Maps (B, 2 + classes, H, W), activated as those of ours, with one bandwidth for all."""
    raw = torch.full_like(maps[:, :1], log_precision_of(margin_px))
    offset = (maps[:, :2] * (LENGTH_PX / UNIT)).tanh()
    return Embeddings(offset, raw, maps[:, 2:].sigmoid())


def loss(maps: Tensor, targets: Sequence[Target], margin_px: float = MARGIN_PX) -> HingeTerms:
    """Terms of maps (B, 2 + classes, H, W) and B truths; the hinge in units of 32 px."""
    terms = hinge_loss(embeddings(maps, margin_px), targets, margin_px=margin_px)
    return HingeTerms(UNIT / LENGTH_PX * terms.instance, terms.seed)


def group(maps: Tensor, settings: Settings) -> Instances:
    """Instances of maps (2 + classes, H, W): pixels within the margin of a seed."""
    options = ClusterOptions(
        foreground=settings.foreground,
        start=settings.start,
        min_free=settings.min_free,
        min_pixels=settings.min_pixels,
    )
    return cluster(embeddings(maps[None], settings.margin_px), options)[0].numpy()
