"""COCO instances: a JSON file of annotations beside a folder of images.

Polygons and run lengths, plain and compressed, become label images. A crowd is ignored. Where
objects overlap, the smaller one is on top. Category ids become classes 0..C-1 in their order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatialembed.errors import SpatialEmbedError, missing_extra
from spatialembed.images.checks import check_size
from spatialembed.images.read import MAX_PIXELS, oriented, read_oriented
from spatialembed.method import labels
from spatialembed.types import Sample, Target

logger = logging.getLogger("spatialembed")
SHOWN_FAULTS = 10
"""So many broken annotations are named, the others are counted."""
DRAWN_BYTES = 1 << 28
"""Drawn truths are kept, packed, up to so many bytes in a process."""


@dataclass(frozen=True)
class Annotation:
    """One object, or a crowd, as in the file."""

    id: int
    class_index: int
    crowd: bool
    segmentation: Any  # polygons, or run lengths {"size", "counts"}
    area: float | None = None  # px, by which COCO's evaluation sorts objects; None: not given


@dataclass(frozen=True)
class _Image:
    name: str  # file name without suffix
    path: Path
    size_hw: tuple[int, int]
    annotations: tuple[Annotation, ...]
    id: int


class _Drawn(dict[int, tuple[bytes, bytes, np.ndarray, np.ndarray]]):
    """Truth by image id, packed: labels, what is ignored, classes and ids; shared by all parts."""

    room = DRAWN_BYTES

    def keep(self, image: int, target: Target, ids: np.ndarray) -> None:
        """Keep a truth while there is room."""
        labels_, ignore = target.labels.numpy(), target.ignore.numpy()
        packed = (zlib.compress(labels_.tobytes(), 1), zlib.compress(ignore.tobytes(), 1))
        self.room -= sum(map(len, packed))
        if self.room > 0:
            self[image] = (*packed, target.classes.numpy().copy(), ids.copy())

    def take(self, image: int, size_hw: tuple[int, int]) -> tuple[Target, np.ndarray]:
        """A kept truth, unpacked."""
        *packed, classes, ids = self[image]
        numbers, ignore = (
            torch.frombuffer(bytearray(zlib.decompress(part)), dtype=kind).view(size_hw)
            for part, kind in zip(packed, (torch.int32, torch.bool), strict=True)
        )
        return Target(numbers, torch.from_numpy(classes.copy()), ignore), ids.copy()


class CocoDataset:
    """Images with the objects of a COCO file, read when indexed; made by ``open_coco``."""

    def __init__(
        self,
        images: Sequence[_Image],
        class_names: tuple[str, ...],
        *,
        max_pixels: int,
        drawn: _Drawn | None = None,
    ) -> None:
        self.class_names = class_names
        self._images = list(images)
        self._max_pixels = max_pixels
        self._drawn = _Drawn() if drawn is None else drawn

    @property
    def names(self) -> list[str]:
        """Names of the images, in the order of the data set."""
        return [image.name for image in self._images]

    def image_path(self, i: int) -> Path:
        """Path of the file of image ``i``."""
        return self._images[i].path

    def index_row(self, i: int) -> Mapping[str, str]:
        """Empty: no table goes with the file."""
        return {}

    def image_id(self, i: int) -> int:
        """Id of image ``i`` in the file."""
        return self._images[i].id

    def annotations(self, i: int) -> tuple[Annotation, ...]:
        """The annotations of image ``i``, crowds too, in the file's order; they may overlap."""
        return self._images[i].annotations

    def subset(self, indices: Iterable[int]) -> CocoDataset:
        """The images of these indices, in their order."""
        images = [self._images[i] for i in indices]
        return CocoDataset(images, self.class_names, max_pixels=self._max_pixels, drawn=self._drawn)

    def with_classes(self, names: Sequence[str]) -> CocoDataset:
        """The same images, their classes numbered as in ``names``, which may hold more."""
        number = [names.index(name) for name in self.class_names]
        images = [
            replace(
                image,
                annotations=tuple(
                    replace(a, class_index=number[a.class_index]) for a in image.annotations
                ),
            )
            for image in self._images
        ]
        return CocoDataset(images, tuple(names), max_pixels=self._max_pixels)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> Sample:
        """Image ``i`` with its truth; the ids of the sample are those of the annotations.

        Raises SpatialEmbedError as ``read_image`` does, and: oriented_image, size_mismatch.
        """
        entry = self._images[i]
        image, orientation = read_oriented(entry.path, max_pixels=self._max_pixels)
        if orientation != 1:
            raise oriented(entry.path, orientation, "annotations do")
        if image.shape[:2] != entry.size_hw:
            raise SpatialEmbedError(
                "size_mismatch",
                f"{entry.path}: {image.shape[0]}x{image.shape[1]} px, the annotations are for "
                f"{entry.size_hw[0]}x{entry.size_hw[1]}",
                "use the images that were annotated",
            )
        target, ids = self._target(entry)
        return Sample(image, target, entry.name, ids)

    def truth(self, i: int) -> Target:
        """The truth of image ``i``; the image is not read, so that its size is not compared."""
        return self._target(self._images[i])[0]

    def truth_digest(self, i: int) -> bytes:
        """Hash of all that ``truth(i)`` follows from."""
        entry = self._images[i]
        told = (self.class_names, entry.size_hw, entry.annotations)
        return hashlib.sha256(repr(told).encode()).digest()

    def _target(self, entry: _Image) -> tuple[Target, np.ndarray]:
        """The truth of an image and the ids (K,) of its annotations, drawn once in a process."""
        if entry.id in self._drawn:
            return self._drawn.take(entry.id, entry.size_hw)
        target, ids = _draw(entry)
        self._drawn.keep(entry.id, target, ids)
        return target, ids


