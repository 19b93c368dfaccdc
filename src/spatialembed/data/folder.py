"""Folders of images and label masks, paired by name:

    DIR/images/a.png  DIR/masks/a.tif   or below DIR/train, DIR/val, DIR/test
    DIR/classes.csv   image,id,class    optional: the class of each id; without it all are "object"
    DIR/index.csv     id (or image),... optional: any columns, to split by group

Tables beside the parts name an image of several parts as train/NAME, val/NAME.

The name (key) of an image is its path below images/ without suffix.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from skimage import measure

from spatialembed.data.dataset import SPLITS, Split, read_sample
from spatialembed.data.layouts.detect import convert_remedy
from spatialembed.data.pairing import by_name, paired
from spatialembed.data.tables import (
    check_names,
    find_table,
    names_of,
    of_image,
    read_classes,
    read_index,
)
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.read import read_labels
from spatialembed.method.labels import relabel
from spatialembed.options import DataOptions
from spatialembed.types import Sample, Target

logger = logging.getLogger("spatialembed")


@dataclass(frozen=True)
class Pair:
    """One image with its mask and its rows of the tables."""

    name: str
    image: Path
    mask: Path
    classes: Mapping[int, str] | None = None  # class name by id; None without classes.csv
    row: Mapping[str, str] = field(default_factory=dict)  # of index.csv, empty without one


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """Images with label masks, read when indexed; made by ``open_folder``."""

    pairs: Sequence[Pair]
    class_names: tuple[str, ...]
    reading: DataOptions = DataOptions()

    @property
    def names(self) -> list[str]:
        """Names of the images, in the order of the data set."""
        return [pair.name for pair in self.pairs]

    def image_path(self, i: int) -> Path:
        """Path of the file of image ``i``."""
        return self.pairs[i].image

    def index_row(self, i: int) -> Mapping[str, str]:
        """Row of index.csv of image ``i`` by column name, empty without that file."""
        return self.pairs[i].row

    def subset(self, indices: Iterable[int]) -> FolderDataset:
        """The images of these indices, in their order."""
        return replace(self, pairs=[self.pairs[i] for i in indices])

    def with_classes(self, names: Sequence[str]) -> FolderDataset:
        """The same images, their classes numbered as in ``names``, which may hold more."""
        return replace(self, class_names=tuple(names))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Sample:
        """Image ``i`` with its truth: ids renumbered 1..K in ascending order.

        Raises SpatialEmbedError as ``read_image`` and ``read_labels`` do, and: size_mismatch,
        oriented_image, binary_mask, label_scheme, unknown_id.
        """
        pair = self.pairs[i]
        partner = f"mask {pair.mask}"
        return read_sample(pair.image, pair.name, self._target(pair), partner, self.reading)

    def truth(self, i: int) -> Target:
        """The truth of image ``i``; the image is not read, so that its size is not compared."""
        return self._target(self.pairs[i])[0]

    def _target(self, pair: Pair) -> tuple[Target, np.ndarray]:
        """The truth of an image, and the ids (K,) of its instances."""
        ids, ignore = read_ids(pair.mask, self.reading)
        if pair.classes is None:
            ids = instances_of(pair.mask, ids, self.reading)
        labels, present = relabel(ids)
        target = Target(
            torch.from_numpy(labels),
            torch.tensor(self._classes(pair, present.tolist()), dtype=torch.int64),
            torch.from_numpy(ignore),
        )
        return target, present

    def _classes(self, pair: Pair, present: Sequence[int]) -> list[int]:
        """Class index of each id; the table and the mask must name the same ids."""
        if pair.classes is None:
            return [0] * len(present)
        for unmatched, where in (
            (set(present) - set(pair.classes), "is in the mask but has no class in classes.csv"),
            (set(pair.classes) - set(present), "has a class in classes.csv but is not in the mask"),
        ):
            if unmatched:
                what = f"{pair.mask}: id {min(unmatched)} {where} ({len(unmatched)} such)"
                remedy = (
                    "let classes.csv name every id of every mask once; where parts have images "
                )
                remedy += "of one name, as train/NAME and val/NAME"
                raise SpatialEmbedError("unknown_id", what, remedy)
        return [self.class_names.index(pair.classes[i]) for i in present]


def read_ids(path: Path, reading: DataOptions) -> tuple[np.ndarray, np.ndarray]:
    """Ids (H, W) of a mask as stored, void as background; and void (H, W) bool."""
    ids = read_labels(path, max_pixels=reading.max_pixels)
    void = np.zeros(ids.shape, bool) if reading.ignore_id is None else ids == reading.ignore_id
    return np.where(void, 0, ids), void


def instances_of(path: Path, ids: np.ndarray, reading: DataOptions) -> np.ndarray:
    """Ids (H, W) of instances: the single id 1 or 255 in several parts is mere foreground.

    Raises SpatialEmbedError: binary_mask, label_scheme.
    """
    _, present = relabel(ids)
    if not reading.plain_ids and (scheme := _scheme_of(present)) is not None:
        raise SpatialEmbedError(
            "label_scheme",
            f"{path}: its {len(present)} ids, {present[0]} to {present[-1]}, look like {scheme}",
            "name the class of each id in classes.csv, or take them as numbers with --plain-ids",
        )
    if len(present) != 1 or present[0] not in (1, 255):
        return ids
    parts, count = measure.label(ids, connectivity=2, return_num=True)
    if count < 2:
        return ids
    if not reading.split_components:
        raise SpatialEmbedError(
            "binary_mask",
            f"{path}: {count} parts share the id {present[0]}: foreground, not instances",
            "give each instance its own id, or take each part as one with --split-components",
        )
    return parts


def _scheme_of(ids: np.ndarray) -> str | None:
    """How ids (K,), ascending, seem to hold a class as well; None for mere numbers.

    Cityscapes writes 24000 to 33999 for things and up to 33 for all else, which would become
    instances too. Others write 1000 times the class plus a number from 0 or 1 on.
    """
    kind, number = np.divmod(ids, 1000)
    low = ids[kind == 0]
    things = (kind[kind > 0] >= 24) & (kind[kind > 0] <= 33)
    if len(low) and low[-1] <= 33 and len(things) and things.all():
        return "those of Cityscapes (1000 x class + number, and classes)"
    if len(low) or not len(ids):
        return None
    first = np.flatnonzero(np.diff(kind, prepend=-1))  # (B,) where each class begins
    last = np.append(first[1:], len(ids)) - 1
    gapless = number[last] - number[first] == last - first
    numbered = gapless.all() and (number[first] <= 1).all() and (number[last] < 999).all()
    return "1000 x class + number" if len(first) > 1 and numbered else None


# ---------------------------------------------------------------- opening


def splits(path: str | Path) -> tuple[str, ...]:
    """Those of train, val, test that are folders of ``path`` with images; () for a flat layout."""
    return tuple(split for split in SPLITS if (Path(path) / split / "images").is_dir())


def open_folder(
    path: str | Path, *, split: Split | None = None, reading: DataOptions = DataOptions()
) -> FolderDataset:
    """Open a folder of images/ and masks/: pair them by name and read the tables, but no image.

    Args:
        path: The folder.
        split: "train", "val" or "test": its part of that name; None: the folder itself.
        reading: How files are read: missing partners, masks of one id, size limits and so on.

    Returns:
        A data set whose items are ``Sample``s.

    Raises:
        SpatialEmbedError: ``not_found``, ``no_split``, ``no_layout``, ``no_images``,
            ``duplicate_name``, ``missing_pairs``, ``bad_table``.
    """
    top = Path(path)
    root = _root(top, split)
    images, masks = by_name(root / "images"), by_name(root / "masks")
    if not images:
        raise SpatialEmbedError("no_images", f"{root / 'images'}: no image in it", "put some there")
    names = paired(root, images, masks, "mask", reading.allow_missing)
    table = find_table(top, root, "classes.csv")
    classes = read_classes(table)
    if classes and root == top:
        check_names(table, classes, images)
    rows = read_index(index := find_table(top, root, "index.csv"))
    if rows and not any(of_image(rows, split, name) for name in names):
        what = "%s: none of its names, such as %r, is the name of an image, such as %r"
        logger.warning(what, index, next(iter(rows)), names[0])
    pairs = [
        Pair(
            name,
            images[name],
            masks[name],
            None if classes is None else of_image(classes, split, name),
            of_image(rows, split, name),
        )
        for name in names
    ]
    class_names = ("object",) if classes is None else names_of(classes)
    return FolderDataset(pairs, class_names, reading)


def _root(top: Path, split: Split | None) -> Path:
    """The folder that holds images/ and masks/."""
    if not top.is_dir():
        what = "not a folder" if top.exists() else "no such folder"
        remedy = convert_remedy(top) or "name one with images/ and masks/"
        raise SpatialEmbedError("not_found", f"{top}: {what}", remedy)
    there = splits(top)
    if split in there:
        if not (top / split / "masks").is_dir() and (remedy := convert_remedy(top)):
            what = f"{top / split}: no folder masks/ in it"
            raise SpatialEmbedError("no_layout", what, remedy)
        return top / split
    if split is not None:
        remedy = f"it has {', '.join(there)}" if there else f"make {split}/images and {split}/masks"
        raise SpatialEmbedError("no_split", f"{top}: no folder {split}/images", remedy)
    if missing := next((name for name in ("images", "masks") if not (top / name).is_dir()), None):
        remedy = f"name one of its parts: {', '.join(there)}" if there else f"make {top / missing}"
        if tables := sorted(top.glob("*.json")):
            remedy = f"for COCO annotations name their file: {tables[0]}"
        remedy = convert_remedy(top) or remedy
        raise SpatialEmbedError("no_layout", f"{top}: no folder {missing}/ in it", remedy)
    return top
