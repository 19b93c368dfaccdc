"""A whole data set as it is, before any training: pairs, faults and measures. Stops at no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from spatialembed.console import track
from spatialembed.data.folder import of_image, splits
from spatialembed.data.label_checks import LabelFault, label_faults
from spatialembed.data.tables import find_table, read_classes, read_index
from spatialembed.doctor.near_duplicates import Duplicate, near_duplicates
from spatialembed.doctor.probe import Fault, MaskFacts, Pair, Reading, fault_of, probe
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.listing import image_files, is_result

T = TypeVar("T")
ALIASES = ("image", "img", "imgs", "raw", "mask", "label", "labels", "annotations", "ground_truth")
"""Names that people give to images/ and masks/."""
GROUP_NAMES = (
    "group", "mosaic", "patient", "case", "subject", "donor", "specimen", "animal", "slide",
    "section", "plate", "well", "field", "site", "stack", "video", "sequence", "scene", "city",
    "source", "image_group",
)  # fmt: skip
"""Names that such columns often have."""


@dataclass(frozen=True)
class Survey:
    """What was found in a data set."""

    root: Path
    splits: tuple[str, ...]  # of train, val, test; ("",) for a flat layout
    pairs: tuple[Pair, ...]
    faults: tuple[Fault, ...]  # of pairs, tables and files, in this order
    images_alone: tuple[Path, ...]  # without mask
    masks_alone: tuple[Path, ...]  # without image
    class_names: Mapping[str, tuple[str, ...]]  # by split; empty without classes.csv
    near_duplicates: tuple[Duplicate, ...]
    reading: Reading

    @property
    def layout(self) -> str:
        """In words."""
        where = "images/ and masks/"
        return where if self.splits == ("",) else f"{where} under {', '.join(self.splits)}"

    @cached_property
    def measured(self) -> tuple[Pair, ...]:
        """Pairs whose masks could be read."""
        return tuple(pair for pair in self.pairs if pair.mask is not None)

    def masks(self, split: str | None = None) -> dict[str, MaskFacts]:
        """Masks that could be read by the name of their image, of one part or of all."""
        pairs = [pair for pair in self.measured if split in (None, pair.split)]
        return {pair.name: pair.mask for pair in pairs if pair.mask is not None}

    @cached_property
    def labelled(self) -> tuple[Pair, ...]:
        """Pairs whose masks the readers take for instances."""
        return tuple(pair for pair in self.measured if not pair.faults)

    @cached_property
    def label_faults(self) -> list[LabelFault]:
        """Why masks hold no instances; their ``masks`` are places in ``labelled``."""
        return label_faults(pair.mask.labels for pair in self.labelled if pair.mask is not None)

    def short(self, text: object) -> str:
        """A message, the paths in it within the data set."""
        return str(text).replace(f"{self.root}/", "")

    def all(self, measure: str) -> np.ndarray:
        """(K,) or (K, .) one measure of every object, a field or property of ``Objects``."""
        values = [getattr(pair.objects, measure) for pair in self.measured]
        return np.concatenate(values) if values else np.zeros(0)

    @property
    def counts(self) -> np.ndarray:
        """(I,) objects in each image that could be read."""
        return np.array([len(mask.objects) for mask in self.masks().values()], np.int64)

    @property
    def touching_pairs(self) -> int:
        """Pairs of objects that touch."""
        return sum(mask.objects.touching_pairs for mask in self.masks().values())

    @property
    def concentric_pairs(self) -> int:
        """Pairs of objects whose centroids cannot be separated."""
        return sum(mask.objects.concentric_pairs for mask in self.masks().values())

    @property
    def has_validation(self) -> bool:
        """Whether training finds images to validate on, or is free to choose them."""
        return self.splits == ("",) or {"train", "val"} <= set(self.splits)

    def group_columns(self) -> tuple[str, ...]:
        """Columns of index.csv that may show which images belong together, likeliest first.

        Such a column is filled for every image, has fewer values than images, and says nothing
        that the image itself does: not its size, not its number of objects.
        """
        rows = [pair.row for pair in self.pairs]
        found = []
        for column in rows[0] if rows else ():
            values = [row.get(column, "") for row in rows]
            if all(values) and 1 < len(set(values)) < len(values) and not self._measured(column):
                found.append((column.lower() not in GROUP_NAMES, -len(set(values)), column))
        return tuple(column for *_, column in sorted(found))

    def _measured(self, column: str) -> bool:
        """Whether a column holds height, width or number of objects of most of the images."""
        hits = np.zeros(3)
        for pair in self.measured:
            if pair.mask is not None:
                facts = (*pair.mask.size_hw, len(pair.mask.objects))
                hits += [pair.row.get(column) == str(fact) for fact in facts]
        return bool(hits.max() > len(self.measured) / 2)

    def classes_area(self) -> dict[str, tuple[int, int]]:
        """Objects and pixels of each class, names sorted; empty without classes.csv."""
        total: dict[str, tuple[int, int]] = {
            name: (0, 0) for names in self.class_names.values() for name in names
        }
        for pair in self.measured:
            if pair.mask is None or pair.classes is None:
                continue
            areas = zip(pair.mask.objects.ids.tolist(), pair.mask.objects.area, strict=True)
            for number, area in areas:
                if (name := pair.classes.get(number)) is not None:
                    objects, pixels = total.get(name, (0, 0))
                    total[name] = (objects + 1, pixels + int(area))
        return dict(sorted(total.items()))


def survey(
    path: str | Path,
    reading: Reading,
    *,
    progress: bool = True,
) -> Survey:
    """Read every pair of a data set, one at a time, and measure it; a broken file is a finding.

    path: a folder with images/ and masks/, flat or under train/, val/, test/.

    Raises SpatialEmbedError: not_found, no_layout, no_images.
    """
    root = Path(path)
    names = splits(root) or ("",)
    if names == ("",):
        _check_layout(root)
    listed = [_list(root, split) for split in names]
    if not any(part.pairs or part.images_alone for part in listed):
        raise SpatialEmbedError("no_images", f"{root}: no image in it", "put some into images/")
    found = [pair for part in listed for pair in part.pairs]
    pairs = [probe(pair, reading) for pair in track(found, "reading", shown=progress)]
    faults = [fault for part in listed for fault in part.faults]
    faults += [fault for pair in pairs for fault in pair.faults]
    return Survey(
        root=root,
        splits=names,
        pairs=tuple(pairs),
        faults=tuple(dict.fromkeys(faults)),  # a table beside train/ and val/ is read for each
        images_alone=tuple(path for part in listed for path in part.images_alone),
        masks_alone=tuple(path for part in listed for path in part.masks_alone),
        class_names={p.split: p.class_names for p in listed if p.class_names is not None},
        near_duplicates=tuple(near_duplicates(pairs)),
        reading=reading,
    )


# ---------------------------------------------------------------- which files belong together


@dataclass(frozen=True)
class _Part:
    """One folder with images/ and masks/, listed but not read."""

    split: str
    pairs: Sequence[Pair]
    faults: Sequence[Fault]
    images_alone: Sequence[Path]
    masks_alone: Sequence[Path]
    class_names: tuple[str, ...] | None


def _check_layout(root: Path) -> None:
    """Refuse what holds no images/ and masks/, naming what it holds instead."""
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        remedy = "name one with images/ and masks/; COCO files are not looked at"
        raise SpatialEmbedError("not_found", f"{root}: {what}", remedy)
    missing = [name for name in ("images", "masks") if not (root / name).is_dir()]
    if not missing:
        return
    inside = sorted(entry.name for entry in root.iterdir())
    other = [name for name in inside if name.lower() in ALIASES]
    remedy = f"rename {', '.join(other)}" if other else f"make {' and '.join(missing)}"
    if {"gtFine", "leftImg8bit"} & set(inside):
        remedy = "train and evaluate take a Cityscapes root as it is; the doctor needs masks"
    if any(name.endswith(".json") for name in inside) and not other:
        remedy = "a COCO data set? train and evaluate take its JSON file; the doctor needs masks"
    raise SpatialEmbedError(
        "no_layout", f"{root}: no folder {' and no folder '.join(missing)} in it", remedy
    )


def _list(root: Path, split: str) -> _Part:
    """Pair the files of one part by name, and read its tables; a broken one counts for none."""
    at = root / split
    faults: list[Fault] = []
    images, masks = (_by_name(at / kind, faults) for kind in ("images", "masks"))
    both = sorted(images.keys() & masks.keys())
    path = find_table(root, at, "classes.csv") if both else None
    classes = _read(read_classes, path, faults)
    rows = (_read(read_index, find_table(root, at, "index.csv"), faults) if both else None) or {}
    if classes and not split and (unknown := sorted(classes.keys() - images.keys())):
        message = f"{path}: no image is named {unknown[0]!r} ({len(unknown)} such names)"
        faults.append(Fault("bad_table", message, "correct the names"))
    front = f"{split}/" if split else ""
    pairs = [
        Pair(
            front + name,
            split,
            images[name],
            masks[name],
            classes=None if classes is None else of_image(classes, split, name),
            row=of_image(rows, split, name),
        )
        for name in both
    ]
    named = {name for by_id in (classes or {}).values() for name in by_id.values()}
    return _Part(
        split,
        pairs,
        faults,
        [images[name] for name in sorted(images.keys() - masks.keys())],
        [masks[name] for name in sorted(masks.keys() - images.keys())],
        None if classes is None else tuple(sorted(named)),
    )


def _by_name(folder: Path, faults: list[Fault]) -> dict[str, Path]:
    """Files by name without suffix; of two of one name the first is taken and the other noted.

    Results of an earlier run are left out, as training leaves them out.
    """
    found: dict[str, Path] = {}
    for path in image_files(folder):
        if is_result(path):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if (first := found.setdefault(name, path)) != path:
            message = f"{path}: {first.name} has the same name"
            faults.append(Fault("duplicate_name", message, "keep one"))
    return found


def _read(
    reader: Callable[[Path | None], T | None], path: Path | None, faults: list[Fault]
) -> T | None:
    try:
        return reader(path)
    except SpatialEmbedError as error:
        faults.append(fault_of(error))
        return None