def _draw(entry: _Image) -> tuple[Target, np.ndarray]:
    """The truth of an image, and the ids (K,) of its annotations.

    The larger objects are drawn first, so that the smaller ones stay whole. Time and memory go by
    the pixels of the image and the length of the outlines, not by pixels times objects.
    """
    height, width = entry.size_hw
    ids, crowds = np.zeros(height * width, np.int32), np.zeros(height * width, bool)
    objects = []
    for annotation in entry.annotations:
        runs = annotation_runs(annotation, height, width)
        if annotation.crowd:
            for start, end in runs.tolist():
                crowds[start:end] = True
        else:
            objects.append((int((runs[:, 1] - runs[:, 0]).sum()), annotation, runs))
    objects.sort(key=lambda o: -o[0])  # stable: of equal ones the later is on top
    for number, (_, _, runs) in enumerate(objects, start=1):
        for start, end in runs.tolist():
            ids[start:end] = number
    crowds &= ids == 0  # an object before a crowd is known
    numbers, present = labels.relabel(ids.reshape(width, height).T)
    seen = [objects[n - 1][1] for n in present]
    target = Target(
        torch.from_numpy(np.ascontiguousarray(numbers)),
        torch.tensor([a.class_index for a in seen], dtype=torch.int64),
        torch.from_numpy(np.ascontiguousarray(crowds.reshape(width, height).T)),
    )
    return target, np.array([a.id for a in seen], np.int64)


def annotation_runs(annotation: Annotation, height: int, width: int) -> np.ndarray:
    """(R, 2) int64: starts and ends of the runs of an object, as ``labels.decode_runs`` has them.

    Of an annotation that ``open_coco`` has taken.
    """
    what = annotation.segmentation
    if isinstance(what, Mapping):
        counts = what["counts"]
        if not isinstance(counts, str):
            runs = labels.runs_of_counts(np.array(counts, float), height * width)
            assert runs is not None, "open_coco has looked at it"
            return runs
    else:
        coco = _coco_mask()
        encoded = coco.frPyObjects([[float(v) for v in polygon] for polygon in what], height, width)
        counts = coco.merge(encoded)["counts"].decode("ascii")
    return labels.decode_runs({"size": [height, width], "counts": counts})


def _fault_of(what: object, height: int, width: int) -> str:
    """What is wrong with the segmentation of an object in an image of this size; "": nothing."""
    if isinstance(what, Mapping):
        return _fault_of_runs(what, height, width)
    polygons = [_numbers(polygon) for polygon in what] if isinstance(what, list) else []
    longest = 4 * height * width + 16 * (height + width)
    for xy in polygons:
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


