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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from spatialembed.data.cityscapes_ids import IDS, NUMBERED, VOID
from spatialembed.data.dataset import SPLITS, Split, read_sample
from spatialembed.data.pairing import by_name, paired
from spatialembed.errors import USAGE, SpatialEmbedError, nearest
from spatialembed.images.read import read_labels
from spatialembed.options import DataOptions
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


@dataclass(frozen=True, eq=False)
class CityscapesDataset:
    """Street scenes with their instances, read when indexed; made by ``open_cityscapes``."""

    frames: Sequence[_Frame]
    class_names: tuple[str, ...]
    groups: Groups = "ignore"
    reading: DataOptions = DataOptions()

    @property
    def names(self) -> list[str]:
        """CITY/FRAME of each image, in the order of the data set."""
        return [frame.name for frame in self.frames]

    def image_path(self, i: int) -> Path:
        """Path of the file of image ``i``."""
        return self.frames[i].image

    def ids_path(self, i: int) -> Path:
        """Path of the file of ids of image ``i``."""
        return self.frames[i].ids

    def index_row(self, i: int) -> Mapping[str, str]:
        """The column "city", by which images can be grouped."""
        return {"city": self.frames[i].image.parent.name}

    def subset(self, indices: Iterable[int]) -> CityscapesDataset:
        """The images of these indices, in their order."""
        return replace(self, frames=[self.frames[i] for i in indices])

    def with_classes(self, names: Sequence[str]) -> CityscapesDataset:
        """The same images, with these classes alone. Raises as ``choose_classes`` does."""
        return replace(self, class_names=choose_classes(names))

    def with_groups(self, groups: Groups) -> CityscapesDataset:
        """The same images, their groups taken so."""
        return replace(self, groups=groups)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> Sample:
        """Image ``i`` with its truth; the ids of the sample are those of the file.

        Raises SpatialEmbedError as ``read_image`` and ``read_labels`` do, and: oriented_image,
        size_mismatch, label_scheme.
        """
        frame = self.frames[i]
        partner = f"file of ids {frame.ids}"
        return read_sample(frame.image, frame.name, self._target(i), partner, self.reading)

    def truth(self, i: int) -> Target:
        """The truth of image ``i``; the image is not read."""
        return self._target(i)[0]

    def instance_ids(self, i: int) -> np.ndarray:
        """(H, W) int32 ids of image ``i`` as they are stored, groups and void too."""
        return read_labels(self.frames[i].ids, max_pixels=self.reading.max_pixels)

    def _target(self, i: int) -> tuple[Target, np.ndarray]:
        return self._meaning.target(self.instance_ids(i), self.frames[i].ids)

    @cached_property
    def _meaning(self) -> _Meaning:
        return _Meaning(self.class_names, self.groups)


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
    if unknown := [name for name in names or [""] if name not in IDS]:
        near = nearest(unknown[0], tuple(IDS))
        remedy = f"did you mean {near!r}?" if near else f"there are {', '.join(IDS)}"
        what = f"{unknown[0]!r} is not a class of Cityscapes"
        raise SpatialEmbedError("unknown_class", what, remedy, USAGE)
    return tuple(name for name in IDS if name in names)


def open_cityscapes(
    root: str | Path,
    *,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
    groups: Groups = "ignore",
    reading: DataOptions = DataOptions(),
) -> CityscapesDataset:
    """Open a Cityscapes root: pair images with files of ids by name; no image is read.

    In the test part of the benchmark the files of ids hold void only: it can be opened, but has no
    instance.

    Args:
        root: The folder of leftImg8bit/ and gtFine/.
        split: "train", "val" or "test"; None: train and val together.
        classes: Names of classes, in any order; None: all eight.
        groups: "ignore" or "background": the meaning of a class id without number in the loss.
        reading: How files are read: missing partners and the size limit.

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
        part = split or "train"
        half = next((f for f in (IMAGES, TRUTH) if not (top / f / part).is_dir()), IMAGES)
        remedy = f"it has {', '.join(there)}" if there else f"unpack {half}_trainvaltest.zip there"
        raise SpatialEmbedError("no_split", f"{top}: no folder {half}/{part}", remedy)
    frames = []
    for part in wanted:
        prefix = "" if split else f"{part}/"
        frames += _frames(top, part, prefix, reading.allow_missing)
    return CityscapesDataset(frames, class_names, groups, reading)


def _check_layout(top: Path) -> None:
    if not top.is_dir():
        what = "not a folder" if top.exists() else "no such folder"
        raise SpatialEmbedError("not_found", f"{top}: {what}", "name the root of Cityscapes")
    if missing := next((f for f in (IMAGES, TRUTH) if not (top / f).is_dir()), None):
        remedy = f"unpack {missing}_trainvaltest.zip of the Cityscapes download there"
        raise SpatialEmbedError("no_layout", f"{top}: no folder {missing}/ in it", remedy)


def _frames(top: Path, split: str, prefix: str, allow_missing: bool) -> list[_Frame]:
    """Images of a part with their files of ids, sorted by name."""
    images = by_name(top / IMAGES / split, IMAGE_END)
    ids = by_name(top / TRUTH / split, IDS_END)
    if not images:
        what = f"{top / IMAGES / split}: no CITY/*{IMAGE_END} in it"
        raise SpatialEmbedError("no_images", what, f"unpack {IMAGES}_trainvaltest.zip there")
    if not ids:
        # csCreateTrainIdInstanceImgs makes others; only json2instanceImg those that are needed.
        remedy = f"unpack {TRUTH}_trainvaltest.zip again, which holds them"
        if any((top / TRUTH / split).rglob("*_gtFine_polygons.json")):
            remedy += (
                "; or make each of its polygons with json2instanceImg of cityscapesScripts, "
                "which needs Pillow below 13"
            )
        what = f"{top / TRUTH / split}: no CITY/*{IDS_END} in it"
        raise SpatialEmbedError("missing_pairs", what, remedy)
    names = paired(top, images, ids, "file of ids", allow_missing)
    return [_Frame(prefix + name, images[name], ids[name]) for name in names]
