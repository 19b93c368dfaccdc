"""A whole data set as it is, before any training: pairs, faults and measures. Stops at no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from spatialembed.console import track
from spatialembed.data.folder import splits
from spatialembed.data.label_checks import LabelFault, label_faults
from spatialembed.data.layouts.detect import convert_remedy
from spatialembed.data.pairing import by_name
from spatialembed.data.tables import (
    check_names,
    find_table,
    names_of,
    of_image,
    read_classes,
    read_index,
)
from spatialembed.doctor.channel_contrast import ChannelContrast, channel_contrast
from spatialembed.doctor.near_duplicates import Duplicate, near_duplicates
from spatialembed.doctor.probe import Fault, MaskFacts, Pair, fault_of, noted, probe
from spatialembed.errors import SpatialEmbedError
from spatialembed.options import DataOptions

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
    reading: DataOptions
    channels: ChannelContrast | None = None  # of images of several, where none was chosen

    @property
    def layout(self) -> str:
        """In words."""
        where = "images/ and masks/"
        return where if self.splits == ("",) else f"{where} under {', '.join(self.splits)}"

    @cached_property
    def measured(self) -> list[tuple[Pair, MaskFacts]]:
        """Pairs whose masks could be read."""
        return [(pair, pair.mask) for pair in self.pairs if pair.mask is not None]

    @cached_property
    def labelled(self) -> list[tuple[Pair, MaskFacts]]:
        """Those that training takes: no reader finds a fault in image or mask."""
        return [(pair, mask) for pair, mask in self.measured if not pair.faults]

    def masks(self, part: str | None = None) -> dict[str, MaskFacts]:
        """Masks that could be read by the name of their image, of one part or of all."""
        return {p.name: mask for p, mask in self.measured if part in (None, p.split)}

    @cached_property
    def label_faults(self) -> list[LabelFault]:
        """Why masks hold no instances; their ``masks`` are places in ``labelled``."""
        return label_faults(mask.labels for _, mask in self.labelled)

    def short(self, text: object) -> str:
        """A message, the paths in it within the data set."""
        return str(text).replace(f"{self.root}/", "")

    def all(self, measure: str, part: str | None = None) -> np.ndarray:
        """(K,) or (K, .) a field or property of ``Objects``, of the objects of a part or of all."""
        values = [getattr(mask.objects, measure) for mask in self.masks(part).values()]
        return np.concatenate(values) if values else np.zeros(0)

    @property
    def counts(self) -> np.ndarray:
        """(I,) objects in each image that could be read."""
        return np.array([len(mask.objects) for mask in self.masks().values()], np.int64)

    @property
    def covered(self) -> np.ndarray:
        """(I,) share of each image that objects cover, in [0, 1]."""
        return np.array([mask.covered for mask in self.masks().values()], np.float64)

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
        for pair, mask in self.measured:
            facts = (*mask.size_hw, len(mask.objects))
            hits += [pair.row.get(column) == str(fact) for fact in facts]
        return bool(hits.max() > len(self.measured) / 2)

    def classes_area(self) -> dict[str, tuple[int, int]]:
        """Objects and pixels of each class, names sorted; empty without classes.csv."""
        total = {name: (0, 0) for names in self.class_names.values() for name in names}
        for pair, mask in self.measured:
            ids, areas = mask.objects.ids.tolist(), mask.objects.area.tolist()
            for number, area in zip(ids, areas, strict=True):
                if (name := (pair.classes or {}).get(number)) is not None:
                    count, pixels = total[name]
                    total[name] = (count + 1, pixels + area)
        return dict(sorted(total.items()))


def survey(path: str | Path, reading: DataOptions, *, progress: bool = True) -> Survey:
    """Read every pair of a data set, one at a time, and measure it; a broken file is a finding.

    path: a folder with images/ and masks/, flat or under train/, val/, test/.

    Raises SpatialEmbedError: not_found, no_layout, no_images.
    """
    root = Path(path)
    names = check_layout(root)
    listing = _Listing(root)
    for split in names:
        listing.add(split)
    if not listing.pairs and not listing.images_alone:
        raise SpatialEmbedError("no_images", f"{root}: no image in it", "put some into images/")
    channels = channel_contrast(listing.pairs, reading)
    if channels is not None and channels.clear:
        reading = replace(reading, channel=channels.channel)
    pairs = [probe(pair, reading) for pair in track(listing.pairs, "reading", shown=progress)]
    faults = listing.faults + [fault for pair in pairs for fault in pair.faults]
    return Survey(
        root=root,
        splits=names,
        pairs=tuple(pairs),
        faults=tuple(dict.fromkeys(faults)),  # a table beside train/ and val/ is read for each
        images_alone=tuple(listing.images_alone),
        masks_alone=tuple(listing.masks_alone),
        class_names=listing.class_names,
        near_duplicates=tuple(near_duplicates(pairs)),
        reading=reading,
        channels=channels,
    )


def check_layout(root: Path) -> tuple[str, ...]:
    """Those of train, val, test that a data set comes in; ("",) for a flat one.

    Refuses what holds no images/ and masks/, naming what it holds instead: not_found, no_layout.
    """
    if parts := splits(root):
        bare = not any((root / part / "masks").is_dir() for part in parts)
        if bare and (remedy := convert_remedy(root, coco=True)):
            raise SpatialEmbedError("no_layout", f"{root}: no folder masks/ in its parts", remedy)
        return parts
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        remedy = "name one with images/ and masks/; COCO files are not looked at"
        remedy = convert_remedy(root, coco=True) or remedy
        raise SpatialEmbedError("not_found", f"{root}: {what}", remedy)
    missing = [name for name in ("images", "masks") if not (root / name).is_dir()]
    if not missing:
        return ("",)
    inside = sorted(entry.name for entry in root.iterdir())
    other = [name for name in inside if name.lower() in ALIASES]
    remedy = f"rename {', '.join(other)}" if other else f"make {' and '.join(missing)}"
    if {"gtFine", "leftImg8bit"} & set(inside):
        remedy = "train and evaluate take a Cityscapes root as it is; the doctor needs masks"
    if any(name.endswith(".json") for name in inside) and not other:
        remedy = "a COCO data set? train and evaluate take its JSON file; the doctor needs masks"
    remedy = convert_remedy(root, coco=True) or remedy
    what = f"{root}: no folder {' and no folder '.join(missing)} in it"
    raise SpatialEmbedError("no_layout", what, remedy)


class _Listing:
    """The files of a data set, part by part: paired by name, but not read; a table that is broken
    counts for none."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pairs: list[Pair] = []
        self.faults: list[Fault] = []
        self.images_alone: list[Path] = []
        self.masks_alone: list[Path] = []
        self.class_names: dict[str, tuple[str, ...]] = {}

    def add(self, split: str) -> None:
        """One folder with images/ and masks/."""
        at = self.root / split
        twice: list[SpatialEmbedError] = []
        images, masks = by_name(at / "images", twice=twice), by_name(at / "masks", twice=twice)
        self.faults += map(fault_of, twice)
        both = sorted(images.keys() & masks.keys())
        classes: dict[str, dict[int, str]] | None = None
        rows: dict[str, dict[str, str]] = {}
        if both:
            path = find_table(self.root, at, "classes.csv")
            with noted(self.faults):
                classes = read_classes(path)
            with noted(self.faults):
                rows = read_index(find_table(self.root, at, "index.csv"))
            with noted(self.faults):
                check_names(path, () if split else classes or (), images)
        self.pairs += [
            Pair(
                f"{split}/{name}" if split else name,
                split,
                images[name],
                masks[name],
                classes=None if classes is None else of_image(classes, split, name),
                row=of_image(rows, split, name),
            )
            for name in both
        ]
        self.images_alone += [images[name] for name in sorted(images.keys() - masks.keys())]
        self.masks_alone += [masks[name] for name in sorted(masks.keys() - images.keys())]
        if classes is not None:
            self.class_names[split] = names_of(classes)
