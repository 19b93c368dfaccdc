"""Which images ``--data`` means: in which layout, and of it a part, a side of the split, or all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from spatialembed.data.coco import open_coco
from spatialembed.data.folder import Listed, Split, open_folder, split_dataset, splits
from spatialembed.data.images import MAX_PIXELS
from spatialembed.errors import SpatialEmbedError
from spatialembed.types import Sample


class Dataset(Protocol):
    """What is asked of a data set."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Sample: ...


def data_name(path: str | Path) -> str:
    """What runs and reports call a data set: its folder, or its file without suffix, as text."""
    name = os.path.basename(os.path.realpath(path)) or "data"
    name = name[: -len(".json")] if name.lower().endswith(".json") else name
    return os.fsencode(name).decode("utf-8", "replace")


def open_data(
    path: str | Path,
    *,
    split: Split | None = None,
    allow_missing: bool = False,
    split_components: bool = False,
    plain_ids: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Listed:
    """A folder of images/ and masks/, or a .json file of COCO instances beside images/.

    split, split_components and plain_ids are of masks: a file has no parts, and its ids are told.

    Raises SpatialEmbedError as ``open_folder`` and ``open_coco`` do.
    """
    if Path(path).suffix.lower() != ".json" or Path(path).is_dir():
        return open_folder(
            path,
            split=split,
            allow_missing=allow_missing,
            split_components=split_components,
            plain_ids=plain_ids,
            max_pixels=max_pixels,
        )
    if split is not None:
        what, remedy = f"{path}: a file has no part {split!r}", "name the file of that part"
        raise SpatialEmbedError("no_split", what, remedy)
    return open_coco(path, allow_missing=allow_missing, max_pixels=max_pixels)


def select(
    path: str | Path,
    *,
    split: Split | None = None,
    val_fraction: float = 0.2,
    group_by: str | None = None,
    seed: int = 0,
    allow_missing: bool = False,
    split_components: bool = False,
    plain_ids: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Listed:
    """Images with truth, to score or tune on; ``path`` is as ``open_data`` takes it.

    split: a subfolder where there is one of that name, otherwise the side that a training with this
    val_fraction, group_by and seed learned from ("train") or held out ("val"). group_by alone means
    "val"; without either all images are taken.

    Raises SpatialEmbedError as ``open_data`` and ``split_dataset`` do.
    """
    named = split if split in splits(path) else None
    dataset = open_data(
        path,
        split=named or ("test" if split == "test" else None),
        allow_missing=allow_missing,
        split_components=split_components,
        plain_ids=plain_ids,
        max_pixels=max_pixels,
    )
    if named or (split is None and group_by is None):
        return dataset
    parts = split_dataset(dataset, fraction=val_fraction, group_by=group_by, seed=seed)
    return parts[0] if split == "train" else parts[1]


def check_classes(of_model: Sequence[str], dataset: Dataset) -> None:
    """Refuse a data set that is empty or of other classes than the model.

    Classes are compared by number; where there are several, their names and order count too.
    Raises SpatialEmbedError ``empty_dataset`` or ``class_mismatch``.
    """
    if not len(dataset):
        raise SpatialEmbedError(
            "empty_dataset", "the data set has no image", "check the folder and the split"
        )
    of_data = dataset.class_names
    if len(of_model) != len(of_data) or (len(of_data) > 1 and tuple(of_model) != tuple(of_data)):
        raise SpatialEmbedError(
            "class_mismatch",
            f"the model knows {len(of_model)} classes ({', '.join(of_model)}), "
            f"the data set {len(of_data)} ({', '.join(of_data)})",
            "use data with the classes of the model, in its order",
        )
