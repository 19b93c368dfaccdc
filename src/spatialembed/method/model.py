"""The branched network: a shared encoder, a decoder for offsets and bandwidths, one for seeds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spatialembed.method.networks.erfnet import Decoder, Encoder, pad_to_stride
from spatialembed.types import Embeddings


class SpatialEmbeddingNet(nn.Module):
    """Branched ERFNet (Neven et al. 2019): image -> ``Embeddings``.

    At initialisation all offsets are 0 and every log-precision is 1 (margin 5.7 px): each pixel
    starts as its own centre, which is close enough to the truth for the loss to have a slope.

    Args:
        num_classes: C, one seed map each, 1 or more.
        elliptical: One bandwidth per axis (S = 2) instead of one (S = 1).

    Raises:
        ValueError: For fewer than one class.
    """

    def __init__(self, num_classes: int, elliptical: bool = True) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a network has at least one class")
        self.num_classes = num_classes
        self.elliptical = elliptical
        self.encoder = Encoder()
        self.decoders = nn.ModuleList((Decoder(4 if elliptical else 3), Decoder(num_classes)))
        self._initialise_bandwidth()

    @torch.no_grad()
    def _initialise_bandwidth(self) -> None:
        weight, bias = self._last_layer()
        nn.init.zeros_(weight)
        nn.init.zeros_(bias)
        bias[2:] = 1.0

    @torch.no_grad()
    def fix_bandwidth(self, log_precision: float) -> None:
        """Make the log-precision the same everywhere, whatever the image; in place."""
        weight, bias = self._last_layer()  # (16, 2 + S, 2, 2), (2 + S,)
        weight[:, 2:] = 0
        bias[2:] = log_precision

    def _last_layer(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the last layer for offsets and log-precisions."""
        output = self.decoders[0].get_submodule("output_conv")
        assert isinstance(output, nn.ConvTranspose2d)
        assert output.bias is not None
        return output.weight, output.bias

    def forward(self, images: Tensor) -> Embeddings:
        """images (B, 3, H, W) normalised, any H and W >= 1 -> Embeddings (B, ., H, W) float32."""
        height, width = images.shape[-2:]
        features = self.encoder(pad_to_stride(images))  # (B, 128, H/8, W/8)
        maps = self.decoders[0](features)[..., :height, :width]  # (B, 2 + S, H, W)
        seed = self.decoders[1](features)[..., :height, :width]  # (B, C, H, W)
        return Embeddings(torch.tanh(maps[:, :2]), maps[:, 2:], torch.sigmoid(seed))
