"""What microscopes, lamps and files do to a picture while its objects stay where they are.

All take a normalised crop (1 or 3, H, W) float32 and draw from ``rng`` only for what is switched
on, so that a setting of 0 leaves all other draws of a training as they are.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spatialembed.errors import missing_extra

GRID = 3
"""The light is uneven by a random value at each of 3 x 3 places, smooth between them."""
JPEG_QUALITY = (30, 95)
JPEG_RANGE = (-0.25, 1.5)
"""Normalised values that become 0 and 255 of the file."""
BLOCK_SIDE = (6, 32)
"""px of the blocks of a compressed blank field, as the network sees them."""
NOISE_ALONE = (0.02, 0.12)
"""Standard deviation of noise without objects: a stretch of 10 times the noise makes it 0.1."""


class Degradation(Protocol):
    """What is needed of ``AugmentOptions``."""

    @property
    def gamma(self) -> float: ...
    @property
    def objects(self) -> float: ...
    @property
    def uneven(self) -> float: ...
    @property
    def jpeg(self) -> float: ...


def before_camera(
    image: Tensor, labels: Tensor, how: Degradation, rng: np.random.Generator
) -> Tensor:
    """What happens before the camera: light of single objects, of places, and its response.

    labels: (H, W) int32, 0 background.
    """
    if how.objects:
        image = single_objects(image, labels, how.objects, rng)
    if how.uneven:
        image = uneven_light(image, how.uneven * rng.uniform(), rng)
    if how.gamma:
        power = (1 + how.gamma) ** rng.uniform(-1, 1)
        image = torch.where(image > 0, image.clamp_min(1e-6) ** power, image)
    return image


def after_camera(image: Tensor, how: Degradation, rng: np.random.Generator) -> Tensor:
    """What happens after the camera: compression."""
    if how.jpeg and rng.uniform() < how.jpeg:
        image = compressed(image, int(rng.integers(*JPEG_QUALITY, endpoint=True)))
    return image


def single_objects(image: Tensor, labels: Tensor, most: float, rng: np.random.Generator) -> Tensor:
    """Each object brighter or darker against the background's median, with soft outlines."""
    count = int(labels.max())
    ground = labels == 0
    if count == 0 or not ground.any():
        return image
    factors = np.ones(count + 1, np.float32)
    factors[1:] = 1 + most * rng.uniform(-1, 1, count)
    factor = torch.from_numpy(factors)[labels.long()]
    factor = F.avg_pool2d(factor[None], 3, stride=1, padding=1, count_include_pad=False)
    level = image[:, ground].median(dim=1).values[:, None, None]
    return level + (image - level) * factor


def uneven_light(image: Tensor, most: float, rng: np.random.Generator) -> Tensor:
    """The image times one smooth field about 1, plus half of another about 0."""
    fields = torch.from_numpy(rng.uniform(-1, 1, (1, 2, GRID, GRID)).astype(np.float32))
    times, plus = F.interpolate(fields, image.shape[-2:], mode="bicubic", align_corners=True)[0]
    return image * (1 + most * times) + most / 2 * plus


def compressed(image: Tensor, quality: int) -> Tensor:
    """The image as a JPEG of that quality, 1 to 100, gives it back."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
    except ImportError as error:
        raise missing_extra("torchvision", "train", "training") from error
    low, high = JPEG_RANGE
    levels = ((image - low) / (high - low) * 255).round().clamp(0, 255).byte()
    mode = ImageReadMode.GRAY if len(levels) == 1 else ImageReadMode.RGB
    levels = decode_jpeg(encode_jpeg(levels.contiguous(), quality), mode)
    return levels.float() / 255 * (high - low) + low


def noise_alone(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A blank field of the shape of ``image``: noise, maybe correlated, or what JPEG leaves of it.

    In a blank 8-bit JPEG blocks of 8 x 8 px differ by a level or two; enlarged they are larger.
    """
    height, width = image.shape[1:]
    kind = rng.integers(3)
    if kind == 2:
        side = int(rng.integers(*BLOCK_SIDE, endpoint=True))
        blocks = rng.integers(-1, 2, (height // side + 1, width // side + 1)).astype(np.float32)
        grains = torch.from_numpy(blocks.repeat(side, 0).repeat(side, 1)[:height, :width])[None]
    else:
        grains = torch.from_numpy(rng.standard_normal((height, width), dtype=np.float32))[None]
    if kind > 0:
        grains = F.avg_pool2d(grains, 3, stride=1, padding=1)
    low, high = NOISE_ALONE
    deviation = rng.uniform(low, high)
    field = rng.uniform(0, 0.5) + deviation * grains / grains.std().clamp_min(1e-6)
    return field.expand(image.shape).clone()
