"""The whole of an exported model: what stands around the network, as one module::

    image -> (x - mean) / std -> resize by scale -> network -> maps of the image's size

The same as ``normalization.normalize``, ``engine.resize`` and ``engine.map_back``, but for the
antialias filter where a side shrinks, which ONNX has not as torch has it (random seed maps came out
0.05 off in onnxruntime 1.31, and OpenVINO 2026.4 leaves the filter out). Two matrix products do
that, whose weights follow from the sizes::

    source pixel j -> target pixel i    w_ij = max(0, 1 - |j + 1/2 - (i + 1/2) r| / r)
    r = source side / target side >= 1  each row divided by its sum
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatialembed.inference.engine import map_back
from spatialembed.inference.engines.onnx import to_onnx
from spatialembed.types import Embeddings, Normalization

if TYPE_CHECKING:
    import onnx


class Framed(nn.Module):
    """Image (B, 3, H, W) to maps (B, ., H, W), around a network of normalised images.

    scale: as of ``ModelInfo``. It takes float32: RGB in [0, 1], or normalised already where the
    model normalises by percentiles, which stays outside.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization, scale: float) -> None:
        super().__init__()
        self.network = network
        self.fixed = normalization.kind == "fixed"
        self.scale = scale
        self.register_buffer("mean", torch.tensor(normalization.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(normalization.std).view(3, 1, 1))

    def forward(self, image: Tensor) -> Embeddings:
        x = (image - self.mean) / self.std if self.fixed else image
        if self.scale == 1:
            return self.network(x)
        size = image.shape[-2:]
        seen: list[Any] = [torch.sym_max(1, round(side * self.scale)) for side in size]
        maps = self.network(_resized(x, seen, shrinks=self.scale < 1))
        return map_back(maps, size, partial(_resized, shrinks=self.scale > 1))


def _resized(maps: Tensor, size: Sequence[int], *, shrinks: bool) -> Tensor:
    """Bilinear, (B, C, h, w) -> (B, C, *size), averaged where it shrinks."""
    if not shrinks:
        return F.interpolate(maps, list(size), mode="bilinear")
    rows, columns = (_weights(*sides) for sides in zip(maps.shape[-2:], size, strict=True))
    return rows @ maps @ columns.T


def _weights(source: int, target: int) -> Tensor:
    """Weights (target, source) of the antialias filter along an axis."""
    ratio = source / target
    distance = (torch.arange(source) + 0.5 - (torch.arange(target)[:, None] + 0.5) * ratio).abs()
    weights = F.relu(1 - distance / ratio)
    return weights / weights.sum(1, keepdim=True)


def framed(network: nn.Module, normalization: Normalization, scale: float) -> onnx.ModelProto:
    """The graph of ``Framed``: one input ``image``, and the fields of ``Embeddings``, float32."""
    model = to_onnx(Framed(network, normalization, scale).eval())
    for node in model.graph.node:
        for attribute in node.attribute:
            # pytorch_half_pixel, the exporter's, takes the first of the pixels that become one.
            if attribute.s == b"pytorch_half_pixel":
                attribute.s = b"half_pixel"
    return model


def outside(normalization: Normalization) -> Normalization:
    """The part of a normalisation that the caller of the exported file must do."""
    return normalization if normalization.kind == "percentile" else Normalization("none")
