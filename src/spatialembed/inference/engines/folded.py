"""The network for inference: the same maps from fewer operations.

Batch-norm is a scale and a shift a channel once training is over, and both go into the convolution
before it::

    y = g (w * x + b) + s   =   (g w) * x + (g b + s)        g = weight / sqrt(variance + eps)
                                                             s = bias - g mean
    worked number           weight 2, variance 4 (eps 0), mean 3, bias 1: g = 1, s = -2
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatialembed.method.networks.erfnet import Decoder, Down, Encoder, Residual, Up, pad_to_stride
from spatialembed.types import Embeddings

Run = Callable[[Tensor], Embeddings]
"""What an engine makes of ``FoldedCore``: (B, 3, H, W) float32, sides multiples of 8, to maps."""
_Convolution = TypeVar("_Convolution", nn.Conv2d, nn.ConvTranspose2d)


class Branched(Protocol):
    """What is needed of a ``SpatialEmbeddingNet``."""

    encoder: Encoder
    decoders: nn.ModuleList  # of Decoder


class FoldedNet(nn.Module):
    """``SpatialEmbeddingNet`` with its batch-norm folded: images of any size -> ``Embeddings``.

    The weights are copies, rounded once to ``dtype``, of the network as it is now. The last layers
    and the activations stay in the precision of its own, float32, as do the maps.
    """

    def __init__(self, net: Branched, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.core = FoldedCore(net, dtype)

    def forward(self, images: Tensor) -> Embeddings:
        """images (B, 3, H, W) float32 normalised, any H and W >= 1 -> (B, ., H, W) float32."""
        height, width = images.shape[-2:]
        maps = self.core(pad_to_stride(images))
        return Embeddings(*(m[..., :height, :width] for m in maps))


class FoldedCore(nn.Module):
    """``FoldedNet`` for images whose sides are multiples of 8: nothing in it depends on the size.

    This is what is compiled and exported: with padding and cropping inside, each of the four cases
    (pad below, pad right, both, none) would be compiled for itself.
    """

    def __init__(self, net: Branched, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        encoder = (net.encoder.initial_block, *net.encoder.layers)
        self.encoder = nn.Sequential(*(_folded(block) for block in encoder)).to(dtype)
        self.decoders = nn.ModuleList(FoldedDecoder(d, dtype) for d in net.decoders)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Embeddings:
        """images (B, 3, H, W) float32, H and W multiples of 8 -> Embeddings (B, ., H, W)."""
        x = images.to(self.dtype, memory_format=torch.channels_last)
        features = self.encoder(x)  # (B, 128, H/8, W/8)
        maps, seed = (decoder(features) for decoder in self.decoders)  # (B, 2 + S, H, W), (B, C, ..
        # Copied first: a tanh over a slice of the channels is not vectorised, five times slower.
        offset = torch.tanh(maps[:, :2].contiguous())
        return Embeddings(offset, maps[:, 2:], torch.sigmoid(seed))


class FoldedDecoder(nn.Module):
    """(B, 128, H/8, W/8) -> (B, outputs, H, W) float32, without activation."""

    def __init__(self, decoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(decoder, Decoder)
        self.layers = nn.Sequential(*(_folded(block) for block in decoder.layers)).to(dtype)
        self.output_conv = _copy(decoder.output_conv)

    def forward(self, x: Tensor) -> Tensor:
        # float32 for the reason given in erfnet.Decoder.
        return self.output_conv(self.layers(x).to(self.output_conv.weight.dtype))


class FoldedDown(nn.Module):
    """erfnet.Down. Its batch-norm comes after the pool, where it stays: a negative scale in front
    of a maximum would make it a minimum."""

    def __init__(self, block: Down) -> None:
        super().__init__()
        gain, shift = _affine(block.bn)
        own = block.conv.out_channels
        self.conv = _copy(block.conv, gain[:own], shift[:own])
        self.gain = nn.Parameter(gain[own:, None, None])
        self.shift = nn.Parameter(shift[own:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 2) * self.gain + self.shift
        return F.relu(torch.cat((self.conv(x), pooled), dim=1))  # (B, outputs, H/2, W/2)


class FoldedResidual(nn.Module):
    """erfnet.Residual: four convolutions, each with its ReLU, the last one after adding x."""

    def __init__(self, block: Residual) -> None:
        super().__init__()
        self.conv3x1_1 = _copy(block.conv3x1_1)
        self.conv1x3_1 = _copy(block.conv1x3_1, *_affine(block.bn1))
        self.conv3x1_2 = _copy(block.conv3x1_2)
        self.conv1x3_2 = _copy(block.conv1x3_2, *_affine(block.bn2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in (self.conv3x1_1, self.conv1x3_1, self.conv3x1_2):
            y = F.relu(conv(y), inplace=True)
        return F.relu(self.conv1x3_2(y).add_(x), inplace=True)


class FoldedUp(nn.Module):
    """erfnet.Up."""

    def __init__(self, block: Up) -> None:
        super().__init__()
        self.conv = _copy(block.conv, *_affine(block.bn))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x), inplace=True)


def _folded(block: nn.Module) -> nn.Module:
    match block:
        case Down():
            return FoldedDown(block)
        case Residual():
            return FoldedResidual(block)
        case Up():
            return FoldedUp(block)
    raise TypeError(f"no folded form of {type(block).__name__}")


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Gain and shift (C,) of a batch-norm that no longer learns, float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return gain, norm.bias.detach().double() - gain * norm.running_mean.double()


@torch.no_grad()
def _copy(
    conv: _Convolution, gain: Tensor | None = None, shift: Tensor | None = None
) -> _Convolution:
    """A convolution with weights of its own, followed by gain and shift (outputs,) if given.

    Then it is float64, so that it is rounded only once.
    """
    copy = deepcopy(conv)
    if gain is None or shift is None:
        return copy
    copy = copy.double()
    assert copy.bias is not None
    outputs = (1, -1, 1, 1) if isinstance(copy, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    copy.weight.mul_(gain.view(outputs))
    copy.bias.mul_(gain).add_(shift)
    return copy
