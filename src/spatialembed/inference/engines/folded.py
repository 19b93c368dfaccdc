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
from spatialembed.method.networks.lite import ConvNorm, LiteDecoder
from spatialembed.types import Embeddings

Run = Callable[[Tensor], Embeddings]
"""What an engine makes of ``FoldedCore``: (B, 3, H, W) float32, sides multiples of its stride, to
maps."""
_Convolution = TypeVar("_Convolution", nn.Conv2d, nn.ConvTranspose2d)


class Branched(Protocol):
    """What is needed of a ``SpatialEmbeddingNet``."""

    stride: int
    encoder: nn.Module
    decoders: nn.ModuleList


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
        maps = self.core(pad_to_stride(images, self.core.stride))
        return Embeddings(*(m[..., :height, :width] for m in maps))


class FoldedCore(nn.Module):
    """``FoldedNet`` for sides that are multiples of ``stride``: nothing in it depends on the size.

    This is what is compiled and exported: with padding and cropping inside, each of the four cases
    (pad below, pad right, both, none) would be compiled for itself.
    """

    def __init__(self, net: Branched, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.stride = dtype, net.stride
        self.encoder = _encoder(net.encoder).to(dtype)
        self.decoders = nn.ModuleList(
            FoldedLite(d, dtype) if isinstance(d, LiteDecoder) else FoldedDecoder(d, dtype)
            for d in net.decoders
        )
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Embeddings:
        """images (B, 3, H, W) float32, sides multiples of the stride -> Embeddings (B, ., H, W)."""
        x = images.to(self.dtype, memory_format=torch.channels_last)
        features = self.encoder(x)
        maps, seed = (decoder(features) for decoder in self.decoders)  # (B, 2 + S, H, W), (B, C, ..
        # Copied first: a tanh over a slice of the channels is not vectorised, five times slower.
        offset = torch.tanh(maps[:, :2].contiguous())
        return Embeddings(offset, maps[:, 2:], torch.sigmoid(seed))


class FoldedDecoder(nn.Module):
    """What the encoder gives -> (B, outputs, H, W) float32, without activation."""

    def __init__(self, decoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(decoder, Decoder)
        self.layers = nn.Sequential(*map(_folded, decoder.layers)).to(dtype)
        self.output_conv = deepcopy(decoder.output_conv)

    def forward(self, x: Tensor) -> Tensor:
        # float32 for the reason given in erfnet.Decoder.
        return self.output_conv(self.layers(x).to(self.output_conv.weight.dtype))


class FoldedLite(nn.Module):
    """The same of a ``LiteDecoder``, whose last layer sees full resolution only in the detail.

    A 3x3 convolution of a map that was doubled by repeating pixels sees each pixel twice or once
    along an axis, so it is four convolutions of the map itself, one for each place in a 2x2 cell::

        even rows   w0 of the row above, w1 + w2 of the own one
        odd rows    w0 + w1 of the own row, w2 of the one below
    """

    def __init__(self, decoder: LiteDecoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder = _all_folded(decoder).to(dtype)
        last = decoder.output_conv
        del self.decoder.output_conv
        half, self.outputs = last.in_channels // 2, last.out_channels
        self.cells = nn.Conv2d(half, 4 * self.outputs, 3, padding=1)
        self.detail = nn.Conv2d(half, self.outputs, 3, padding=1, bias=False)
        with torch.no_grad():
            weight = last.weight  # (outputs, 16, 3, 3)
            self.cells.weight.copy_(_by_place(weight[:, :half]))
            assert last.bias is not None
            self.cells.bias.copy_(last.bias.repeat_interleave(4))  # type: ignore[union-attr]
            self.detail.weight.copy_(weight[:, half:])

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        # float32 for the reason given in erfnet.Decoder.
        float32 = self.cells.weight.dtype
        cells = self.cells(self.decoder.at_half(features).to(float32))  # (B, 4 outputs, H/2, W/2)
        return F.pixel_shuffle(cells, 2) + self.detail(features[0].to(float32))


def _by_place(weight: Tensor) -> Tensor:
    """(C, k, 3, 3) of a doubled map -> (4 C, k, 3, 3) of the map, places in rows of a 2x2 cell."""
    spread = weight.new_tensor(
        [[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]]
    )
    places = torch.einsum("iya,jxb,ckab->cijkyx", spread, spread, weight)
    return places.reshape(-1, *weight.shape[1:])


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


def _encoder(encoder: nn.Module) -> nn.Module:
    if isinstance(encoder, Encoder):
        return nn.Sequential(*map(_folded, (encoder.initial_block, *encoder.layers)))
    return _all_folded(encoder)


_Module = TypeVar("_Module", bound=nn.Module)


def _all_folded(module: _Module) -> _Module:
    """A copy in which each batch-norm of a ``ConvNorm`` has gone into its convolution."""
    module = deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, ConvNorm):
            layer.conv = _copy(layer.conv, *_affine(layer.bn))
            layer.bn = nn.Identity()  # type: ignore[assignment]
            if isinstance(layer.act, (nn.ReLU, nn.ReLU6)):
                layer.act.inplace = True
    return module


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
    if copy.bias is None:
        copy.bias = nn.Parameter(torch.zeros(copy.out_channels, dtype=torch.float64))
    outputs = (1, -1, 1, 1) if isinstance(copy, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    copy.weight.mul_(gain.view(outputs))
    copy.bias.mul_(gain).add_(shift)
    return copy
