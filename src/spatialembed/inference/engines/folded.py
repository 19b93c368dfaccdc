"""The network for inference: the same maps from fewer operations.

Batch-norm is a scale and a shift a channel once training is over, and both go into the convolution
before it::

    y = g (w * x + b) + s   =   (g w) * x + (g b + s)        g = weight / sqrt(variance + eps)
                                                             s = bias - g mean
    worked number           weight 2, variance 4 (eps 0), mean 3, bias 1: g = 1, s = -2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.networks.erfnet import Down, Encoder, Residual, Up, pad_to_stride
from spatialembed.method.networks.lite import DETAIL, ConvNorm, InvertedResidual, LiteDecoder
from spatialembed.types import Embeddings

Run = Callable[[Tensor], Embeddings]
"""What an engine makes of ``FoldedCore``: (B, 3, H, W) float32, sides multiples of its stride, to
maps."""
BAND_BYTES = 1 << 22
"""Of the widest map of a block at a time: less than the cache that a core has."""
_Convolution = TypeVar("_Convolution", nn.Conv2d, nn.ConvTranspose2d)


class FoldedNet(nn.Module):
    """``SpatialEmbeddingNet`` with its batch-norm folded: images of any size -> ``Embeddings``.

    The weights are copies, rounded once to ``dtype``, of the network as it is now. The last layers
    and the activations stay in the precision of its own, float32, as do the maps.
    """

    def __init__(self, net: SpatialEmbeddingNet, dtype: torch.dtype = torch.float32) -> None:
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

    def __init__(self, net: SpatialEmbeddingNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.stride = dtype, net.stride
        if isinstance(net.encoder, Encoder):
            blocks = (net.encoder.initial_block, *net.encoder.layers)
            self.encoder: nn.Module = nn.Sequential(*map(_folded, blocks)).to(dtype)
            self.decoders: nn.Module = FoldedDecoders(net.decoders, dtype)
        else:
            self.encoder = _all_folded(net.encoder).to(dtype)
            self.decoders = FoldedLiteDecoders(net.decoders, dtype)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Embeddings:
        """images (B, 3, H, W) float32, sides multiples of the stride -> Embeddings (B, ., H, W)."""
        x = images.to(self.dtype, memory_format=torch.channels_last)
        maps, seed = self.decoders(self.encoder(x))  # (B, 2 + S, H, W), (B, C, H, W)
        # Copied first: a tanh over a slice of the channels is not vectorised, five times slower.
        offset = torch.tanh(maps[:, :2].contiguous())
        return Embeddings(offset, maps[:, 2:], torch.sigmoid(seed))


class FoldedDecoders(nn.Module):
    """erfnet.Decoder, both: what the encoder gives -> (B, outputs, H, W) each, float32."""

    def __init__(self, decoders: nn.ModuleList, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(*map(_folded, d.get_submodule("layers").children())).to(dtype)
            for d in decoders
        )
        self.last = nn.ModuleList(deepcopy(d.get_submodule("output_conv")) for d in decoders)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # float32 for the reason given in erfnet.Decoder.
        pairs = zip(self.layers, self.last, strict=True)
        return tuple(last(layers(x).to(last.weight.dtype)) for layers, last in pairs)


class FoldedLiteDecoders(nn.Module):
    """lite.LiteDecoder, both; what they do alike at full resolution is done once.

    Nothing is doubled and nothing joined: a convolution of joined maps is the sum of their own
    convolutions, and one of a map whose pixels were doubled is a transposed one of the map itself,
    of 4 / 9 of the operations. ``w`` 3 numbers along an axis, ``k`` 4 of the transposed one, whose
    row k of cell m comes to lie at row 2 m + k - 1::

        even rows   w0 of the row above, w1 + w2 of the own one       k3 = w0, k1 = w1 + w2
        odd rows    w0 + w1 of the own row, w2 of the one below       k2 = w0 + w1, k0 = w2
    """

    def __init__(self, decoders: nn.ModuleList, dtype: torch.dtype) -> None:
        super().__init__()
        self.halves = nn.ModuleList(FoldedLiteHalf(d, dtype) for d in decoders)  # type: ignore[arg-type]
        lasts: list[Any] = [decoder.output_conv for decoder in decoders]
        self.outputs = [last.out_channels for last in lasts]
        self.grow, self.detail = _parted(_side_by_side(lasts), 2 * DETAIL)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # float32 for the reason given in erfnet.Decoder.
        float32 = self.detail.weight.dtype
        halves = torch.cat([half(features) for half in self.halves], dim=1)  # (B, 16, H/2, W/2)
        maps = self.grow(halves.to(float32)) + self.detail(features[0].to(float32))
        return maps.split(self.outputs, dim=1)


class FoldedLiteHalf(nn.Module):
    """``LiteDecoder.at_half``."""

    def __init__(self, decoder: LiteDecoder, dtype: torch.dtype) -> None:
        super().__init__()
        folded = _all_folded(decoder)
        self.narrow, self.more, self.last = folded.narrow, folded.more, folded.last
        pairs: Any = zip(folded.joined, folded.narrow, strict=True)
        parts = [_parted(joined.conv, narrow.conv.out_channels) for joined, narrow in pairs]
        self.grow = nn.ModuleList(grow for grow, _ in parts)
        self.skip = nn.ModuleList(skip for _, skip in parts)
        self.to(dtype)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """The maps of the encoder -> (B, 8, H/2, W/2)."""
        *skips, x = features
        for i, skip in enumerate(reversed(skips[1:])):
            x = self.grow[i](self.narrow[i](x))  # (B, 64, H/8, W/8), (B, 40, H/4, W/4) ...
            x = F.relu(x.add_(self.skip[i](skip)), inplace=True)
            if i < len(self.more):
                x = self.more[i](x)
        return self.last(x)


def _side_by_side(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """Last layers (., 8 + 8, 3, 3), each of maps of its own and of the detail, as one of all."""
    weights, biases = ([getattr(c, name).detach() for c in convs] for name in ("weight", "bias"))
    joint = nn.Conv2d(3 * DETAIL, sum(map(len, biases)), 3, padding=1)
    own = torch.block_diag(*(w[:, :DETAIL].flatten(1) for w in weights)).unflatten(1, (-1, 3, 3))
    shared = torch.cat([w[:, DETAIL:] for w in weights])
    joint.weight = nn.Parameter(torch.cat((own, shared), dim=1))
    joint.bias = nn.Parameter(torch.cat(biases))
    return joint


def _parted(conv: nn.Conv2d, doubled: int) -> tuple[nn.ConvTranspose2d, nn.Conv2d]:
    """A 3x3 convolution of joined maps, the first ``doubled`` channels of which were doubled.

    As two, whose sum it is: of the map that was not yet doubled, with the bias, and of the rest.
    """
    weight = conv.weight.detach()  # (outputs, inputs, 3, 3)
    outputs, inputs = weight.shape[:2]
    grow = nn.ConvTranspose2d(doubled, outputs, 4, stride=2, padding=1)
    rest = nn.Conv2d(inputs - doubled, outputs, 3, padding=1, bias=False)
    spread = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    grown = torch.einsum("ya,xb,ckab->kcyx", spread, spread, weight[:, :doubled])
    grow.weight, grow.bias = nn.Parameter(grown), conv.bias
    rest.weight = nn.Parameter(weight[:, doubled:].clone())
    return grow, rest


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
        self.layers = nn.Sequential(
            _copy(block.conv3x1_1),
            nn.ReLU(inplace=True),
            _copy(block.conv1x3_1, *_affine(block.bn1)),
            nn.ReLU(inplace=True),
            _copy(block.conv3x1_2),
            nn.ReLU(inplace=True),
            _copy(block.conv1x3_2, *_affine(block.bn2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x).add_(x), inplace=True)


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


class InBands(nn.Module):
    """A block of lite in bands of rows, so that its widest map stays in the processor's cache.

    The same result to the last bit; of 2 megapixels in half the time.
    """

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.block = block
        conv = block.depthwise.conv
        self.stride = conv.stride[0]
        self.halo = -(-(conv.kernel_size[0] // 2) // self.stride) * self.stride
        self.bytes = conv.out_channels * conv.weight.itemsize  # of a pixel of the widest map

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        rows = max(8, BAND_BYTES // (batch * width * self.bytes)) // self.stride * self.stride
        if height <= 2 * rows:
            return self.block(x)
        bands = []
        for top in range(0, height, rows):
            first = max(0, top - self.halo)
            band = self.block(x[:, :, first : top + rows + self.halo])
            kept = (top - first) // self.stride
            bands.append(band[:, :, kept : kept + rows // self.stride])
        return torch.cat(bands, dim=2)


def for_torch_on_cpu(core: FoldedCore) -> FoldedCore:
    """Suit ``core`` to torch itself on the CPU, in place; compilers and runtimes do it better."""
    for name, layer in list(core.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            # For one image on one thread torch takes a slow way of its own, not oneDNN, unless the
            # kernel is dilated, which means nothing for one of 1x1.
            layer.dilation = (2, 2)
        if isinstance(layer, InvertedResidual):
            core.set_submodule(name, InBands(layer))
    return core


def _folded(block: nn.Module) -> nn.Module:
    match block:
        case Down():
            return FoldedDown(block)
        case Residual():
            return FoldedResidual(block)
        case Up():
            return nn.Sequential(_copy(block.conv, *_affine(block.bn)), nn.ReLU(inplace=True))
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
