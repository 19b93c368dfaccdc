"""Data sets parted into training and validation: by image, or by groups that belong together."""

from __future__ import annotations

import math
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import TypeVar

from spatialembed.data.dataset import FileDataset
from spatialembed.data.split_record import image_hashes
from spatialembed.errors import USAGE, SpatialEmbedError, nearest
from spatialembed.images.decode import opened

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
