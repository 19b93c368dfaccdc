"""Training crops: where they are cut, how they are zoomed, turned and disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spatialembed.errors import USAGE, SpatialEmbedError, missing_extra
from spatialembed.method.normalization import network_input
from spatialembed.training.degrade import after_camera, before_camera, noise_alone
from spatialembed.types import Normalization, Sample, Target


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
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise SpatialEmbedError(
                "bad_setting", f"zoom is {self.zoom}", "give 0 < smallest <= largest", USAGE
            )
        for name in ("object_centred", "gamma", "objects", "uneven", "jpeg", "blank"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SpatialEmbedError("bad_setting", f"{name} is {value}", "give 0 to 1", USAGE)


class CropDraw(NamedTuple):
    """The random part of a crop's place, before the image is known."""

    side: int  # of the window that becomes the crop, px of the image
    around: bool  # a random object, rather than anywhere
    spots: np.ndarray  # (4,) in [0, 1): which object; the window about it, y and x; anywhere: y, x

    def instance(self, count: int) -> int:
        """Which one of ``count`` objects, in [0, count), the crop lies around."""
        return int(self.spots[0] * count)

    def corner(self, size_hw: Sequence[int], middle: Sequence[float] | None) -> tuple[int, int]:
        """Top and left of the window: inside the image where that is large enough, else around it.

        middle: (y, x) px of the object that it shows, None for anywhere. The object lies up to a
        quarter of the window from its middle, so that objects are not always in the middle.
        """
        corner = []
        for axis, length in enumerate(size_hw):
            slack = length - self.side
            if slack <= 0 or middle is None:
                corner.append(round(self.spots[2 + axis] * slack))
            else:
                centre = middle[axis] + (self.spots[1 + axis] - 0.5) * self.side / 2
                corner.append(min(max(round(centre - self.side / 2), 0), slack))
        return corner[0], corner[1]


def draw_crop(
    size: int, scale: float, augment: AugmentOptions, rng: np.random.Generator
) -> CropDraw:
    """Zoom and place of a crop of ``size`` px of what the network sees, at magnification scale."""
    zoom = scale * np.exp(rng.uniform(*np.log(augment.zoom)))
    around = bool(rng.uniform() < augment.object_centred)
    return CropDraw(max(1, round(size / zoom)), around, rng.uniform(size=4))


def training_crop(
    sample: Sample,
    how: Normalization,
    size: int,
    scale: float,
    augment: AugmentOptions,
    rng: np.random.Generator,
) -> tuple[Tensor, Target]:
    """One augmented crop: image (3, size, size) float32 normalised, and its truth.

    scale: magnification at which the network sees images; the crop shows about size / scale px of
    the image. What lies outside the image is ignored. Instances that the crop lost are gone from
    the target. Depends on ``sample`` and ``rng`` alone.
    """
    draw = draw_crop(size, scale, augment, rng)
    labels = sample.target.labels.numpy()
    middle = None
    if draw.around and (count := len(sample.target.classes)):
        middle = middle_of(labels, 1 + draw.instance(count))
    corner = draw.corner(labels.shape, middle)
    return cut_crop(sample, how, size, draw.side, corner, augment, rng)


def middle_of(labels: np.ndarray, label: int) -> tuple[float, float] | None:
    """Centroid (y, x) px of a label in (H, W); None where it has no pixel."""
    ys, xs = (labels == label).nonzero()
    return (ys.sum() / len(ys), xs.sum() / len(xs)) if len(ys) else None


