"""Folders of images and label masks, paired by name:

    DIR/images/a.png  DIR/masks/a.tif   or below DIR/train, DIR/val, DIR/test
    DIR/classes.csv   image,id,class    optional: the class of each id; without it all are "object"
    DIR/index.csv     id (or image),... optional: any columns, to split by group

Tables beside the parts name an image of several parts as train/NAME, val/NAME.

The name (key) of an image is its path below images/ without suffix.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from skimage import measure

from spatialembed.data.dataset import SPLITS, Split
from spatialembed.data.pairing import by_name, paired
from spatialembed.data.tables import find_table, read_classes, read_index
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.decode import read_bytes
from spatialembed.images.read import MAX_PIXELS, oriented, read_labels, read_oriented
from spatialembed.method.labels import relabel
from spatialembed.types import Sample, Target

logger = logging.getLogger("spatialembed")


K = TypeVar("K", int, str)


@dataclass(frozen=True)
class _Pair:
    """One image with its mask and its rows of the tables."""

    name: str
    image: Path
    mask: Path
    classes: Mapping[int, str] | None  # class name by id; None without classes.csv
    row: Mapping[str, str]  # its row of index.csv, empty without one


class FolderDataset:
    """Images with label masks, read when indexed; made by ``open_folder``."""

    def __init__(
        self,
        pairs: Sequence[_Pair],
        class_names: tuple[str, ...],
        split_components: bool,
        *,
        plain_ids: bool = False,
        ignore_id: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.class_names = class_names
        self._pairs = list(pairs)
        self._split_components = split_components
        self._plain_ids = plain_ids
        self._ignore_id = ignore_id
        self._max_pixels = max_pixels

    @property
    def names(self) -> list[str]:
        """Names of the images, in the order of the data set."""
        return [pair.name for pair in self._pairs]

    def image_path(self, i: int) -> Path:
        """Path of the file of image ``i``."""
        return self._pairs[i].image

    def index_row(self, i: int) -> Mapping[str, str]:
        """Row of index.csv of image ``i`` by column name, empty without that file."""
        return self._pairs[i].row

    def subset(self, indices: Iterable[int]) -> FolderDataset:
        """The images of these indices, in their order."""
        return FolderDataset(
            [self._pairs[i] for i in indices],
            self.class_names,
            self._split_components,
            plain_ids=self._plain_ids,
            ignore_id=self._ignore_id,
            max_pixels=self._max_pixels,
        )

    def with_classes(self, names: Sequence[str]) -> FolderDataset:
        """The same images, their classes numbered as in ``names``, which may hold more."""
        same = self.subset(range(len(self)))
        same.class_names = tuple(names)
        return same

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> Sample:
        """Image ``i`` with its truth: ids renumbered 1..K in ascending order.

        Raises SpatialEmbedError as ``read_image`` and ``read_labels`` do, and: size_mismatch,
        oriented_image, binary_mask, label_scheme, unknown_id.
        """
        pair = self._pairs[i]
        image, orientation = read_oriented(pair.image, max_pixels=self._max_pixels)
        if orientation != 1:
            raise oriented(pair.image, orientation, "mask does")
        ids = read_labels(pair.mask, max_pixels=self._max_pixels)
        if ids.shape != image.shape[:2]:
            raise SpatialEmbedError(
                "size_mismatch",
                f"{pair.image}: {_size(image)} px, its mask {pair.mask} {_size(ids)} px",
                "export both at one size",
            )
        target, present = self._target(pair, ids)
        return Sample(image, target, pair.name, present)

    def truth(self, i: int) -> Target:
        """The truth of image ``i``; the image is not read, so that its size is not compared."""
        pair = self._pairs[i]
        return self._target(pair, read_labels(pair.mask, max_pixels=self._max_pixels))[0]

    def truth_digest(self, i: int) -> bytes:
        """Hash of all that ``truth(i)`` follows from."""
        pair = self._pairs[i]
        told = (
            self.class_names,
            pair.classes,
            self._split_components,
            self._plain_ids,
            self._ignore_id,
        )
        return hashlib.sha256(read_bytes(pair.mask) + repr(told).encode()).digest()

    def _target(self, pair: _Pair, ids: np.ndarray) -> tuple[Target, np.ndarray]:
        """The truth that ids (H, W) are, and the ids (K,) of its instances."""
        ignore = np.zeros(ids.shape, bool) if self._ignore_id is None else ids == self._ignore_id
        ids = np.where(ignore, 0, ids) if ignore.any() else ids
        if pair.classes is None:
            ids = instances_of(pair.mask, ids, self._split_components, self._plain_ids)
        labels, present = relabel(ids)
        target = Target(
            torch.from_numpy(labels),
            torch.tensor(self._classes(pair, present.tolist()), dtype=torch.int64),
            torch.from_numpy(ignore),
        )
        return target, present

    def mask_ids(self, i: int) -> np.ndarray:
        """Ids (H, W) of the mask of image ``i`` as they are stored, those to be ignored as 0."""
        ids = read_labels(self._pairs[i].mask, max_pixels=self._max_pixels)
        return ids if self._ignore_id is None else np.where(ids == self._ignore_id, 0, ids)

    def _classes(self, pair: _Pair, present: Sequence[int]) -> list[int]:
        """Class index of each id; the table and the mask must name the same ids."""
        if pair.classes is None:
            return [0] * len(present)
        for unmatched, where in (
            (set(present) - set(pair.classes), "is in the mask but has no class in classes.csv"),
            (set(pair.classes) - set(present), "has a class in classes.csv but is not in the mask"),
        ):
            if unmatched:
                raise SpatialEmbedError(
                    "unknown_id",
                    f"{pair.mask}: id {min(unmatched)} {where} ({len(unmatched)} such)",
                    "let classes.csv name every id of every mask once; where parts have images of "
                    "one name, as train/NAME and val/NAME",
                )
        return [self.class_names.index(pair.classes[i]) for i in present]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"


def instances_of(
    path: Path, ids: np.ndarray, split_components: bool, plain_ids: bool = False
) -> np.ndarray:
    """Ids (H, W) of instances: the single id 1 or 255 in several parts is mere foreground.

    Raises SpatialEmbedError: binary_mask, label_scheme.
    """
    _, present = relabel(ids)
    if not plain_ids and (scheme := _scheme_of(present)) is not None:
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
    if not split_components:
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
    path: str | Path,
    *,
    split: Split | None = None,
    allow_missing: bool = False,
    split_components: bool = False,
    plain_ids: bool = False,
    ignore_id: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> FolderDataset:
    """Open a folder of images/ and masks/: pair them by name and read the tables, but no image.

    Args:
        path: The folder.
        split: "train", "val" or "test": its part of that name; None: the folder itself.
        allow_missing: Leave out images without mask and masks without image, instead of refusing.
        split_components: Take each connected part of a mask with one id as an instance (masks of 0
            and 255).
        plain_ids: Take ids that look like class x 1000 + number as mere numbers.
        ignore_id: An id whose pixels are neither object nor background: void.
        max_pixels: Limit of ``read_image``.

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
    names = paired(root, images, masks, "mask", allow_missing)
    classes = read_classes(find_table(top, root, "classes.csv"))
    rows = read_index(index := find_table(top, root, "index.csv"))
    if rows and not any(of_image(rows, split, name) for name in names):
        what = "%s: none of its names, such as %r, is the name of an image, such as %r"
        logger.warning(what, index, next(iter(rows)), names[0])
    pairs = [
        _Pair(
            name,
            images[name],
            masks[name],
            None if classes is None else of_image(classes, split, name),
            of_image(rows, split, name),
        )
        for name in names
    ]
    class_names = _class_names(root, top, classes, images)
    return FolderDataset(
        pairs,
        class_names,
        split_components,
        plain_ids=plain_ids,
        ignore_id=ignore_id,
        max_pixels=max_pixels,
    )


