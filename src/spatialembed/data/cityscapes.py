"""Cityscapes: leftImg8bit/SPLIT/CITY/*_leftImg8bit.png with gtFine/.../*_gtFine_instanceIds.png.

What an id of the file becomes:

    26003   car number 3       an instance, if car is among the chosen classes
    26      a group of cars    ignored if cars are chosen; background by the setting ``groups``
    0..33   a region           ignored if the benchmark does not evaluate it (void)
    29001   caravan, trailer   background: to the benchmark only their groups, 29 and 30, are void
    others  at most 33999      background if a region or a class that is not chosen
    else                       refused: no id of Cityscapes

A licence plate, -1, is never drawn into these files. The file of ids alone is read, not the
polygons. Facts: the label table and the evaluator of cityscapesScripts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from spatialembed.data.cityscapes_ids import IDS, NUMBERED, VOID
from spatialembed.data.dataset import SPLITS, Split
from spatialembed.data.pairing import by_name, paired
from spatialembed.errors import USAGE, SpatialEmbedError, nearest
from spatialembed.images.decode import read_bytes
from spatialembed.images.read import MAX_PIXELS, oriented, read_labels, read_oriented
from spatialembed.types import Sample, Target

Groups = Literal["ignore", "background"]
IMAGES, TRUTH = "leftImg8bit", "gtFine"
"""Folders of a root; the downloads are leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip."""
IMAGE_END, IDS_END = "_leftImg8bit.png", "_gtFine_instanceIds.png"
HIGHEST = 33
"""The last class. 24 to 33 have numbered instances, caravan and trailer (29, 30) too."""
LIMIT = (HIGHEST + 1) * NUMBERED


class _Meaning:
    """What each id below LIMIT is."""

    def __init__(self, class_names: Sequence[str], groups: Groups) -> None:
        self.instance = np.zeros(LIMIT, bool)
        self.known = np.zeros(LIMIT, bool)
        self.known[: HIGHEST + 1] = self.known[min(IDS.values()) * NUMBERED :] = True
        self.ignored = np.zeros(LIMIT, bool)
        self.ignored[list(VOID)] = True
        self.class_of = np.zeros(HIGHEST + 1, np.int64)
        for c, name in enumerate(class_names):
            number = IDS[name]
            self.class_of[number] = c
            self.instance[number * NUMBERED : (number + 1) * NUMBERED] = True
            self.ignored[number] = groups == "ignore"

    def target(self, ids: np.ndarray, where: Path) -> tuple[Target, np.ndarray]:
        """The truth that ids (H, W), integers, are, and the ids (K,) int64 of its instances."""
        highest = int(ids.max())
        if highest >= LIMIT:
            present = strange = np.array([highest])
        else:
            present = np.flatnonzero(np.bincount(ids.ravel()))
            strange = present[~self.known[present]]
        if len(strange):
            raise SpatialEmbedError(
                "label_scheme",
                f"{where}: the id {strange[0]} is not one of Cityscapes",
                "give its gtFine_instanceIds files, neither train ids nor plain numbers",
            )
        present = present[self.instance[present]].astype(np.int64)
        number = np.zeros(LIMIT, np.int32)
        number[present] = np.arange(1, len(present) + 1)
        target = Target(
            torch.from_numpy(number[ids]),
            torch.from_numpy(self.class_of[present // NUMBERED]),
            torch.from_numpy(self.ignored[ids]),
        )
        return target, present


@dataclass(frozen=True)
class _Frame:
    """One image with its file of ids."""

    name: str
    image: Path
    ids: Path


class CityscapesDataset:
    """Street scenes with their instances, read when indexed; made by ``open_cityscapes``."""

    def __init__(
        self,
        frames: Sequence[_Frame],
        class_names: tuple[str, ...],
        groups: Groups = "ignore",
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.class_names = class_names
        self._frames = list(frames)
        self._groups: Groups = groups
        self._max_pixels = max_pixels
        self._meaning = _Meaning(class_names, groups)

    @property
    def names(self) -> list[str]:
        """CITY/FRAME of each image, in the order of the data set."""
        return [frame.name for frame in self._frames]

    def image_path(self, i: int) -> Path:
        """Path of the file of image ``i``."""
        return self._frames[i].image

    def ids_path(self, i: int) -> Path:
        """Path of the file of ids of image ``i``."""
        return self._frames[i].ids

    def index_row(self, i: int) -> Mapping[str, str]:
        """The column "city", by which images can be grouped."""
        return {"city": self._frames[i].image.parent.name}

    def subset(self, indices: Iterable[int]) -> CityscapesDataset:
        """The images of these indices, in their order."""
        frames = [self._frames[i] for i in indices]
        return CityscapesDataset(
            frames, self.class_names, self._groups, max_pixels=self._max_pixels
        )

    def with_classes(self, names: Sequence[str]) -> CityscapesDataset:
        """The same images, with these classes alone. Raises as ``choose_classes`` does."""
        classes = choose_classes(names)
        return CityscapesDataset(self._frames, classes, self._groups, max_pixels=self._max_pixels)

    def with_groups(self, groups: Groups) -> CityscapesDataset:
        """The same images, their groups taken so."""
        return CityscapesDataset(
            self._frames, self.class_names, groups, max_pixels=self._max_pixels
        )

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, i: int) -> Sample:
        """Image ``i`` with its truth; the ids of the sample are those of the file.

        Raises SpatialEmbedError as ``read_image`` and ``read_labels`` do, and: oriented_image,
        size_mismatch, label_scheme.
        """
        frame = self._frames[i]
        image, orientation = read_oriented(frame.image, max_pixels=self._max_pixels)
        if orientation != 1:
            raise oriented(frame.image, orientation, "file of ids does")
        ids = self.instance_ids(i)
        if image.shape[:2] != ids.shape:
            what = "{}: {}x{} px, its ids {} {}x{} px"
            raise SpatialEmbedError(
                "size_mismatch",
                what.format(frame.image, *image.shape[:2], frame.ids, *ids.shape),
                "use both as they were downloaded, or resize both",
            )
        target, present = self._meaning.target(ids, frame.ids)
        return Sample(image, target, frame.name, present)

    def truth(self, i: int) -> Target:
        """The truth of image ``i``; the image is not read."""
        return self._meaning.target(self.instance_ids(i), self._frames[i].ids)[0]

    def truth_digest(self, i: int) -> bytes:
        """Hash of all that ``truth(i)`` follows from."""
        told = (self.class_names, self._groups)
        return hashlib.sha256(read_bytes(self._frames[i].ids) + repr(told).encode()).digest()

    def instance_ids(self, i: int) -> np.ndarray:
        """(H, W) int32 ids of image ``i`` as they are stored, groups and void too."""
        return read_labels(self._frames[i].ids, max_pixels=self._max_pixels)


# ---------------------------------------------------------------- opening


def is_cityscapes(path: str | Path) -> bool:
    """Whether a folder is laid out as Cityscapes, or half of it is there."""
    return any((Path(path) / part).is_dir() for part in (IMAGES, TRUTH))


def splits(path: str | Path) -> tuple[str, ...]:
    """Those of train, val, test that have images and truth: folders under both parts of a root."""
    parts = (Path(path) / IMAGES, Path(path) / TRUTH)
    return tuple(split for split in SPLITS if all((part / split).is_dir() for part in parts))


def choose_classes(names: Sequence[str] | None) -> tuple[str, ...]:
    """The classes of these names in the order of the benchmark; None: all eight.

    Raises SpatialEmbedError ``unknown_class`` (exit 2).
    """
    if names is None:
        return tuple(IDS)
    for name in names:
        if name not in IDS:
            near = nearest(name, tuple(IDS))
            remedy = f"did you mean {near!r}?" if near else f"there are {', '.join(IDS)}"
            raise SpatialEmbedError(
                "unknown_class", f"{name!r} is not a class of Cityscapes", remedy, USAGE
            )
    if not names:
        raise SpatialEmbedError("unknown_class", "no class", f"there are {', '.join(IDS)}", USAGE)
    return tuple(name for name in IDS if name in names)


def open_cityscapes(
    root: str | Path,
    *,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
    groups: Groups = "ignore",
    allow_missing: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> CityscapesDataset:
    """Open a Cityscapes root: pair images with files of ids by name; no image is read.

    In the test part of the benchmark the files of ids hold void only: it can be opened, but has no
    instance.

    Args:
        root: The folder of leftImg8bit/ and gtFine/.
        split: "train", "val" or "test"; None: train and val together.
        classes: Names of classes, in any order; None: all eight.
        groups: "ignore" or "background": the meaning of a class id without number in the loss.
        allow_missing: Leave out images without ids and ids without image, instead of refusing.
        max_pixels: Limit of ``read_image``.

    Returns:
        A data set whose items are ``Sample``s.

    Raises:
        SpatialEmbedError: ``not_found``, ``no_layout``, ``no_split``, ``no_images``,
            ``missing_pairs``, ``unknown_class`` (exit 2).
    """
    top = Path(root)
    class_names = choose_classes(classes)
    _check_layout(top)
    there = splits(top)
    wanted = [split] if split else [part for part in ("train", "val") if part in there]
    if not set(wanted) <= set(there) or not wanted:
        raise _no_split(top, split, there)
    frames = []
    for part in wanted:
        prefix = "" if split else f"{part}/"
        frames += _frames(top, part, prefix, allow_missing)
    return CityscapesDataset(frames, class_names, groups, max_pixels=max_pixels)


def _check_layout(top: Path) -> None:
    if not top.is_dir():
        what = "not a folder" if top.exists() else "no such folder"
        raise SpatialEmbedError("not_found", f"{top}: {what}", "name the root of Cityscapes")
    for folder in (IMAGES, TRUTH):
        if not (top / folder).is_dir():
            raise SpatialEmbedError(
                "no_layout",
                f"{top}: no folder {folder}/ in it",
                f"unpack {folder}_trainvaltest.zip of the Cityscapes download there",
            )


def _no_split(top: Path, split: str | None, there: Sequence[str]) -> SpatialEmbedError:
    """Says which half of the part is missing."""
    wanted = split or "train"
    half = next((f for f in (IMAGES, TRUTH) if not (top / f / wanted).is_dir()), IMAGES)
    remedy = f"it has {', '.join(there)}" if there else f"unpack {half}_trainvaltest.zip there"
    return SpatialEmbedError("no_split", f"{top}: no folder {half}/{wanted}", remedy)


def _frames(top: Path, split: str, prefix: str, allow_missing: bool) -> list[_Frame]:
    """Images of a part with their files of ids, sorted by name."""
    images = by_name(top / IMAGES / split, IMAGE_END)
    ids = by_name(top / TRUTH / split, IDS_END)
    if not images:
        raise SpatialEmbedError(
            "no_images",
            f"{top / IMAGES / split}: no CITY/*{IMAGE_END} in it",
            f"unpack {IMAGES}_trainvaltest.zip there",
        )
    if not ids:
        raise _no_ids(top / TRUTH / split)
    names = paired(top, images, ids, "file of ids", allow_missing)
    return [_Frame(prefix + name, images[name], ids[name]) for name in names]


def _no_ids(folder: Path) -> SpatialEmbedError:
    """csCreateTrainIdInstanceImgs makes others: only json2instanceImg those that are asked for."""
    remedy = f"unpack {TRUTH}_trainvaltest.zip again, which holds them"
    if any(folder.rglob("*_gtFine_polygons.json")):
        remedy += (
            "; or make each of its polygons with json2instanceImg of cityscapesScripts, "
            "which needs Pillow below 13"
        )
    return SpatialEmbedError("missing_pairs", f"{folder}: no CITY/*{IDS_END} in it", remedy)
