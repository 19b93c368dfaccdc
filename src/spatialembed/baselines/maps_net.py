"""The network of all methods that predict maps: the encoder and decoders of ours, other outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spatialembed.method.model import parts_of
from spatialembed.method.networks.erfnet import pad_to_stride
from spatialembed.types import Network


class MapsNet(nn.Module):
    """images (B, 3, H, W) normalised -> maps (B, sum of the outputs, H, W) without activation.

    Args:
        outputs: Channels of each decoder, 1 or more.
        network: As of ``SpatialEmbeddingNet``, from which it differs in the last layers alone.
    """

    def __init__(self, outputs: Sequence[int], network: Network = "erfnet") -> None:
        super().__init__()
        parts = parts_of(network)
        self.stride = parts.stride
        self.encoder = parts.encoder()
        self.decoders = nn.ModuleList(map(parts.decoder, outputs))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        features = self.encoder(pad_to_stride(images, self.stride))
        return torch.cat([d(features)[..., :height, :width] for d in self.decoders], dim=1)
