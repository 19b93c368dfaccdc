"""ERFNet (Romera et al., IEEE T-ITS 2018): factorised residual encoder and decoder.

Attribute names are those of the released car checkpoint, so that its weights load by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_NORM_EPS = 1e-3
STRIDE = 8
"""Down-sampling of the encoder: image sides are multiples of it inside the network."""
REACH_PX = 622
"""Farthest pixel, along an axis, that an output pixel depends on, read off the gradient by a test.

At most, since it depends on where strides and cells fall::

    down 1, 2, 3          1 + 2 + 4                              at strides 1, 2, 4
    5 residuals           5 * 4 * (1 + 1)                        at stride 4
    8 residuals           2 * 8 * ((1 + 2) + (1 + 4) + (1 + 8) + (1 + 16))   at stride 8
    up, 2 residuals       8 + 2 * 4 * (1 + 1)                    at strides 8 and 4
    up, 2 residuals       4 + 2 * 2 * (1 + 1)                    at strides 4 and 2, 627 in all
"""


class Down(nn.Module):
    """Halve the resolution: concat(3x3 convolution of stride 2, 2x2 max-pool), batch-norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs - inputs, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.conv(x), F.max_pool2d(x, 2)), dim=1)  # (B, outputs, H/2, W/2)
        return F.relu(self.bn(x))


class Residual(nn.Module):
    """Two factorised 3x3 convolutions, the second one dilated, added to the input.

    x -> 3x1 -> ReLU -> 1x3 -> BN -> ReLU
      -> 3x1 dilated -> ReLU -> 1x3 dilated -> BN -> dropout -> + x -> ReLU
    """

    def __init__(self, channels: int, dropout: float = 0.0, dilation: int = 1) -> None:
        super().__init__()
        d = dilation
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d))
        self.bn2 = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        # Whole channels: neighbouring pixels are nearly equal, so dropping single ones does little.
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv3x1_1(x))
        y = F.relu(self.bn1(self.conv1x3_1(y)))
        y = F.relu(self.conv3x1_2(y))
        y = self.dropout(self.bn2(self.conv1x3_2(y)))
        return F.relu(y + x)


class Up(nn.Module):
    """Double the resolution: 3x3 transposed convolution of stride 2, batch-norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, 128, H/8, W/8), H and W multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        dilations = (2, 4, 8, 16)
        self.initial_block = Down(3, 16)
        self.layers = nn.Sequential(
            Down(16, 64),
            *(Residual(64, dropout=0.03) for _ in range(5)),
            Down(64, 128),
            *(Residual(128, dropout=0.3, dilation=d) for d in (*dilations, *dilations)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.initial_block(x)  # (B, 16, H/2, W/2)
        return self.layers(x)  # (B, 128, H/8, W/8)


class Decoder(nn.Module):
    """(B, 128, H/8, W/8) -> (B, outputs, H, W), without activation, float32."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Up(128, 64), Residual(64), Residual(64), Up(64, 16), Residual(16), Residual(16)
        )
        self.output_conv = nn.ConvTranspose2d(16, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)  # (B, 16, H/2, W/2)
        # bfloat16 has 8 significant bits: an offset of 200 px would move in steps of one pixel.
        with torch.autocast(x.device.type, enabled=False):
            return self.output_conv(x.to(self.output_conv.weight.dtype))


def pad_to_stride(images: Tensor, stride: int = STRIDE) -> Tensor:
    """Repeat the last row and column of (B, 3, H, W) until both sides are multiples of ``stride``.

    The maps are cropped again before anything is clustered, so the padding never makes an instance.
    """
    height, width = images.shape[-2:]
    bottom, right = -height % stride, -width % stride
    if bottom == right == 0:
        return images
    return F.pad(images, (0, right, 0, bottom), mode="replicate")
