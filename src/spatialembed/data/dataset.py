"""What a data set is, in whatever layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.read import oriented, read_oriented
from spatialembed.options import DataOptions
from spatialembed.types import Sample, Target

SPLITS = ("train", "val", "test")
Split = Literal["train", "val", "test"]
"""Parts that a data set may come in."""
Self = TypeVar("Self")


class Dataset(Protocol):
    """Samples by number, with names."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Sample: ...


class FileDataset(Dataset, Protocol):
    """Samples of image files: to be split, and compared file by file."""

    def image_path(self, i: int) -> Path: ...
    def index_row(self, i: int) -> Mapping[str, str]: ...
    def truth(self, i: int) -> Target: ...  # without reading the image
    def subset(self: Self, indices: Iterable[int]) -> Self: ...


def read_sample(
    path: Path, name: str, truth: tuple[Target, np.ndarray], partner: str, reading: DataOptions
) -> Sample:
    """An image with its truth and the ids (K,) of its instances; both have one size.

    partner: the source of the truth, for messages. Raises SpatialEmbedError as ``read_image`` does,
    and: oriented_image, size_mismatch.
    """
    limit, channel = reading.max_pixels, reading.channel
    image, orientation = read_oriented(path, max_pixels=limit, channel=channel)
    if orientation != 1:
        raise oriented(path, orientation, partner)
    target, ids = truth
    if image.shape[:2] != target.labels.shape:
        raise size_mismatch(path, image.shape, partner, target.labels.shape)
    return Sample(image, target, name, ids)


def size_mismatch(
    path: Path, image: Sequence[int], partner: str, truth: Sequence[int]
) -> SpatialEmbedError:
    """The error of an image and a truth of these shapes."""
    sizes = f"{image[0]}x{image[1]} px, its {partner} {truth[0]}x{truth[1]} px"
    return SpatialEmbedError("size_mismatch", f"{path}: {sizes}", "export both at one size")