def _fault_of_runs(rle: Mapping[str, Any], height: int, width: int) -> str:
    counts = rle.get("counts")
    if rle.get("size") != [height, width]:
        return f"its mask has the size {rle.get('size')}"
    if isinstance(counts, str):
        try:
            labels.decode_runs({"size": [height, width], "counts": counts})
        except SpatialEmbedError as error:
            return error.message
    elif labels.runs_of_counts(_numbers(counts), height * width) is None:
        return "its run lengths do not add up to the image"
    return ""


def _numbers(values: object) -> np.ndarray:
    """(N,) float64 of a list of numbers; a NaN of anything else."""
    try:
        array = np.array(values) if isinstance(values, list) else np.array(None)
    except ValueError:  # lists of several lengths in it
        array = np.array(None)
    if array.ndim != 1 or array.dtype.kind not in "iuf":  # numbers beyond 64 bits are objects
        return np.array([np.nan])
    return array.astype(np.float64)


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
    allow_missing: bool = False,
    crowd_as_objects: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> CocoDataset:
    """Open a COCO instances file and check all its annotations; no image is read.

    Args:
        path: The file.
        images: Folder of the image files; None: ``images`` beside the file.
        allow_missing: Leave out images whose file does not exist, instead of refusing.
        crowd_as_objects: Take annotations with iscrowd 1, which are ignored otherwise, as objects:
            some tools mark brush strokes so.
        max_pixels: Limit of ``read_image``.

    Returns:
        A data set whose items are ``Sample``s.

    Raises:
        SpatialEmbedError: ``not_found``, ``bad_json``, ``bad_annotation``, ``duplicate_name``,
            ``missing_pairs``, ``no_images``, ``too_large`` (exit 5).
    """
    path = Path(path)
    folder = path.parent / "images" if images is None else Path(images)
    data = _read(path)
    categories = _categories(path, data)
    entries = _by_id(path, data, "images", ("file_name", "height", "width"))
    sizes = {n: _size_hw(path, n, entry, max_pixels) for n, entry in entries.items()}
    class_of = {number: c for c, number in enumerate(categories)}
    annotations = _annotations(path, data, sizes, class_of, crowd_as_objects)
    found, missing, taken = [], [], set()
    for number, entry in sorted(entries.items(), key=lambda item: str(item[1]["file_name"])):
        file = folder / str(entry["file_name"])
        name = os.path.splitext(str(entry["file_name"]))[0]
        if name in taken:
            raise SpatialEmbedError("duplicate_name", f"{path}: two images {name}", "keep one")
        taken.add(name)
        if not os.path.isfile(file):  # a name that no file can have is none
            missing.append(str(file))
            continue
        found.append(_Image(name, file, sizes[number], tuple(annotations[number]), number))
    if missing and not allow_missing:
        raise SpatialEmbedError(
            "missing_pairs",
            f"{path}: {len(missing)} images are missing: {'; '.join(missing)}",
            "add them, or leave them out with --allow-missing",
        )
    if not found:
        raise SpatialEmbedError("no_images", f"{path}: none of its images exists", "add them")
    return CocoDataset(found, tuple(categories.values()), max_pixels=max_pixels)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SpatialEmbedError("not_found", f"{path}: no such file", "check the path") from None
    except (OSError, ValueError, RecursionError) as error:  # of UTF-8 as well as of JSON
        raise SpatialEmbedError(
            "bad_json", f"{path}: not JSON: {error}", "copy or export it again"
        ) from error
    parts = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(p), list) for p in parts):
        raise SpatialEmbedError(
            "bad_json", f"{path}: not COCO instances", f"it needs the lists {', '.join(parts)}"
        )
    return data


def _size_hw(path: Path, number: int, entry: Mapping[str, Any], max_pixels: int) -> tuple[int, int]:
    """Size of an image, checked before anything of that size is made."""
    size_hw = (entry["height"], entry["width"])
    if not all(_is_id(side) and side > 0 for side in size_hw):
        what, remedy = f"{path}: image {number}: size {size_hw}", "height and width are in px"
        raise SpatialEmbedError("bad_json", what, remedy)
    check_size(f"{path}: image {number}", size_hw[1], size_hw[0], 1, max_pixels)
    return size_hw


