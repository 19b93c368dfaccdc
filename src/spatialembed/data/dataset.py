"""What a data set is, in whatever layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from spatialembed.types import Sample, Target

SPLITS = ("train", "val", "test")
Split = Literal["train", "val", "test"]
"""Parts that a data set may come in."""
Self = TypeVar("Self")


class Dataset(Protocol):
    """Samples by number, with names."""

    class_names: tuple[str, ...]

    @property
    def names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Sample: ...


class FileDataset(Dataset, Protocol):
    """Samples of image files: to be split, and compared file by file."""

    def image_path(self, i: int) -> Path: ...
    def index_row(self, i: int) -> Mapping[str, str]: ...
    def truth(self, i: int) -> Target: ...  # without reading the image
    def truth_digest(self, i: int) -> bytes: ...  # hash of all that it follows from
    def subset(self: Self, indices: Iterable[int]) -> Self: ...
