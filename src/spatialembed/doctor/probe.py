"""One image and its mask, looked at: their facts, or why they cannot be read. Never raises."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from spatialembed.data.dataset import size_mismatch
from spatialembed.data.folder import instances_of, read_ids
from spatialembed.data.label_checks import LabelFacts, label_facts
from spatialembed.doctor.objects import Objects, describe
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.read import ImageWarning, oriented, read_oriented
from spatialembed.options import DataOptions

THUMB = 64
"""Side of a thumbnail in px."""
CROWDED = 20
"""Objects in an image from which on a bare strip of it means something."""


class Fault(NamedTuple):
    """Why training would refuse a file."""

    code: str
    message: str  # path first
    remedy: str


def fault_of(error: SpatialEmbedError) -> Fault:
    """The fault that an error names."""
    return Fault(error.code, error.message, error.remedy)


@contextmanager
def noted(faults: list[Fault]) -> Iterator[None]:
    """Add the error that ends the block, if there is one, and go on after it."""
    try:
        yield
    except SpatialEmbedError as error:
        faults.append(fault_of(error))


@dataclass(frozen=True)
class ImageFacts:
    """An image as it is stored, upright."""

    size_hw: tuple[int, int]
    dtype: str
    grey: bool  # one channel, or three equal ones
    channels: int
    low: float  # lowest and highest value
    high: float
    saturated: float  # share of values that are the largest of their type
    pixel_hash: bytes
    thumbnail: np.ndarray | None  # (THUMB, THUMB) float16, mean 0, norm 1; None if constant


@dataclass(frozen=True)
class MaskFacts:
    """A label image, ids as they are stored."""

    size_hw: tuple[int, int]
    void: bool  # has a pixel that is to be ignored
    objects: Objects
    labels: LabelFacts

    @property
    def largest_id(self) -> int:
        """0 where there is no object."""
        return int(self.objects.ids.max(initial=0))

    @property
    def covered(self) -> float:
        """Share of the image that objects cover, in [0, 1]."""
        return float(self.objects.area.sum() / (self.size_hw[0] * self.size_hw[1]))

    @property
    def unlabelled_margin(self) -> float:
        """Widest strip along a border without object, a share of that side; 0 of few objects."""
        box, (height, width) = self.objects.box, self.size_hw
        if len(box) < CROWDED:
            return 0.0
        before = box[:, :2].min(axis=0) / (width, height)
        after = 1 - box[:, 2:].max(axis=0) / (width, height)
        return float(max(*before, *after))


@dataclass(frozen=True)
class Pair:
    """An image, its mask, and what was found in them."""

    name: str  # with its split in front, where there are several
    split: str  # "" for a flat layout
    image_path: Path
    mask_path: Path
    image: ImageFacts | None = None
    mask: MaskFacts | None = None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()  # of reading
    classes: dict[int, str] | None = None  # by id; None without classes.csv
    row: dict[str, str] = field(default_factory=dict)  # of index.csv


def read_image(pair: Pair, reading: DataOptions) -> np.ndarray:
    """The image of a pair, whatever its mask is. Raises SpatialEmbedError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        limit, channel = reading.max_pixels, reading.channel
        return read_oriented(pair.image_path, max_pixels=limit, channel=channel)[0]


def read_again(pair: Pair, reading: DataOptions) -> tuple[np.ndarray, np.ndarray]:
    """Image and ids (H, W) int32 of a pair that ``probe`` could read. Raises SpatialEmbedError."""
    image = read_image(pair, reading)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        return image, _ids(pair, reading, [])[0]


def probe(pair: Pair, reading: DataOptions) -> Pair:
    """The pair with the facts of its image and mask (None: unreadable), faults and warnings."""
    faults: list[Fault] = []
    image = mask = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        with noted(faults):
            limit, channel = reading.max_pixels, reading.channel
            pixels, orientation = read_oriented(pair.image_path, max_pixels=limit, channel=channel)
            image = image_facts(pixels)
            if orientation != 1:
                raise oriented(pair.image_path, orientation, "mask")
        with noted(faults):
            ids, void = _ids(pair, reading, faults)
            mask = MaskFacts(ids.shape, void, describe(ids), label_facts(ids))
    with noted(faults):
        if image and mask and image.size_hw != mask.size_hw:
            partner = f"mask {pair.mask_path}"
            raise size_mismatch(pair.image_path, image.size_hw, partner, mask.size_hw)
    notes = (str(w.message) for w in caught if issubclass(w.category, ImageWarning))
    return replace(pair, image=image, mask=mask, faults=tuple(faults), warnings=tuple(notes))


def _ids(pair: Pair, reading: DataOptions, faults: list[Fault]) -> tuple[np.ndarray, bool]:
    """Ids (H, W) as training takes them, or as they are, with the reason why it would not; and
    whether some are void."""
    ids, void = read_ids(pair.mask_path, reading)
    if pair.classes is None:
        with noted(faults):
            ids = instances_of(pair.mask_path, ids, reading)
    return ids, bool(void.any())


def image_facts(pixels: np.ndarray) -> ImageFacts:
    """Measure an image (H, W) or (H, W, 3)."""
    colour = pixels.ndim == 3
    top = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else np.inf
    content = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    content.update(np.ascontiguousarray(pixels).data)
    return ImageFacts(
        size_hw=pixels.shape[:2],
        dtype=str(pixels.dtype),
        grey=not colour or bool((pixels == pixels[..., :1]).all()),
        channels=3 if colour else 1,
        low=float(pixels.min()),
        high=float(pixels.max()),
        saturated=float(np.mean(pixels == top)),
        pixel_hash=content.digest(),
        thumbnail=_thumbnail(pixels.mean(axis=2) if colour else pixels),
    )


def _thumbnail(grey: np.ndarray) -> np.ndarray | None:
    """The image (H, W) shrunk to (THUMB, THUMB), free of brightness and contrast."""
    grey = grey.astype(np.float32)
    small = Image.fromarray(grey).resize((THUMB, THUMB), Image.Resampling.BOX)
    values = np.asarray(small, np.float64)
    values = values - values.mean()
    norm = float(np.linalg.norm(values))
    flat = norm < 1e-6 * max(1.0, float(np.abs(grey).max()))
    return None if flat else (values / norm).astype(np.float16)
