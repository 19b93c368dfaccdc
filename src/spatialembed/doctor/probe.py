"""One image and its mask, looked at: what they are, or why they cannot be read. Never raises."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from spatialembed.data.folder import instances_of
from spatialembed.data.label_checks import LabelFacts, label_facts
from spatialembed.doctor.objects import Objects, describe
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.decode import decode, opened
from spatialembed.images.read import MAX_PIXELS, ImageWarning, oriented, read_labels, read_oriented

THUMB = 64
"""Side of a thumbnail in px."""
CROWDED = 20
"""Objects in an image from which on a bare strip of it means something."""


class Reading(NamedTuple):
    """The settings by which training will read the data, as of ``open_folder``."""

    allow_missing: bool = False
    split_components: bool = False
    plain_ids: bool = False
    ignore_id: int | None = None


@dataclass(frozen=True)
class Fault:
    """Why training would refuse a file."""

    code: str
    message: str  # path first
    remedy: str


def fault_of(error: SpatialEmbedError) -> Fault:
    """What a reader raised."""
    return Fault(error.code, error.message, error.remedy)


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
    file_hash: bytes
    pixel_hash: bytes
    thumbnail: np.ndarray | None  # (THUMB THUMB,) float16, mean 0, norm 1; None if constant


@dataclass(frozen=True)
class MaskFacts:
    """A label image, ids as they are stored."""

    size_hw: tuple[int, int]
    bits: int  # of an id as stored; 0: not looked at, since no id is near a limit
    objects: Objects
    labels: LabelFacts
    unlabelled_margin: float  # widest strip along a border without object, a share of that side

    @property
    def largest_id(self) -> int:
        """0 where there is no object."""
        return int(self.objects.ids.max(initial=0))


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

    @property
    def objects(self) -> Objects | None:
        """Objects of the mask, where it could be read."""
        return None if self.mask is None else self.mask.objects


def read_image(pair: Pair) -> np.ndarray:
    """The image of a pair, whatever its mask is. Raises SpatialEmbedError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        return read_oriented(pair.image_path)[0]


def read_again(pair: Pair, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Image and ids (H, W) int32 of a pair that ``probe`` could read. Raises SpatialEmbedError."""
    image = read_image(pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        ids = _ids(pair.mask_path, reading)
    if pair.classes is None:
        ids = _instances(pair.mask_path, ids, reading, [])
    return image, ids


def probe(pair: Pair, reading: Reading) -> Pair:
    """The pair with the facts of its image and mask (None: unreadable), faults and warnings."""
    image_path, mask_path = pair.image_path, pair.mask_path
    faults: list[Fault] = []
    image = mask = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        try:
            image = _image(image_path, faults)
        except SpatialEmbedError as error:
            faults.append(fault_of(error))
        try:
            ids = _ids(mask_path, reading)
            if pair.classes is None:
                ids = _instances(mask_path, ids, reading, faults)
            mask = _mask(mask_path, ids)
        except SpatialEmbedError as error:
            faults.append(fault_of(error))
    if image and mask and image.size_hw != mask.size_hw:
        faults.append(_size_fault(image_path, image.size_hw, mask_path, mask.size_hw))
    notes = (str(w.message) for w in caught if issubclass(w.category, ImageWarning))
    return replace(pair, image=image, mask=mask, faults=tuple(faults), warnings=tuple(notes))


def _size_fault(
    image: Path, image_hw: tuple[int, int], mask: Path, mask_hw: tuple[int, int]
) -> Fault:
    (ih, iw), (mh, mw) = image_hw, mask_hw
    message = f"{image}: {ih}x{iw} px, its mask {mask} {mh}x{mw} px"
    return Fault("size_mismatch", message, "export both at one size")


def _image(path: Path, faults: list[Fault]) -> ImageFacts:
    pixels, orientation = read_oriented(path)
    if orientation != 1:
        faults.append(fault_of(oriented(path, orientation, "mask does")))
    colour = pixels.ndim == 3
    grey = not colour or bool(
        (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    )
    top = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else np.inf
    return ImageFacts(
        size_hw=pixels.shape[:2],
        dtype=str(pixels.dtype),
        grey=grey,
        channels=3 if colour else 1,
        low=float(pixels.min()),
        high=float(pixels.max()),
        saturated=float(np.mean(pixels == top)),
        file_hash=hashlib.sha256(path.read_bytes()).digest(),
        pixel_hash=_hash(pixels),
        thumbnail=_thumbnail(pixels),
    )


def _hash(pixels: np.ndarray) -> bytes:
    content = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    content.update(np.ascontiguousarray(pixels).data)
    return content.digest()


def _thumbnail(pixels: np.ndarray) -> np.ndarray | None:
    """The grey image shrunk (THUMB THUMB,), free of brightness and contrast."""
    grey = (pixels.mean(axis=2) if pixels.ndim == 3 else pixels).astype(np.float32)
    small = Image.fromarray(grey).resize((THUMB, THUMB), Image.Resampling.BOX)
    values = np.asarray(small, np.float64).ravel()
    values -= values.mean()
    norm = float(np.linalg.norm(values))
    flat = norm < 1e-6 * max(1.0, float(np.abs(grey).max()))
    return None if flat else (values / norm).astype(np.float16)


def _mask(path: Path, ids: np.ndarray) -> MaskFacts:
    objects = describe(ids)
    highest = int(objects.ids.max(initial=0))
    near_limit = 250 <= highest <= 255 or 65_500 <= highest <= 65_535
    return MaskFacts(
        size_hw=ids.shape,
        bits=_bits(path) if near_limit else 0,
        objects=objects,
        labels=label_facts(ids),
        unlabelled_margin=_unlabelled_margin(objects, ids.shape),
    )


def _bits(path: Path) -> int:
    """Bits of an id as it is stored."""
    with opened(path) as (file, form):
        return 8 * decode(path, file, form, MAX_PIXELS).pixels.dtype.itemsize


def _unlabelled_margin(objects: Objects, shape: tuple[int, ...]) -> float:
    """Widest strip along a border without an object, as a share of that side; 0 of few objects."""
    if len(objects) < CROWDED:
        return 0.0
    height, width = shape
    left, top = objects.box[:, :2].min(axis=0)
    right, bottom = (width, height) - objects.box[:, 2:].max(axis=0)
    return float(max(left / width, right / width, top / height, bottom / height))


def _ids(path: Path, reading: Reading) -> np.ndarray:
    """Ids (H, W) of a mask, those to be ignored as background."""
    ids = read_labels(path)
    return ids if reading.ignore_id is None else np.where(ids == reading.ignore_id, 0, ids)


def _instances(path: Path, ids: np.ndarray, reading: Reading, faults: list[Fault]) -> np.ndarray:
    """Ids (H, W) as training takes them, or as they are, with the reason why it would not."""
    try:
        return instances_of(path, ids, reading.split_components, reading.plain_ids)
    except SpatialEmbedError as error:
        faults.append(fault_of(error))
        return ids
