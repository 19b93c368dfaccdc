"""Random changes of a training crop: turns, and what microscopes, lamps and files do to a picture.

All take a normalised crop (1 or 3, H, W) float32. The degradations draw from ``rng`` only for what
is switched on, so that a setting of 0 leaves all other draws of a training as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spatialembed.errors import check, missing_extra

GRID = 3
"""The light is uneven by a random value at each of 3 x 3 places, smooth between them."""
JPEG_QUALITY = (30, 95)
JPEG_RANGE = (-0.25, 1.5)
"""Normalised values that become 0 and 255 of the file."""
BLOCK_SIDE = (6, 32)
"""px of the blocks of a compressed blank field, as the network sees them."""
NOISE_ALONE = (0.02, 0.12)
"""Standard deviation of noise without objects: a stretch of 10 times the noise makes it 0.1."""


@dataclass(frozen=True)
class AugmentOptions:
    """Random changes of a training crop."""

    object_centred: float = 0.5
    """Share of crops around a random object (Neven et al.: all); the others fall anywhere."""
    zoom: tuple[float, float] = (0.8, 1.25)
    """Range of the random magnification of a crop, log-uniform."""
    flip: bool = True
    """Mirror left and right."""
    rotate: bool = True
    """Mirror up and down and turn by 90 degrees too; right for microscopy, wrong for streets."""
    brightness: float = 0.1
    """Largest random shift of the normalised values."""
    contrast: float = 0.25
    """Largest random relative change of contrast."""
    noise: float = 0.05
    """Largest standard deviation of added Gaussian noise, in normalised values."""
    blur: float = 1.0
    """Largest standard deviation of a random Gaussian blur, in px; half of the crops stay sharp."""
    gamma: float = 0.0
    """Values are raised to a random power from 1 / (1 + gamma) to 1 + gamma."""
    objects: float = 0.0
    """Largest random relative change of how far a single object stands out."""
    uneven: float = 0.0
    """Largest random relative change of the light from one place of the crop to another."""
    jpeg: float = 0.0
    """Share of crops that are compressed as JPEG, of quality 30 to 95."""
    blank: float = 0.0
    """Share of crops that show noise and no object."""

    def __post_init__(self) -> None:
        in_order = 0 < self.zoom[0] <= self.zoom[1]
        check(in_order, f"zoom is {self.zoom}", "give 0 < smallest <= largest")
        for name in ("object_centred", "gamma", "objects", "uneven", "jpeg", "blank"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name} is {value}", "give 0 to 1")


def augmented(
    image: Tensor, labels: Tensor, ignore: Tensor, how: AugmentOptions, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A crop with its labels (H, W) int32 and pixels without truth (H, W) bool, changed at random.

    The crop is square. One in ``how.blank`` becomes a field of noise without objects.
    """
    image, labels, ignore = _turned((image, labels, ignore), how, rng)
    if how.blank and rng.uniform() < how.blank:
        image, labels = noise_alone(image, rng), torch.zeros_like(labels)
        ignore = torch.zeros_like(ignore)
    image = before_camera(image, labels, how, rng)
    image = _photometric(image, how, rng)
    return after_camera(image, how, rng), labels, ignore


def _turned(
    tensors: tuple[Tensor, ...], how: AugmentOptions, rng: np.random.Generator
) -> list[Tensor]:
    """The same random one of the allowed mirrors and quarter turns of each square tensor."""
    mirror, up_down, quarters = rng.integers(0, (2, 2, 4))
    result = []
    for tensor in tensors:
        turned = tensor.flip(-1) if how.flip and mirror else tensor
        if how.rotate:
            turned = turned.flip(-2) if up_down else turned
            turned = turned.rot90(int(quarters), (-2, -1))
        result.append(turned)
    return result


def _photometric(image: Tensor, how: AugmentOptions, rng: np.random.Generator) -> Tensor:
    """Random contrast, brightness, blur and noise of a normalised image (1 or 3, H, W)."""
    shift, stretch, sharp, width, grain = rng.uniform(size=5)
    if how.contrast or how.brightness:
        contrast = 1 + how.contrast * (2 * stretch - 1)
        middle = image.mean()
        image = (image - middle) * contrast + middle + how.brightness * (2 * shift - 1)
    sigma = how.blur * width
    if sharp < 0.5 and sigma > 0.1:
        kernel = 2 * int(np.ceil(3 * sigma)) + 1
        blur = torchvision().transforms.v2.functional.gaussian_blur
        image = blur(image, [kernel, kernel], [sigma, sigma])
    if how.noise:
        grains = rng.standard_normal(image.shape[1:], dtype=np.float32)
        image = image + how.noise * grain * torch.from_numpy(grains)
    return image


def before_camera(
    image: Tensor, labels: Tensor, how: AugmentOptions, rng: np.random.Generator
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


def after_camera(image: Tensor, how: AugmentOptions, rng: np.random.Generator) -> Tensor:
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
    io = torchvision().io
    low, high = JPEG_RANGE
    levels = ((image - low) / (high - low) * 255).round().clamp(0, 255).byte()
    mode = io.ImageReadMode.GRAY if len(levels) == 1 else io.ImageReadMode.RGB
    levels = io.decode_jpeg(io.encode_jpeg(levels.contiguous(), quality), mode)
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


def torchvision() -> Any:
    """The package, which only training needs."""
    try:
        import torchvision
        import torchvision.transforms.v2
    except ImportError as error:
        raise missing_extra("torchvision", "train", "training") from error
    return torchvision