def _categories(path: Path, data: Mapping[str, Any]) -> dict[int, str]:
    """Names of the categories by their ids, in the order of these.

    A parent of other categories that has no object itself is no class: Roboflow writes one.
    """
    entries = dict(_by_id(path, data, "categories", ("name",)))
    used = {_number(e.get("category_id")) for e in data["annotations"] if isinstance(e, dict)}
    for number, entry in list(entries.items()):
        children = (e for n, e in entries.items() if n != number)
        if number not in used and entry["name"] in [e.get("supercategory") for e in children]:
            logger.warning("%s: %s has no object, only categories below it", path, entry["name"])
            del entries[number]
    names = {number: entries[number]["name"] for number in sorted(entries)}
    told = all(isinstance(name, str) and name.isprintable() for name in names.values())
    if not names or not told or len(set(names.values())) < len(names):
        what = f"{path}: categories {list(names.values())}"
        raise SpatialEmbedError("bad_json", what, "name one or more classes, each in its own way")
    return names


def _by_id(
    path: Path, data: Mapping[str, Any], part: str, keys: Sequence[str]
) -> dict[int, Mapping[str, Any]]:
    """Entries of a list by their id, each with these keys."""
    found: dict[int, Mapping[str, Any]] = {}
    for n, entry in enumerate(data[part]):
        whole = isinstance(entry, dict) and _is_id(entry.get("id"))
        if not whole or not all(key in entry for key in keys):
            wanted = ", ".join(("id", *keys))
            raise SpatialEmbedError(
                "bad_json", f"{path}: entry {n} of {part}", f"each needs {wanted}"
            )
        if entry["id"] in found:
            raise SpatialEmbedError(
                "bad_json", f"{path}: {part}: the id {entry['id']} occurs twice", "keep one"
            )
        found[entry["id"]] = entry
    return found


def _annotations(
    path: Path,
    data: Mapping[str, Any],
    sizes: Mapping[int, tuple[int, int]],
    class_of: Mapping[int, int],
    crowd_as_objects: bool,
) -> dict[int, list[Annotation]]:
    """Annotations by image id; all broken ones are reported at once."""
    found: dict[int, list[Annotation]] = {number: [] for number in sizes}
    taken: set[int] = set()
    faults: list[str] = []
    crowds = 0
    for n, entry in enumerate(data["annotations"]):
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            faults.append(f"annotation number {n} of the list: it has no id")
        elif fault := _fault_of_entry(entry, sizes, class_of, taken):
            faults.append(f"annotation {entry['id']}: {fault}")
        else:
            taken.add(entry["id"])
            crowd = bool(entry.get("iscrowd", 0))
            crowds += crowd
            found[entry["image_id"]].append(
                Annotation(
                    entry["id"],
                    class_of[entry["category_id"]],
                    crowd and not crowd_as_objects,
                    entry["segmentation"],
                    entry.get("area"),
                )
            )
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


def _fault_of_entry(
    entry: Mapping[str, Any],
    sizes: Mapping[int, tuple[int, int]],
    class_of: Mapping[int, int],
    taken: set[int],
) -> str:
    """What is wrong with an annotation that has an id; "": nothing."""
    image, category = (_number(entry.get(key)) for key in ("image_id", "category_id"))
    for fault, wrong in (
        ("its id occurs twice", entry["id"] in taken),
        (f"there is no image {entry.get('image_id')}", image not in sizes),
        (f"there is no category {entry.get('category_id')}", category not in class_of),
        ("it has no segmentation", "segmentation" not in entry),
        (f"iscrowd is {entry.get('iscrowd')!r}", entry.get("iscrowd", 0) not in (0, 1)),
        (f"its area is {entry.get('area')!r}", not _is_area(entry.get("area"))),
    ):
        if wrong:
            return fault
    return _fault_of(entry["segmentation"], *sizes[image])


def _number(value: object) -> int:
    """An id, or for what is none a number that nobody uses."""
    return value if isinstance(value, int) else -(2**63)


def _is_id(value: object) -> bool:
    """Whether it is a number that an id can be, of 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_area(value: object) -> bool:
    """Whether it is an area in px, or none is given."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (number and 0 <= float(value) < float("inf"))  # type: ignore[arg-type]
