"""This package's own method (Neven et al. 2019), in the form of the others: see ``method``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spatialembed.baselines.contract import Range
from spatialembed.method.cluster import cluster
from spatialembed.method.loss import LossTerms, spatial_embedding_loss
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.options import ClusterOptions
from spatialembed.types import Embeddings, Instances, Network, Target

TITLE = "spatial embeddings (Neven 2019, ours)"


@dataclass(frozen=True)
class Settings:
    """Of the grouping, as ``ClusterOptions`` has them."""

    foreground: float = 0.5
    start: float = 0.9
    membership: float = 0.5
    min_free: float = 0.5
    min_pixels: int = 0


TUNED = {
    "foreground": Range(0.2, 0.7),
    "start": Range(0.4, 0.95),
    "membership": Range(0.3, 0.7),
    "min_free": Range(0.2, 0.8),
}


def channels(num_classes: int) -> tuple[int, int]:
    """Offset and log-precision, both (x, y); a seed map for each class."""
    return 4, num_classes


class ActivatedMaps(nn.Module):
    """``SpatialEmbeddingNet`` with its maps, activated, in one tensor."""

    def __init__(self, num_classes: int, name: Network) -> None:
        super().__init__()
        self.net = SpatialEmbeddingNet(num_classes, network=name)
        self.encoder, self.stride = self.net.encoder, self.net.stride

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.net(images), dim=1)


def network(num_classes: int, name: Network) -> nn.Module:
    """The network of ``MapsNet`` with the start of ours: each pixel is its own centre."""
    return ActivatedMaps(num_classes, name)


def embeddings(maps: Tensor) -> Embeddings:
    """Maps (B, 4 + classes, H, W), activated, by their names."""
    return Embeddings(maps[:, :2], maps[:, 2:4], maps[:, 4:])


def loss(maps: Tensor, targets: Sequence[Target]) -> LossTerms:
    """As ``spatial_embedding_loss``, with the centre that ``spatialembed train`` has."""
    return spatial_embedding_loss(embeddings(maps), targets, center="learnable")


def group(maps: Tensor, settings: Settings) -> Instances:
    """As ``method.cluster``."""
    options = replace(ClusterOptions(), **vars(settings))
    return cluster(embeddings(maps[None]), options)[0].numpy()
