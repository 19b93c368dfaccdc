"""Data sets parted into training and validation: by image, or by groups that belong together."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import TypeVar

from spatialembed.data.dataset import FileDataset
from spatialembed.errors import USAGE, SpatialEmbedError, nearest
from spatialembed.images.decode import opened, read_bytes

F = TypeVar("F", bound=FileDataset)


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
        raise SpatialEmbedError(
            "bad_split",
            f"{fraction:g} of {len(groups)} groups leaves no part with images",
            "take a fraction between 0 and 1, of two images or groups at least",
            USAGE,
        )
    # Random().sample of sorted names is the same in every Python that is supported, hashes are not.
    chosen = set(random.Random(seed).sample(groups, count))
    train = [i for i, key in enumerate(keys) if key not in chosen]
    val = [i for i, key in enumerate(keys) if key in chosen]
    return dataset.subset(train), dataset.subset(val)


def group_keys(dataset: FileDataset, column: str) -> list[str]:
    """Group of each image by a column of index.csv; every image needs one."""
    rows = [dataset.index_row(i) for i in range(len(dataset))]
    columns = sorted({name for row in rows for name in row})
    if column not in columns:
        near = nearest(column, columns) if columns else None
        known = f"did you mean {near!r}?" if near else f"it has {', '.join(columns)}"
        raise SpatialEmbedError(
            "no_column",
            f"index.csv has no column {column!r}"
            if columns
            else "no index.csv that names an image",
            known if columns else "put it beside images/ and masks/",
            USAGE,
        )
    missing = [dataset.names[i] for i, row in enumerate(rows) if not row.get(column)]
    if missing:
        raise SpatialEmbedError(
            "no_column",
            f"index.csv has no {column} for {', '.join(missing)}",
            "fill the column",
            USAGE,
        )
    return [row[column] for row in rows]


def duplicates(train: FileDataset, val: FileDataset) -> list[tuple[str, str]]:
    """Pairs (name in train, name in val) of image files with the same bytes."""
    # Every file is opened, few are read: photographs seldom have the same number of bytes.
    sizes = [[_bytes(part.image_path(i)) for i in range(len(part))] for part in (train, val)]
    shared = set(sizes[0]) & set(sizes[1])
    by_hash: dict[bytes, list[str]] = defaultdict(list)
    for i, name in enumerate(train.names):
        if sizes[0][i] in shared:
            by_hash[_digest(train.image_path(i))].append(name)
    return [
        (twin, name)
        for i, name in enumerate(val.names)
        if sizes[1][i] in shared
        for twin in by_hash.get(_digest(val.image_path(i)), [])
    ]


def _bytes(path: Path) -> int:
    with opened(path) as (file, _):  # a pipe or a device would be read for ever
        return os.fstat(file.fileno()).st_size


def _digest(path: Path) -> bytes:
    return hashlib.sha256(read_bytes(path)).digest()