def of_image(table: Mapping[str, dict[K, str]], split: str | None, name: str) -> dict[K, str]:
    """Of a table beside the parts: train/a comes before a, which is one of several parts."""
    return table.get(f"{split}/{name}", table.get(name, {}))


def _class_names(
    root: Path,
    top: Path,
    classes: Mapping[str, dict[int, str]] | None,
    images: Mapping[str, Path],
) -> tuple[str, ...]:
    """Names of the classes in order of the alphabet; every image in the table must be there."""
    if classes is None:
        return ("object",)
    if root == top and (unknown := sorted(classes.keys() - images.keys())):
        raise SpatialEmbedError(
            "bad_table",
            f"{root / 'classes.csv'}: no image is named {unknown[0]!r}",
            "correct the name",
        )
    return tuple(sorted({name for by_id in classes.values() for name in by_id.values()}))


def _root(top: Path, split: Split | None) -> Path:
    """The folder that holds images/ and masks/."""
    if not top.is_dir():
        what = "not a folder" if top.exists() else "no such folder"
        raise SpatialEmbedError("not_found", f"{top}: {what}", "name one with images/ and masks/")
    there = splits(top)
    if split is not None:
        if split not in there:
            raise SpatialEmbedError(
                "no_split",
                f"{top}: no folder {split}/images",
                f"it has {', '.join(there)}" if there else f"make {split}/images and {split}/masks",
            )
        return top / split
    for name in ("images", "masks"):
        if not (top / name).is_dir():
            remedy = f"name one of its parts: {', '.join(there)}" if there else f"make {top / name}"
            if tables := sorted(top.glob("*.json")):
                remedy = f"for COCO annotations name their file: {tables[0]}"
            raise SpatialEmbedError("no_layout", f"{top}: no folder {name}/ in it", remedy)
    return top
