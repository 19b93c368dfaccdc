"""COCO instances: a JSON file of annotations beside a folder of images.

Polygons and run lengths, plain and compressed, become label images. A crowd is ignored. Where
objects overlap, the smaller one is on top. Category ids become classes 0..C-1 in their order.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import Meta

from spatialembed.console import printable
from spatialembed.data.dataset import read_sample
from spatialembed.data.layouts.detect import convert_remedy
from spatialembed.data.pairing import find_image
from spatialembed.errors import SpatialEmbedError, missing_extra
from spatialembed.images.checks import check_size
from spatialembed.method import labels
from spatialembed.options import DataOptions
from spatialembed.types import Sample, Target

logger = logging.getLogger("spatialembed")
SHOWN_FAULTS = 10
"""So many broken annotations or missing images are named, the others are counted."""
DRAWN_BYTES = 1 << 28
"""Drawn truths are kept, packed, up to so many bytes in a process."""

# ---------------------------------------------------------------- the file

INT64 = 2**63 - 1
Id = Annotated[int, Meta(ge=-INT64, le=INT64)]
Side = Annotated[int, Meta(ge=1, le=INT64)]


class _RunLengths(msgspec.Struct):
    size: tuple[int, int]  # height, width
    counts: str | list[float]


class _ImageEntry(msgspec.Struct):
    id: Id
    file_name: str
    height: Side
    width: Side


class _Category(msgspec.Struct):
    id: Id
    name: str
    supercategory: Any = None


class _Entry(msgspec.Struct):
    id: Id
    image_id: Id
    category_id: Id
    segmentation: list[list[float]] | _RunLengths
    iscrowd: bool | Annotated[int, Meta(ge=0, le=1)] = 0
    area: Annotated[float, Meta(ge=0, le=INT64)] | None = None


class _File(msgspec.Struct):
    images: list[_ImageEntry]
    categories: list[_Category]
    annotations: list[Any]  # each an _Entry, of which all broken ones are named


# ---------------------------------------------------------------- the data set


@dataclass(frozen=True)
class Annotation:
    """One object, or a crowd, as in the file."""

    id: int
    class_index: int
    crowd: bool
    segmentation: list[list[float]] | _RunLengths  # polygons, or run lengths
    area: float | None  # px, by which COCO's evaluation sorts objects; None: not given


@dataclass(frozen=True)
class _Image:
    name: str  # file name without suffix
    path: Path
    size_hw: tuple[int, int]
    annotations: tuple[Annotation, ...]
    id: int


class _Drawn(dict[int, bytes]):
    """Truth by image id, packed, while there is room; shared by all parts of a data set."""

    room = DRAWN_BYTES


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """Images with the objects of a COCO file, read when indexed; made by ``open_coco``."""

    images: Sequence[_Image]
    class_names: tuple[str, ...]
    reading: DataOptions
    drawn: _Drawn = field(default_factory=_Drawn)
    missing: tuple[str, ...] = ()
    """Files of images that were left out, since they are not there."""

    @property
    def names(self) -> list[str]:
        """Names of the images, in the order of the data set."""
        return [image.name for image in self.images]

    def image_path(self, i: int) -> Path:
        """Path of the file of image ``i``."""
        return self.images[i].path

    def index_row(self, i: int) -> Mapping[str, str]:
        """Empty: no table goes with the file."""
        return {}

    def image_id(self, i: int) -> int:
        """Id of image ``i`` in the file."""
        return self.images[i].id

    def annotations(self, i: int) -> tuple[Annotation, ...]:
        """The annotations of image ``i``, crowds too, in the file's order; they may overlap."""
        return self.images[i].annotations

    def subset(self, indices: Iterable[int]) -> CocoDataset:
        """The images of these indices, in their order."""
        return replace(self, images=[self.images[i] for i in indices])

    def with_classes(self, names: Sequence[str]) -> CocoDataset:
        """The same images, their classes numbered as in ``names``, which may hold more."""
        number = [names.index(name) for name in self.class_names]
        images = []
        for image in self.images:
            those = (replace(a, class_index=number[a.class_index]) for a in image.annotations)
            images.append(replace(image, annotations=tuple(those)))
        return replace(self, images=images, class_names=tuple(names), drawn=_Drawn())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Sample:
        """Image ``i`` with its truth; the ids of the sample are those of the annotations.

        Raises SpatialEmbedError as ``read_image`` does, and: oriented_image, size_mismatch.
        """
        image = self.images[i]
        truth = self._target(image)
        return read_sample(image.path, image.name, truth, "annotations", self.reading)

    def truth(self, i: int) -> Target:
        """The truth of image ``i``; the image is not read, so that its size is not compared."""
        return self._target(self.images[i])[0]

    def _target(self, image: _Image) -> tuple[Target, np.ndarray]:
        """The truth of an image and the ids (K,) of its annotations, drawn once in a process."""
        if (packed := self.drawn.get(image.id)) is None:
            packed = zlib.compress(pickle.dumps(_draw(image)), 1)
            self.drawn.room -= len(packed)
            if self.drawn.room > 0:
                self.drawn[image.id] = packed
        numbers, classes, ignore, ids = pickle.loads(zlib.decompress(packed))
        return Target(*map(torch.from_numpy, (numbers, classes, ignore))), ids


