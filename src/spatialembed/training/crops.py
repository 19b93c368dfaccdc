"""Training crops: where they are cut from an image with its truth, and to which size."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spatialembed.method.normalization import network_input
from spatialembed.training.augment import AugmentOptions, augmented, torchvision
from spatialembed.types import Normalization, Sample, Target


def training_crop(
    sample: Sample,
    how: Normalization,
    size: int,
    scale: float,
    augment: AugmentOptions,
    rng: np.random.Generator,
    label: int | None = None,
) -> tuple[Tensor, Target]:
    """One augmented crop: image (3, size, size) float32 normalised, and its truth.

    scale: magnification at which the network sees images; the crop shows about size / scale px of
    the image. label: of the object that the crop lies around; None: of a random one, or anywhere.
    What lies outside the image is ignored. Instances that the crop lost are gone from the target.
    Depends on ``sample`` and ``rng`` alone.
    """
    labels, count = sample.target.labels.numpy(), len(sample.target.classes)
    zoom = scale * np.exp(rng.uniform(*np.log(augment.zoom)))
    side = max(1, round(size / zoom))  # px of the image
    around = rng.uniform() < augment.object_centred
    which, *spots = rng.uniform(size=4).tolist()
    if label is None and around and count:
        label = 1 + int(which * count)
    middle = None if label is None else _middle(labels, label)
    top, left = _corner(labels.shape, side, middle, spots)
    image = network_input(sample.image, how)  # (3, H, W)
    if sample.image.ndim == 2 and how.kind != "fixed":
        image = image[:1]  # grey: three equal channels cost three times one
    image = _window(image, top, left, side, 0)
    truth = _window(sample.target.labels, top, left, side, 0)
    ignore = _window(sample.target.ignore, top, left, side, True)
    image, truth, ignore = _resized(image, truth, ignore, size)
    image, truth, ignore = augmented(image, truth, ignore, augment, rng)
    return image.expand(3, size, size), _present(truth, sample.target.classes, ignore)


def _middle(labels: np.ndarray, label: int) -> tuple[float, float] | None:
    """Centroid (y, x) px of a label in (H, W); None where it has no pixel."""
    ys, xs = (labels == label).nonzero()
    return (ys.sum() / len(ys), xs.sum() / len(xs)) if len(ys) else None


def _corner(
    size_hw: tuple[int, ...], side: int, middle: tuple[float, float] | None, spots: list[float]
) -> tuple[int, int]:
    """Top and left of the window: inside the image where that is large enough, else around it.

    An object in it lies up to a quarter of the window from its middle, so that objects are not
    always in the middle. spots: three draws in [0, 1): for y and x of a window around an object,
    the last two for one anywhere.
    """
    corner = []
    for axis, length in enumerate(size_hw):
        slack = length - side
        if slack <= 0 or middle is None:
            corner.append(round(spots[1 + axis] * slack))
        else:
            centre = middle[axis] + (spots[axis] - 0.5) * side / 2
            corner.append(min(max(round(centre - side / 2), 0), slack))
    return corner[0], corner[1]


def _window(array: Tensor, top: int, left: int, side: int, outside: float) -> Tensor:
    """(..., side, side) of (..., H, W), filled with ``outside`` beyond the image."""
    height, width = array.shape[-2:]
    result = array.new_full((*array.shape[:-2], side, side), outside)
    y1, y2 = max(top, 0), min(top + side, height)
    x1, x2 = max(left, 0), min(left + side, width)
    result[..., y1 - top : y2 - top, x1 - left : x2 - left] = array[..., y1:y2, x1:x2]
    return result


def _resized(
    image: Tensor, labels: Tensor, ignore: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """To (., size, size): the image bilinear, antialiased when it shrinks; the truth nearest."""
    if image.shape[-1] == size:
        return image, labels, ignore
    tv = torchvision().transforms.v2
    nearest = tv.InterpolationMode.NEAREST_EXACT
    image = tv.functional.resize(image, [size, size], antialias=True)
    labels = tv.functional.resize(labels[None], [size, size], interpolation=nearest)[0]
    ignore = tv.functional.resize(ignore[None].byte(), [size, size], interpolation=nearest)[0]
    return image, labels, ignore.bool()


def _present(labels: Tensor, classes: Tensor, ignore: Tensor) -> Target:
    """Truth of a crop: the instances with a valid pixel in it, numbered 1..K anew."""
    labels = torch.where(ignore, 0, labels)
    present = labels.unique()
    present = present[present > 0]
    new_id = torch.zeros(len(classes) + 1, dtype=torch.int32)
    new_id[present.long()] = torch.arange(1, len(present) + 1, dtype=torch.int32)
    return Target(new_id[labels.long()], classes[present.long() - 1], ignore.clone())
