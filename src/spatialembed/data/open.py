"""Which images ``--data`` means: in which layout, and of it a part, a side of the split, or all."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from spatialembed.console import printable
from spatialembed.data import cityscapes, folder
from spatialembed.data.cityscapes import CityscapesDataset, Groups, open_cityscapes
from spatialembed.data.coco import CocoDataset, open_coco
from spatialembed.data.dataset import Dataset, FileDataset, Split
from spatialembed.data.folder import FolderDataset, open_folder
from spatialembed.data.splitting import SplitRecord, split_dataset
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.options import DataOptions, PartOptions

logger = logging.getLogger("spatialembed")

Layout = Literal["folder", "coco", "cityscapes"]


def data_name(path: str | Path) -> str:
    """What runs and reports call a data set: its folder, or its file without suffix, as text."""
    name = os.path.basename(os.path.realpath(path)) or "data"
    name = name[: -len(".json")] if name.lower().endswith(".json") else name
    return os.fsencode(name).decode("utf-8", "replace")


def layout_of(path: str | Path) -> Layout:
    """A Cityscapes root has leftImg8bit/ and gtFine/, COCO instances are a file .json.

    All else counts as a folder of images/ and masks/, whose reader reports what is missing.
    Raises SpatialEmbedError ``no_layout`` for a part of a Cityscapes root.
    """
    path = Path(path)
    if path.suffix.lower() == ".json" and not path.is_dir():
        return "coco"
    has_own = any((path / name).is_dir() for name in ("images", "masks"))
    if has_own or folder.splits(path):
        return "folder"
    if cityscapes.is_cityscapes(path):
        return "cityscapes"
    halves = (cityscapes.IMAGES, cityscapes.TRUTH)
    if root := next((p.parent for p in (path, *path.parents) if p.name in halves), None):
        what = f"{path}: a part of a Cityscapes root"
        raise SpatialEmbedError("no_layout", what, f"name the root: {root}")
    return "folder"


def described(path: str | Path, *parts: Dataset) -> str:
    """A line about the data at ``path``: its layout, images of each part, classes."""
    layout = {"folder": "images and masks", "coco": "COCO instances", "cityscapes": "Cityscapes"}
    images = " + ".join(str(len(part)) for part in parts)
    names = parts[0].class_names
    classes = f"{len(names)} classes" if len(names) > 8 else ", ".join(names)
    return f"{data_name(path)}: {layout[layout_of(path)]}, {images} images, {classes}"


def splits(path: str | Path) -> tuple[str, ...]:
    """Those of train, val, test that a data set comes in; () for one without parts."""
    layout = layout_of(path)
    if layout == "cityscapes":
        return cityscapes.splits(path)
    return folder.splits(path) if layout == "folder" else ()


def open_data(
    path: str | Path,
    *,
    split: Split | None = None,
    classes: str | None = None,
    groups: Groups = "ignore",
    reading: DataOptions = DataOptions(),
) -> FileDataset:
    """Open a folder of images/ and masks/, a .json file of COCO instances, or a Cityscapes root.

    Only tables and file names are read; images are read when they are indexed.

    Args:
        path: The folder, file or root.
        split: "train", "val" or "test": that part of it. A COCO file has none; None: the whole.
        classes: Cityscapes only: names of classes with commas between; None: all eight.
        groups: Cityscapes only: "ignore" or "background", the meaning of groups in the loss.
        reading: How files are read: missing partners, masks of one id, size limits and so on.

    Returns:
        A data set whose items are ``Sample``s.

    Raises:
        SpatialEmbedError: As ``open_folder``, ``open_coco`` and ``open_cityscapes``; ``no_split``
            for a part of a COCO file; ``bad_setting`` (exit 2) for settings of another layout.
    """
    layout = layout_of(path)
    if reading.ignore_id is not None and layout != "folder":
        what = f"{path}: ignore_id applies to folders of masks only"
        raise SpatialEmbedError("bad_setting", what, "leave it out", USAGE)
    if layout == "cityscapes":
        names = None if classes is None else [name.strip() for name in classes.split(",")]
        return open_cityscapes(path, split=split, classes=names, groups=groups, reading=reading)
    if classes is not None or groups != "ignore":
        what = f"{path}: classes and groups apply to Cityscapes only"
        raise SpatialEmbedError("bad_setting", what, "leave them out", USAGE)
    if layout == "folder":
        return open_folder(path, split=split, reading=reading)
    if split is not None:
        what, remedy = f"{path}: a file has no part {split!r}", "name the file of that part"
        raise SpatialEmbedError("no_split", what, remedy)
    return open_coco(path, reading=reading)


def select(options: PartOptions, record: SplitRecord | None = None) -> FileDataset:
    """Images with truth, to score or tune on; data is as ``open_data`` takes it.

    split: a subfolder where there is one of that name, otherwise the side that training learned
    from ("train") or held out ("val"): by the ``record`` of the model, or as a training with this
    val_fraction (0.2), group_by and seed (0) parts them, where one of the three is given or no
    image is in the record. group_by alone means "val". Without any of these, or with "all", all
    images of a flat data set are taken, without "all" those in the record left out; a logged line
    says which. A data set in parts is not taken as a whole.

    Raises SpatialEmbedError as ``open_data`` and ``split_dataset`` do, and: no_truth.
    """
    path, split = options.data, options.split
    there = splits(path)
    named = split if split in there and split != "all" else None
    if split in (None, "all") and len(there) > 1:
        what = f"{path}: it comes in parts, and none is named"
        remedy = f"add --split with one of {', '.join(there)}"
        raise SpatialEmbedError("no_split", what, remedy, USAGE)
    opened = named or ("test" if split == "test" else None)
    dataset = open_data(path, split=opened, reading=options)
    if split == "test":
        _refuse_hidden_truth(path, dataset)
    if named or split == "all":
        return dataset
    given = (options.val_fraction, options.seed) != (None, None)
    if options.group_by is None and not (split and given):
        if split is None and record is None:
            logger.info(
                "all %d images are taken: the model does not say which it was trained on; --split "
                "val takes those that training held out",
                len(dataset),
            )
            return dataset
        if record is not None and (side := _by_record(dataset, split, record)) is not None:
            return side
    fraction = 0.2 if options.val_fraction is None else options.val_fraction
    train, val = split_dataset(
        dataset, fraction=fraction, group_by=options.group_by, seed=options.seed or 0
    )
    return train if split == "train" else val


def _by_record(dataset: FileDataset, split: str | None, record: SplitRecord) -> FileDataset | None:
    """The side of a flat data set by the record; None where the record does not part it."""
    saw = record.saw(dataset)
    count = sum(saw)
    if split == "train" and count:
        return dataset.subset(i for i, seen in enumerate(saw) if seen)
    held_out = record.held_out(dataset) if count else dataset
    if split == "val" and count and not len(held_out):
        what = f"{count} of these {len(dataset)} images were trained on, and none was held out"
        raise SpatialEmbedError("bad_split", what, "add --split all, or give other images", USAGE)
    if not count or not len(held_out):
        return dataset if split is None else None  # how many were seen, the evaluation says
    if split is None:
        grouped = f" with their groups of {printable(record.group_by)}" if record.group_by else ""
        what = "%d of %d images were trained on and are left out%s: %d are taken; --split all takes"
        logger.info(f"{what} all", count, len(dataset), grouped, len(held_out))
    return held_out


def has_object(dataset: FileDataset) -> bool:
    """Whether the truth of any image has an object; as a rule that of the first one has."""
    return any(len(dataset.truth(i).classes) for i in range(len(dataset)))


def _refuse_hidden_truth(path: str | Path, dataset: FileDataset) -> None:
    """In the test part of the Cityscapes download the files of ids hold void only."""
    if isinstance(dataset, CityscapesDataset) and not has_object(dataset):
        what = f"{path}: its test part holds no instance; the benchmark withholds that truth"
        remedy = "add --split val; or predict with --format cityscapes, and submit upload.zip"
        raise SpatialEmbedError("no_truth", what, remedy)


def with_classes_of(of_model: Sequence[str], dataset: FileDataset) -> FileDataset:
    """The data set with the classes of the model in its order, by their names.

    Of a Cityscapes root those that the model knows; of any other data set all, which may be fewer
    than the model knows. One with another class, or of one class as the model, stays as it is.
    """
    ours, theirs = set(dataset.class_names), set(of_model)
    if isinstance(dataset, CityscapesDataset):
        return dataset.with_classes(of_model) if theirs <= ours else dataset
    if isinstance(dataset, (FolderDataset, CocoDataset)) and len(theirs) > 1 and ours <= theirs:
        return dataset.with_classes(of_model)
    return dataset


def for_scoring(dataset: FileDataset) -> FileDataset:
    """Groups are ignored in every evaluation, whatever the loss takes them for."""
    if isinstance(dataset, CityscapesDataset):
        return dataset.with_groups("ignore")
    return dataset


def check_classes(of_model: Sequence[str], dataset: Dataset) -> None:
    """Refuse a data set that is empty or of other classes than the model.

    Classes are compared by number; where there are several, their names and order count too.
    Raises SpatialEmbedError ``empty_dataset`` or ``class_mismatch``.
    """
    if not len(dataset):
        what = "the data set has no image"
        raise SpatialEmbedError("empty_dataset", what, "check the folder and the split")
    of_data = dataset.class_names
    if len(of_model) != len(of_data) or (len(of_data) > 1 and tuple(of_model) != tuple(of_data)):
        what = f"classes of the model: {', '.join(of_model)}; of the data set: {', '.join(of_data)}"
        remedy = "use data with the classes of the model, in its order"
        raise SpatialEmbedError("class_mismatch", what, remedy)
