"""Coordinates, embeddings, bandwidths: the arithmetic that loss, clustering and export share.

unit       1 unit = 1024 px on both axes; pixel (y, x) stands at (x / 1024, y / 1024)
embedding  e = x + o                       pixel 512 with offset -0.25 points at pixel 256
precision  p = exp(clamp(10 r, -40, 40))   1 / (2 sigma^2) in 1/unit^2
exponent   d = sum_axis p (e - C)^2        phi = exp(-d)
margin     sqrt(ln 2 / p)                  distance where phi = 0.5; r = 1 -> 5.7 px
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialembed.types import UNIT

LOG_SCALE = 10.0
"""The network's raw bandwidth output is a tenth of the log of the precision."""
LOG_LIMIT = 40.0
"""exp stays finite in float32 to 88; +-40 covers margins from 1e-6 px to 4e11 px."""


def _at_least_float32(tensor: Tensor) -> Tensor:
    """float32, or float64 where that came in: a bf16 grid has 641 distinct x values out of 2048."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def coordinates(height: int, width: int, like: Tensor) -> Tensor:
    """Positions (2, height, width) (x, y) of pixels in units, dtype and device as of ``like``."""
    y = torch.arange(height, dtype=like.dtype, device=like.device) / UNIT
    x = torch.arange(width, dtype=like.dtype, device=like.device) / UNIT
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)))


def embed(offset: Tensor) -> Tensor:
    """e = x + o in units: offset (..., 2, H, W) -> the same shape, float32 (float64 stays)."""
    offset = _at_least_float32(offset)
    return offset + coordinates(offset.shape[-2], offset.shape[-1], offset)


def precision(log_precision: Tensor) -> Tensor:
    """p = exp(clamp(10 r, -40, 40)) in 1/unit^2, float32 (float64 stays), elementwise."""
    scaled = LOG_SCALE * _at_least_float32(log_precision)
    return scaled.clamp(-LOG_LIMIT, LOG_LIMIT).exp()


def log_precision_of(margin: float) -> float:
    """The raw bandwidth r whose margin is this many px, > 0: the inverse of ``margin_px``."""
    return math.log(math.log(2) / (margin / UNIT) ** 2) / LOG_SCALE


def margin_px(log_precision: Tensor) -> Tensor:
    """Distance in px from the centre at which phi = 0.5, elementwise: sqrt(ln 2 / p)."""
    return UNIT * (math.log(2) / precision(log_precision)).sqrt()
