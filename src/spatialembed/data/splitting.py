"""Data sets parted into training and validation, and the record of it that a model keeps for good.

Parted by image, or by groups that belong together. In the record an image is known by the first
6 bytes of the SHA-256 of its file, whatever its name: of 100,000 trained images and 10,000 others,
one is mistaken in one of 280,000 such comparisons. They are kept as one base64 text, 8 characters
an image. A copy in another format is another image here; ``spatialembed doctor`` finds those.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta

from spatialembed.data.dataset import Dataset, FileDataset
from spatialembed.errors import USAGE, SpatialEmbedError, nearest
from spatialembed.images.decode import opened

logger = logging.getLogger("spatialembed")

F = TypeVar("F", bound=FileDataset)
HASH_BYTES = 6
MOST_IMAGES = 1 << 20
"""A record of more would be larger than the rest of most models."""


def split_dataset(
    dataset: F, *, fraction: float = 0.2, group_by: str | None = None, seed: int = 0
) -> tuple[F, F]:
    """Split a data set into training and validation, the same on every machine for one seed.

    Args:
        dataset: What to split.
        fraction: Share of the groups that goes to validation, rounded up, in (0, 1).
        group_by: Column of index.csv whose values are the groups, held out whole; None: each image
            is a group.
        seed: Of the draw.

    Returns:
        (train, val), both in the order of the data set.

    Raises:
        SpatialEmbedError: ``bad_split``, ``no_column`` (exit 2).
    """
    keys = dataset.names if group_by is None else group_keys(dataset, group_by)
    groups = sorted(set(keys))
    count = max(1, math.ceil(len(groups) * fraction - 1e-9))  # 15 * 0.2 is above 3 in floats
    if not 0 < fraction < 1 or count >= len(groups):
        what = f"{fraction:g} of {len(groups)} groups leaves no part with images"
        remedy = "take a fraction between 0 and 1, of two images or groups at least"
        raise SpatialEmbedError("bad_split", what, remedy, USAGE)
    # Random().sample of sorted names is the same in every Python that is supported, hashes are not.
    chosen = set(random.Random(seed).sample(groups, count))
    train = [i for i, key in enumerate(keys) if key not in chosen]
    val = [i for i, key in enumerate(keys) if key in chosen]
    return dataset.subset(train), dataset.subset(val)


def group_keys(dataset: FileDataset, column: str) -> list[str]:
    """Group of each image by a column of index.csv; every image needs one."""
    rows = [dataset.index_row(i) for i in range(len(dataset))]
    columns = sorted({name for row in rows for name in row})
    missing = [dataset.names[i] for i, row in enumerate(rows) if not row.get(column)]
    if not columns:
        what, remedy = "no index.csv that names an image", "put it beside images/ and masks/"
    elif column not in columns:
        near = nearest(column, columns)
        what = f"index.csv has no column {column!r}"
        remedy = f"did you mean {near!r}?" if near else f"it has {', '.join(columns)}"
    elif missing:
        what, remedy = f"index.csv has no {column} for {', '.join(missing)}", "fill the column"
    else:
        return [row[column] for row in rows]
    raise SpatialEmbedError("no_column", what, remedy, USAGE)


def duplicates(train: FileDataset, val: FileDataset) -> list[tuple[str, str]]:
    """Pairs (name in train, name in val) of image files with the same bytes."""
    # Every file is opened, few are read: photographs seldom have the same number of bytes.
    sizes = [[_bytes(part.image_path(i)) for i in range(len(part))] for part in (train, val)]
    shared = set(sizes[0]) & set(sizes[1])
    one, other = (
        part.subset(i for i, size in enumerate(own) if size in shared)
        for part, own in zip((train, val), sizes, strict=True)
    )
    by_hash = defaultdict(list)
    for name, digest in zip(one.names, image_hashes(one), strict=True):
        by_hash[digest].append(name)
    hashed = zip(other.names, image_hashes(other), strict=True)
    return [(twin, name) for name, digest in hashed for twin in by_hash[digest]]


def _bytes(path: Path) -> int:
    with opened(path) as (file, _):  # a pipe or a device would be read for ever
        return os.fstat(file.fileno()).st_size


# ---------------------------------------------------------------- the record of a split


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    fingerprint: str
    trained: bytes  # in base64
    val_fraction: Annotated[float, Meta(gt=0, lt=1)] | None
    group_by: str | None
    seed: Annotated[int, Meta(ge=0, lt=1 << 62)]


@dataclass(frozen=True)
class SplitRecord:
    """How a training parted its images into those it learned from and those it held out."""

    fingerprint: str  # of all its images, trained on or held out
    trained: frozenset[bytes]  # hashes of the files of the images that it learned from
    val_fraction: float | None  # None where the data came in parts, or none was held out
    group_by: str | None
    seed: int

    def to_json(self) -> dict[str, Any]:
        """As JSON types, for a model file."""
        packed = base64.b64encode(b"".join(sorted(self.trained)))
        return asdict(self) | {"trained": packed.decode()}

    @classmethod
    def from_json(cls, value: Any) -> SplitRecord:
        """What ``to_json`` gave. Raises ValueError for anything else."""
        try:
            stored = msgspec.convert(value, _Stored)
        except (msgspec.ValidationError, UnicodeError) as error:  # of a key that is no UTF-8
            raise ValueError(str(error)) from error
        packed = stored.trained
        if len(packed) % HASH_BYTES:
            raise ValueError("trained ends within a hash")
        hashes = (packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES))
        return cls(
            stored.fingerprint,
            frozenset(hashes),
            stored.val_fraction,
            stored.group_by,
            stored.seed,
        )

    def saw(self, images: FileDataset) -> list[bool]:
        """Of each image, whether it was trained on. Raises as ``opened`` does."""
        return [digest in self.trained for digest in image_hashes(images)]

    def held_out(self, images: F) -> F:
        """Those that were not trained on, nor belong to a group that was, in their order."""
        saw = self.saw(images)
        rows = [images.index_row(i) for i in range(len(images))]
        groups = [row.get(self.group_by, "") if self.group_by else "" for row in rows]
        tainted = {group for group, seen in zip(groups, saw, strict=True) if seen and group}
        kept = (not seen and group not in tainted for group, seen in zip(groups, saw, strict=True))
        return images.subset(i for i, keep in enumerate(kept) if keep)


def split_record(
    train: FileDataset,
    val: FileDataset,
    *,
    val_fraction: float | None,
    group_by: str | None,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> SplitRecord:
    """The record of a split; every image file is read once, a call of ``progress`` for each."""
    trained = image_hashes(train, progress)
    everything = sorted((*trained, *image_hashes(val, progress)))
    fingerprint = hashlib.sha256(b"".join(everything)).hexdigest()[:16]
    return SplitRecord(fingerprint, frozenset(trained), val_fraction, group_by, seed)


def trained_on(record: SplitRecord | None, dataset: Dataset) -> int | None:
    """How many of these images a model was trained on, with a warning where there are any.

    None where that is not known: the model has no record, or the images are no files.
    """
    if record is None or not hasattr(dataset, "image_path"):
        return None
    count = sum(record.saw(cast(FileDataset, dataset)))
    if count:
        what = f"%d of these %d images {_were(count)} trained on"
        logger.warning(f"{what}: figures are better than on new images", count, len(dataset))
    return count


def sentence(trained: int | None, images: int) -> str:
    """For a report: how many of its images were trained on; empty where that is not known."""
    if trained is None:
        return ""
    return f"{trained or 'None'} of these {images} images {_were(trained)} trained on."


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def image_hashes(images: FileDataset, progress: Callable[[], None] = lambda: None) -> list[bytes]:
    """HASH_BYTES of the SHA-256 of each image file. Raises SpatialEmbedError as ``opened`` does."""
    hashes = []
    for i in range(len(images)):
        with opened(images.image_path(i)) as (file, _):
            digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
            hashes.append(digest.digest()[:HASH_BYTES])
        progress()
    return hashes