def cut_crop(
    sample: Sample,
    how: Normalization,
    size: int,
    side: int,
    corner: tuple[int, int],
    augment: AugmentOptions,
    rng: np.random.Generator,
) -> tuple[Tensor, Target]:
    """The window of ``side`` px at ``corner`` (top, left) as a crop: see ``training_crop``.

    sample: the image, or a part of it that holds all of the window which is in the image; the
    corner is given in its own pixels. Percentiles must be those of a whole image.
    """
    image = network_input(sample.image, how)  # (3, H, W)
    if sample.image.ndim == 2 and how.kind != "fixed":
        image = image[:1]  # grey: three equal channels cost three times one
    top, left = corner
    image = _window(image, top, left, side, 0)
    labels = _window(sample.target.labels, top, left, side, 0)
    ignore = _window(sample.target.ignore, top, left, side, True)
    image, labels, ignore = _resize(image, labels, ignore, size)
    image, labels, ignore = _turn((image, labels, ignore), augment, rng)
    if augment.blank and rng.uniform() < augment.blank:
        image, labels = noise_alone(image, rng), torch.zeros_like(labels)
        ignore = torch.zeros_like(ignore)
    image = before_camera(image, labels, augment, rng)
    image = _photometric(image, augment, rng)
    image = after_camera(image, augment, rng).expand(3, size, size)
    return image, _present(labels, sample.target.classes, ignore)


def _window(array: Tensor, top: int, left: int, side: int, outside: float) -> Tensor:
    """(..., side, side) of (..., H, W), filled with ``outside`` beyond the image."""
    height, width = array.shape[-2:]
    result = array.new_full((*array.shape[:-2], side, side), outside)
    y1, y2 = max(top, 0), min(top + side, height)
    x1, x2 = max(left, 0), min(left + side, width)
    result[..., y1 - top : y2 - top, x1 - left : x2 - left] = array[..., y1:y2, x1:x2]
    return result


def _resize(
    image: Tensor, labels: Tensor, ignore: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """To (., size, size): the image bilinear, antialiased when it shrinks; the truth nearest."""
    if image.shape[-1] == size:
        return image, labels, ignore
    tv = _torchvision()
    nearest = tv.InterpolationMode.NEAREST_EXACT
    image = tv.functional.resize(image, [size, size], antialias=True)
    labels = tv.functional.resize(labels[None], [size, size], interpolation=nearest)[0]
    ignore = tv.functional.resize(ignore[None].byte(), [size, size], interpolation=nearest)[0]
    return image, labels, ignore.bool()


def _turn(
    tensors: tuple[Tensor, ...], augment: AugmentOptions, rng: np.random.Generator
) -> list[Tensor]:
    """The same random one of the allowed mirrors and quarter turns of each square tensor."""
    mirror, up_down, quarters = rng.integers(0, (2, 2, 4))
    result = []
    for tensor in tensors:
        turned = tensor.flip(-1) if augment.flip and mirror else tensor
        if augment.rotate:
            turned = turned.flip(-2) if up_down else turned
            turned = turned.rot90(int(quarters), (-2, -1))
        result.append(turned)
    return result


def _photometric(image: Tensor, augment: AugmentOptions, rng: np.random.Generator) -> Tensor:
    """Random contrast, brightness, blur and noise of a normalised image (1 or 3, H, W)."""
    shift, stretch, sharp, width, grain = rng.uniform(size=5)
    if augment.contrast or augment.brightness:
        contrast = 1 + augment.contrast * (2 * stretch - 1)
        middle = image.mean()
        image = (image - middle) * contrast + middle + augment.brightness * (2 * shift - 1)
    sigma = augment.blur * width
    if sharp < 0.5 and sigma > 0.1:
        kernel = 2 * int(np.ceil(3 * sigma)) + 1
        image = _torchvision().functional.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
    if augment.noise:
        grains = rng.standard_normal(image.shape[1:], dtype=np.float32)
        image = image + augment.noise * grain * torch.from_numpy(grains)
    return image


def _present(labels: Tensor, classes: Tensor, ignore: Tensor) -> Target:
    """Truth of a crop: the instances with a valid pixel in it, numbered 1..K anew."""
    labels = torch.where(ignore, 0, labels)
    present = labels.unique()
    present = present[present > 0]
    new_id = torch.zeros(len(classes) + 1, dtype=torch.int32)
    new_id[present.long()] = torch.arange(1, len(present) + 1, dtype=torch.int32)
    return Target(new_id[labels.long()], classes[present.long() - 1], ignore.clone())


def _torchvision():  # type: ignore[no-untyped-def]
    """torchvision.transforms.v2, which only training needs."""
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise missing_extra("torchvision", "train", "training") from error
    return v2
