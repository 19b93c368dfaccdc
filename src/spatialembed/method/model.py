"""The branched network: a shared encoder, a decoder for offsets and bandwidths, one for seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spatialembed.errors import check
from spatialembed.method.networks import erfnet, lite, timm_encoder
from spatialembed.method.networks.erfnet import pad_to_stride
from spatialembed.types import Embeddings, Network, is_network


class Parts(NamedTuple):
    """What a network is made of, and what must be known of it wherever images are cut."""

    encoder: Callable[[], nn.Module]
    decoder: Callable[[int], nn.Module]  # by its outputs; its last layer is ``output_conv``
    stride: int  # px of a cell of its coarsest maps; sides are padded to multiples of it
    reach: float  # px, farthest pixel along an axis that an output pixel depends on

    @property
    def exact_context(self) -> float:
        """px around a tile from which on it changes nothing: 224 of a reach of 211, cells of 16."""
        return self.stride * (self.reach // self.stride + 1)


NETWORKS = {
    "erfnet": Parts(erfnet.Encoder, erfnet.Decoder, erfnet.STRIDE, erfnet.REACH_PX),
    "lite": Parts(lite.LiteEncoder, lite.LiteDecoder, lite.STRIDE, lite.REACH_PX),
}


@cache
def parts_of(network: Network) -> Parts:
    """What a network is made of, by its name.

    The reach of an encoder of timm is infinite: attention and means over the image see all of it.

    Raises SpatialEmbedError (exit 2): ``bad_setting`` for another name, or one that timm does not
    know; ``missing_extra``.
    """
    if network in NETWORKS:
        return NETWORKS[network]
    check(is_network(network), f"network is {network!r}", "give erfnet, lite or timm:NAME")
    with torch.random.fork_rng(devices=[]):  # asked for its strides, once, whatever the seed
        encoder = timm_encoder.TimmEncoder(network)
    decoder = partial(lite.LiteDecoder, channels=encoder.channels)
    return Parts(partial(timm_encoder.TimmEncoder, network), decoder, encoder.stride, math.inf)


class SpatialEmbeddingNet(nn.Module):
    """An encoder and two decoders (Neven et al. 2019): image -> ``Embeddings``.

    At initialisation all offsets are 0 and every log-precision is 1 (margin 5.7 px): each pixel
    starts as its own centre, which is close enough to the truth for the loss to have a slope.

    Args:
        num_classes: C, one seed map each, 1 or more.
        elliptical: One bandwidth per axis (S = 2) instead of one (S = 1).
        network: "erfnet", the branched ERFNet of the paper; "lite", a lighter one; or "timm:NAME",
            an encoder of timm (extra ``timm``).

    Attribute ``stride``, in px of the network's input, is that of ``Parts``.

    Raises:
        ValueError: For fewer than one class.
        SpatialEmbedError: Those of ``parts_of``.
    """

    def __init__(
        self, num_classes: int, elliptical: bool = True, network: Network = "erfnet"
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a network has at least one class")
        self.num_classes = num_classes
        self.elliptical = elliptical
        self.network = network
        parts = parts_of(network)
        self.stride = parts.stride
        self.encoder = parts.encoder()
        outputs = (4 if elliptical else 3, num_classes)
        self.decoders = nn.ModuleList(map(parts.decoder, outputs))
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
        weight, bias = self._last_layer()  # (2 + S, 16, ., .), (2 + S,)
        weight[2:] = 0
        bias[2:] = log_precision

    def _last_layer(self) -> tuple[Tensor, Tensor]:
        """Weight, outputs first, and bias of the last layer for offsets and log-precisions."""
        output = self.decoders[0].get_submodule("output_conv")
        assert isinstance(output, (nn.Conv2d, nn.ConvTranspose2d))
        assert output.bias is not None
        transposed = isinstance(output, nn.ConvTranspose2d)  # its inputs come first
        return output.weight.transpose(0, 1) if transposed else output.weight, output.bias

    def forward(self, images: Tensor) -> Embeddings:
        """images (B, 3, H, W) normalised, any H and W >= 1 -> Embeddings (B, ., H, W) float32."""
        height, width = images.shape[-2:]
        features = self.encoder(pad_to_stride(images, self.stride))
        maps = self.decoders[0](features)[..., :height, :width]  # (B, 2 + S, H, W)
        seed = self.decoders[1](features)[..., :height, :width]  # (B, C, H, W)
        return Embeddings(torch.tanh(maps[:, :2]), maps[:, 2:], torch.sigmoid(seed))
