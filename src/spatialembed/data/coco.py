"""COCO instances: a JSON file of annotations beside a folder of images.

Polygons and run lengths, plain and compressed, become label images. A crowd is ignored. Where
objects overlap, the smaller one is on top. Category ids become classes 0..C-1 in their order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatialembed.errors import SpatialEmbedError, missing_extra
from spatialembed.images.read import MAX_PIXELS, oriented, read_oriented
from spatialembed.method import labels
from spatialembed.types import Sample, Target


@dataclass(frozen=True)
class Annotation:
    """One object, or a crowd, as the file says it."""

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


class CocoDataset:
    """Images with the objects of a COCO file, read when asked for; made by ``open_coco``."""

    def __init__(
        self, images: Sequence[_Image], class_names: tuple[str, ...], *, max_pixels: int
    ) -> None:
        self.class_names = class_names
        self._images = list(images)
        self._max_pixels = max_pixels

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
        """What the file says of image ``i``, crowds too, in its order; it may overlap."""
        return self._images[i].annotations

    def subset(self, indices: Iterable[int]) -> CocoDataset:
        """The images of these indices, in their order."""
        images = [self._images[i] for i in indices]
        return CocoDataset(images, self.class_names, max_pixels=self._max_pixels)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> Sample:
        """Image ``i`` with its truth; the ids of the sample are those of the annotations.

        Raises SpatialEmbedError as ``read_image`` does, and: oriented_image, size_mismatch,
        bad_annotation.
        """
        entry = self._images[i]
        image, orientation = read_oriented(entry.path, max_pixels=self._max_pixels)
        if orientation != 1:
            raise oriented(entry.path, orientation, "annotations do")
        if image.shape[:2] != entry.size_hw:
            raise SpatialEmbedError(
                "size_mismatch",
                f"{entry.path}: {image.shape[1]}x{image.shape[0]} px, the annotations are for "
                f"{entry.size_hw[1]}x{entry.size_hw[0]}",
                "use the images that were annotated",
            )
        target, ids = _target(entry)
        return Sample(image, target, entry.name, ids)

    def truth(self, i: int) -> Target:
        """The truth of image ``i``; the image is not read, so that its size is not compared."""
        return _target(self._images[i])[0]

    def truth_digest(self, i: int) -> bytes:
        """Hash of all that ``truth(i)`` follows from."""
        entry = self._images[i]
        told = (self.class_names, entry.size_hw, entry.annotations)
        return hashlib.sha256(repr(told).encode()).digest()


def _target(entry: _Image) -> tuple[Target, np.ndarray]:
    """The truth of an image, and the ids (K,) of its annotations.

    The larger objects are drawn first, so that the smaller ones stay whole.
    """
    height, width = entry.size_hw
    ignore = np.zeros((height, width), bool)
    masks = []
    for annotation in entry.annotations:
        mask = annotation_mask(annotation, height, width, str(entry.path))
        if annotation.crowd:
            ignore |= mask
        else:
            masks.append((int(mask.sum()), annotation, mask))
    masks.sort(key=lambda m: -m[0])  # stable: of equal ones the later is on top
    ids = np.zeros((height, width), np.int32)
    for number, (_, _, mask) in enumerate(masks, start=1):
        ids[mask] = number
    ignore &= ids == 0  # an object before a crowd is known
    numbers, present = labels.relabel(ids)
    seen = [masks[n - 1][1] for n in present]
    target = Target(
        torch.from_numpy(numbers),
        torch.tensor([a.class_index for a in seen], dtype=torch.int64),
        torch.from_numpy(ignore),
    )
    return target, np.array([a.id for a in seen], np.int64)


def annotation_mask(annotation: Annotation, height: int, width: int, where: str) -> np.ndarray:
    """Mask (H, W) bool of an object. Raises SpatialEmbedError ``bad_annotation``, naming its id."""
    what = annotation.segmentation
    if isinstance(what, Mapping):
        return _of_run_lengths(annotation, what, height, width, where)
    polygons = [_floats(p) for p in what] if isinstance(what, list) else []
    if not polygons or not all(
        len(p) >= 6 and len(p) % 2 == 0 and np.isfinite(p).all() for p in polygons
    ):
        raise _bad(where, annotation.id, "its polygons are no lists of three or more x, y")
    for polygon in polygons:  # its outline is followed pixel by pixel, however long
        xy = polygon.reshape(-1, 2) / (width, height)
        if xy.min() < -1 or xy.max() > 2:
            raise _bad(where, annotation.id, "a polygon far outside of the image")
    coco = _coco_mask()
    encoded = coco.merge(coco.frPyObjects([p.tolist() for p in polygons], height, width))
    return np.asarray(coco.decode(encoded), bool)


def _floats(values: object) -> np.ndarray:
    """(N,) float64 of a list of numbers; a NaN of anything else."""
    if isinstance(values, list) and all(isinstance(v, (int, float)) for v in values):
        with suppress(OverflowError):  # of an integer beyond all floats
            return np.array(values, float)
    return np.array([np.nan])


def _of_run_lengths(
    annotation: Annotation, rle: Mapping[str, Any], height: int, width: int, where: str
) -> np.ndarray:
    counts = rle.get("counts")
    if rle.get("size") != [height, width]:
        raise _bad(where, annotation.id, f"its mask has the size {rle.get('size')}")
    if isinstance(counts, str) and counts.isascii():
        try:
            return labels.decode({"size": [height, width], "counts": counts})
        except SpatialEmbedError as error:
            raise _bad(where, annotation.id, error.message) from error
    runs = _floats(counts)
    whole = (runs >= 0).all() and (runs == np.rint(runs)).all()  # NaN is neither
    if not whole or runs.sum() != height * width:
        raise _bad(where, annotation.id, "its run lengths do not add up to the image")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs.astype(np.int64)).reshape(width, height).T


def _bad(where: str, annotation: object, fault: str) -> SpatialEmbedError:
    return SpatialEmbedError(
        "bad_annotation", f"{where}: annotation {annotation}: {fault}", "correct or remove it"
    )


def _coco_mask() -> Any:
    """The mask functions of COCO: how a polygon becomes pixels is theirs to say."""
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
    max_pixels: int = MAX_PIXELS,
) -> CocoDataset:
    """Open a COCO instances file; no image is read.

    Args:
        path: The file.
        images: Folder of the image files; None: ``images`` beside the file.
        allow_missing: Leave out images whose file does not exist, instead of refusing.
        max_pixels: Limit of ``read_image``.

    Returns:
        A data set whose items are ``Sample``s.

    Raises:
        SpatialEmbedError: ``not_found``, ``bad_json``, ``bad_annotation``, ``duplicate_name``,
            ``missing_pairs``, ``no_images``.
    """
    path = Path(path)
    folder = path.parent / "images" if images is None else Path(images)
    data = _read(path)
    categories = _categories(path, data)
    entries = _by_id(path, data, "images", ("file_name", "height", "width"))
    class_of = {number: c for c, number in enumerate(categories)}
    annotations = _annotations(path, data, entries, class_of)
    found, missing, taken = [], [], set()
    for number, entry in sorted(entries.items(), key=lambda item: str(item[1]["file_name"])):
        size_hw = (entry["height"], entry["width"])
        if not all(_is_id(side) and side > 0 for side in size_hw):
            what, remedy = f"{path}: image {number}: size {size_hw}", "height and width are in px"
            raise SpatialEmbedError("bad_json", what, remedy)
        file = folder / str(entry["file_name"])
        name = os.path.splitext(str(entry["file_name"]))[0]
        if name in taken:
            raise SpatialEmbedError("duplicate_name", f"{path}: two images {name}", "keep one")
        taken.add(name)
        if not os.path.isfile(file):  # a name that no file can have is none
            missing.append(str(file))
            continue
        found.append(_Image(name, file, size_hw, tuple(annotations[number]), number))
    if missing and not allow_missing:
        raise SpatialEmbedError(
            "missing_pairs",
            f"{path}: {len(missing)} images are not there: {'; '.join(missing)}",
            "add them, or leave them out with --allow-missing",
        )
    if not found:
        raise SpatialEmbedError("no_images", f"{path}: none of its images is there", "add them")
    return CocoDataset(found, tuple(categories.values()), max_pixels=max_pixels)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SpatialEmbedError("not_found", f"{path}: no such file", "check the path") from None
    except (OSError, ValueError, RecursionError) as error:  # of UTF-8 as well as of JSON
        raise SpatialEmbedError(
            "bad_json", f"{path}: no JSON: {error}", "copy or export it again"
        ) from error
    parts = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(p), list) for p in parts):
        raise SpatialEmbedError(
            "bad_json", f"{path}: not COCO instances", f"it needs the lists {', '.join(parts)}"
        )
    return data


def _categories(path: Path, data: Mapping[str, Any]) -> dict[int, str]:
    """Names of the categories by their ids, in the order of these."""
    entries = _by_id(path, data, "categories", ("name",))
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
    entries: Mapping[int, Mapping[str, Any]],
    class_of: Mapping[int, int],
) -> dict[int, list[Annotation]]:
    """Annotations by image id."""
    found: dict[int, list[Annotation]] = {number: [] for number in entries}
    taken: set[int] = set()
    for n, entry in enumerate(data["annotations"]):
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            raise _bad(str(path), f"number {n} of the list", "it has no id")
        number = int(entry["id"])
        image, category = (_number(entry.get(key)) for key in ("image_id", "category_id"))
        for fault, wrong in (
            ("its id occurs twice", number in taken),
            (f"there is no image {entry.get('image_id')}", image not in found),
            (f"there is no category {entry.get('category_id')}", category not in class_of),
            ("it has no segmentation", "segmentation" not in entry),
            (f"iscrowd is {entry.get('iscrowd')!r}", entry.get("iscrowd", 0) not in (0, 1)),
            (f"its area is {entry.get('area')!r}", not _is_area(entry.get("area"))),
        ):
            if wrong:
                raise _bad(str(path), number, fault)
        taken.add(number)
        crowd = bool(entry.get("iscrowd", 0))
        found[image].append(
            Annotation(number, class_of[category], crowd, entry["segmentation"], entry.get("area"))
        )
    return found


def _is_id(value: object) -> bool:
    """Whether it is a number that an id can be, of 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _number(value: object) -> int:
    """An id, or for what is none a number that nobody uses."""
    return value if isinstance(value, int) else -(2**63)


def _is_area(value: object) -> bool:
    """Whether it is an area in px, or none is given."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (number and 0 <= float(value) < float("inf"))  # type: ignore[arg-type]