def painted(objects: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """(H W,) int32, column-major: the number from 1 of the last object on each pixel.

    objects: their runs, each (R, 2).
    """
    drawn = np.zeros(height * width, np.int32)
    for number, runs in enumerate(objects, start=1):
        for start, end in runs.tolist():
            drawn[start:end] = number
    return drawn


def _draw(image: _Image) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The parts of the truth of an image, and the ids (K,) of its annotations.

    The larger objects are drawn first, so that the smaller ones stay whole. Time and memory go by
    the pixels of the image and the length of the outlines, not by pixels times objects.
    """
    height, width = image.size_hw
    crowds = np.zeros(height * width, bool)
    objects = []
    for annotation in image.annotations:
        runs = annotation_runs(annotation, height, width)
        if annotation.crowd:
            for start, end in runs.tolist():
                crowds[start:end] = True
        else:
            objects.append((int((runs[:, 1] - runs[:, 0]).sum()), annotation, runs))
    objects.sort(key=lambda o: -o[0])  # stable: of equal ones the later is on top
    drawn = painted((runs for *_, runs in objects), height, width)
    crowds &= drawn == 0  # an object before a crowd is known
    numbers, present = labels.relabel(drawn.reshape(width, height).T)
    seen = [objects[n - 1][1] for n in present]
    return (
        np.ascontiguousarray(numbers),
        np.array([a.class_index for a in seen], np.int64),
        np.ascontiguousarray(crowds.reshape(width, height).T),
        np.array([a.id for a in seen], np.int64),
    )


def annotation_runs(annotation: Annotation, height: int, width: int) -> np.ndarray:
    """(R, 2) int64: starts and ends of the runs of an object, as ``labels.decode_runs`` has them.

    Of an annotation that ``open_coco`` has taken.
    """
    what = annotation.segmentation
    if isinstance(what, list):
        return polygon_runs(what, height, width)
    if isinstance(what.counts, str):
        counts = what.counts
    else:
        runs = labels.runs_of_counts(np.array(what.counts), height * width)
        assert runs is not None, "open_coco has looked at it"
        return runs
    return labels.decode_runs({"size": [height, width], "counts": counts})


def polygon_runs(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """(R, 2) int64: the runs of polygons x1, y1, x2, y2, ... in px, as COCO draws them.

    Of polygons without ``fault_of_polygons``.
    """
    coco = _coco_mask()
    shapes = [list(map(float, polygon)) for polygon in polygons]
    counts = coco.merge(coco.frPyObjects(shapes, height, width))["counts"].decode("ascii")
    return labels.decode_runs({"size": [height, width], "counts": counts})


def _coco_mask() -> Any:
    """The mask functions of COCO, which define how a polygon becomes pixels."""
    try:
        from faster_coco_eval.core import mask
    except ModuleNotFoundError as error:
        raise missing_extra("faster-coco-eval", "coco", "reading COCO polygons") from error
    return mask


# ---------------------------------------------------------------- opening


def open_coco(
    path: str | Path,
    images: str | Path | None = None,
    *,
    reading: DataOptions = DataOptions(),
) -> CocoDataset:
    """Open a COCO instances file and check all its annotations; no image is read.

    Args:
        path: The file.
        images: Folder of the image files; None: ``images`` beside the file, or beside its folder
            ``annotations``, or the file's own folder; of instances_NAME.json also NAME in these
            places.
        reading: How files are read: missing images, crowds and the size limit.

    Returns:
        A data set whose items are ``Sample``s.

    Raises:
        SpatialEmbedError: ``not_found``, ``bad_json``, ``bad_annotation``, ``duplicate_name``,
            ``missing_pairs``, ``no_images``, ``too_large`` (exit 5).
    """
    path = Path(path)
    folders = _folders(path) if images is None else [Path(images)]
    file = _read(path)
    names = _class_names(path, file)
    sizes = {entry.id: (entry.height, entry.width) for entry in file.images}
    _refuse_twice(path, "images", [entry.id for entry in file.images])
    for number, (height, width) in sizes.items():  # before anything of that size is made
        check_size(f"{path}: image {number}", width, height, 1, reading.max_pixels)
    class_of = {number: c for c, number in enumerate(names)}
    annotations = _annotations(path, file, sizes, class_of, reading.crowd_as_objects)
    found, missing, taken = [], [], set()
    for entry in sorted(file.images, key=lambda entry: entry.file_name):
        inside, at = find_image(folders, entry.file_name) or (entry.file_name, None)
        name = os.path.splitext(inside)[0]
        if name in taken:
            raise SpatialEmbedError("duplicate_name", f"{path}: two images {name}", "keep one")
        taken.add(name)
        if at is not None:
            those = tuple(annotations[entry.id])
            found.append(_Image(name, at, sizes[entry.id], those, entry.id))
        else:
            missing.append(str(folders[0] / entry.file_name))
    if missing and not reading.allow_missing:
        raise SpatialEmbedError(
            "missing_pairs",
            f"{path}: {len(missing)} images are missing: {'; '.join(missing[:SHOWN_FAULTS])}",
            "add them, or leave them out with --allow-missing; data convert takes --images FOLDER",
        )
    if not found:
        raise SpatialEmbedError("no_images", f"{path}: none of its images exists", "add them")
    return CocoDataset(found, tuple(names.values()), reading, missing=tuple(missing))


def _folders(path: Path) -> list[Path]:
    """Where the images of a file may lie; those of instances_val2017.json in val2017/ too."""
    bases = [path.parent] + [path.parent.parent] * (path.parent.name == "annotations")
    folders = [path.parent / "images", path.parent] + [base / "images" for base in bases[1:]]
    part = path.stem.removeprefix("instances_")
    return [*folders, *(place / part for base in bases for place in (base / "images", base))]


def _read(path: Path) -> _File:
    if path.exists() and not path.is_file():  # a pipe has no end
        raise SpatialEmbedError("not_a_file", f"{path}: not a plain file", "name a file .json")
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SpatialEmbedError("not_found", f"{path}: no such file", "check the path") from None
    except (OSError, ValueError, RecursionError) as error:  # of UTF-8 as well as of JSON
        raise SpatialEmbedError(
            "bad_json", f"{path}: not JSON: {error}", "copy or export it again"
        ) from error
    try:
        return msgspec.convert(data, _File)
    except (msgspec.ValidationError, UnicodeError) as error:  # of a key that is no UTF-8
        what = f"{path}: not COCO instances: {error}"
        remedy = convert_remedy(path) or "copy or export it again"
        raise SpatialEmbedError("bad_json", what, remedy) from error


def _refuse_twice(path: Path, part: str, ids: Sequence[int]) -> None:
    for number, times in Counter(ids).most_common(1):
        if times > 1:
            what = f"{path}: {part}: the id {number} occurs twice"
            raise SpatialEmbedError("bad_json", what, "keep one")


def _class_names(path: Path, file: _File) -> dict[int, str]:
    """Names of the categories by their ids, in the order of these.

    Where some have an object, those that have none are no classes: COCO's own files name all 80,
    and Roboflow writes a parent above its classes.
    """
    _refuse_twice(path, "categories", [category.id for category in file.categories])
    loose = (e.get("category_id") for e in file.annotations if isinstance(e, dict))
    used = {number for number in loose if isinstance(number, int)}
    parents = {str(c.supercategory) for c in file.categories if c.supercategory != c.name}
    ids = {category.id for category in file.categories}
    names, unused = {}, []
    for category in sorted(file.categories, key=lambda category: category.id):
        if category.id in used or not (used & ids or category.name in parents):
            names[category.id] = category.name
        else:
            unused.append(category.name)
    if unused:
        shown = ", ".join(map(printable, unused[:SHOWN_FAULTS])) + ", ..." * (len(unused) > 10)
        what = "%s: %d of %d categories have no object and are no classes: %s"
        logger.warning(what, path, len(unused), len(file.categories), shown)
    told = all(name.isprintable() for name in names.values())
    if not names or not told or len(set(names.values())) < len(names):
        what = f"{path}: categories {list(names.values())}"
        raise SpatialEmbedError("bad_json", what, "name one or more classes, each in its own way")
    return names


def _annotations(
    path: Path,
    file: _File,
    sizes: Mapping[int, tuple[int, int]],
    class_of: Mapping[int, int],
    crowd_as_objects: bool,
) -> dict[int, list[Annotation]]:
    """Annotations by image id; all broken ones are reported at once."""
    found: dict[int, list[Annotation]] = {number: [] for number in sizes}
    taken: set[int] = set()
    faults: list[str] = []
    crowds = 0
    for n, loose in enumerate(file.annotations):
        number = loose.get("id") if isinstance(loose, dict) else None
        where = f"annotation {number}" if number is not None else f"entry {n} of annotations"
        try:
            entry = msgspec.convert(loose, _Entry)
        except (msgspec.ValidationError, UnicodeError) as error:  # of a key that is no UTF-8
            faults.append(f"{where}: {error}")
            continue
        if fault := _fault_of(entry, sizes, class_of, taken):
            faults.append(f"{where}: {fault}")
            continue
        taken.add(entry.id)
        crowds += entry.iscrowd
        crowd = bool(entry.iscrowd) and not crowd_as_objects
        annotation = Annotation(
            entry.id, class_of[entry.category_id], crowd, entry.segmentation, entry.area
        )
        found[entry.image_id].append(annotation)
    if faults:
        shown = "; ".join(faults[:SHOWN_FAULTS])
        more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise SpatialEmbedError(
            "bad_annotation", f"{path}: {shown}{more}", "correct or remove what is named"
        )
    if crowds and not crowd_as_objects:
        what = "%s: %d of %d annotations are crowds (iscrowd 1) and are ignored; if they are single"
        logger.warning(f"{what} objects, add --crowd-as-objects", path, crowds, len(taken))
    return found


def _fault_of(
    entry: _Entry,
    sizes: Mapping[int, tuple[int, int]],
    class_of: Mapping[int, int],
    taken: set[int],
) -> str:
    """The fault of an annotation of the right types; "": none."""
    if entry.id in taken:
        return "its id occurs twice"
    if entry.image_id not in sizes:
        return f"there is no image {entry.image_id}"
    if entry.category_id not in class_of:
        return f"there is no category {entry.category_id}"
    height, width = sizes[entry.image_id]
    if isinstance(entry.segmentation, list):
        return fault_of_polygons(entry.segmentation, height, width)
    return _fault_of_runs(entry.segmentation, height, width)


def fault_of_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> str:
    """Why polygons x1, y1, x2, y2, ... in px are not drawn; "": they are."""
    longest = 4 * height * width + 16 * (height + width)
    for xy in map(np.array, polygons):
        if len(xy) < 6 or len(xy) % 2 or not np.isfinite(xy).all():
            return "its polygons are not lists of three or more x, y"
        corners = xy.reshape(-1, 2)
        relative = corners / (width, height)
        if relative.min() < -1 or relative.max() > 2:
            return "a polygon far outside of the image"
        # Its outline is followed pixel by pixel, however long.
        if np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() > longest:
            return "a polygon whose outline is longer than all edges of the image's pixels"
    return "" if polygons else "it has no polygon"


def _fault_of_runs(rle: _RunLengths, height: int, width: int) -> str:
    if rle.size != (height, width):
        return f"its mask has the size {rle.size}"
    if isinstance(rle.counts, str):
        try:
            labels.decode_runs({"size": [height, width], "counts": rle.counts})
        except SpatialEmbedError as error:
            return error.message
    elif labels.runs_of_counts(np.array(rle.counts), height * width) is None:
        return "its run lengths do not add up to the image"
    return ""
