"""labelme: a JSON file for each image, which lies beside it or in it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from spatialembed.data.layouts.scene import (
    Outline,
    Scene,
    Source,
    box_runs,
    broken,
    ellipse,
    files_below,
    from_base64,
    not_found,
    read_json,
    rectangle,
    split_and_name,
    typed,
)
from spatialembed.data.pairing import find_image
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.listing import SUFFIXES
from spatialembed.images.read import read_labels


class _Shape(msgspec.Struct):
    label: str
    points: list[tuple[float, float]]
    shape_type: str = "polygon"
    group_id: int | str | None = None
    mask: str | None = None


class _File(msgspec.Struct):
    shapes: list[Any]  # each a _Shape
    imagePath: str = ""
    imageData: str | None = None
    imageHeight: int | None = None
    imageWidth: int | None = None


def read_labelme(source: Source) -> Iterator[Scene]:
    """Of a folder with all below, or of one file."""
    if source.path.is_dir():
        for path in files_below(source.path, ".json"):
            said = read_json(path)
            if isinstance(said, dict) and "shapes" in said:
                yield _scene(source, path, path.relative_to(source.path), said)
            else:
                source.notes["JSON files that are not labelme's are left out"] += 1
        return
    yield _scene(source, source.path, Path(source.path.name), read_json(source.path))


def _scene(source: Source, path: Path, relative: Path, said: Any) -> Scene:
    file = typed(path, said, _File)
    size_hw = None
    if file.imageHeight is not None:
        size_hw = source.size(path, file.imageHeight, file.imageWidth)
    split, name = split_and_name(relative)
    outlines = partial(_outlines, source, path, file.shapes, size_hw)
    return Scene(name, split, _image(source, path, file), outlines, size_hw)


def _outlines(
    source: Source, path: Path, shapes: list[Any], size_hw: tuple[int, int] | None
) -> list[Outline]:
    found = [_outline(source, path, i, shape, size_hw) for i, shape in enumerate(shapes)]
    return [outline for outline in found if outline is not None]


def _image(
    source: Source, path: Path, file: _File
) -> Path | Callable[[], bytes] | SpatialEmbedError:
    """Its file, or else that in the JSON file, which is read once more, for one image at a time."""
    root = source.path if source.path.is_dir() else path.parent
    folders = [path.parent, root, root / "images", *([source.images] if source.images else [])]
    suffixes = (*SUFFIXES, *map(str.upper, SUFFIXES))
    for name in (file.imagePath, *(path.stem + suffix for suffix in suffixes)):
        if found := find_image(folders, name):
            return found[1]
    if file.imageData is None:
        return not_found(path, file.imagePath, folders)
    return lambda: from_base64(path, str(read_json(path)["imageData"]))


def _outline(
    source: Source, path: Path, i: int, said: Any, size_hw: tuple[int, int] | None
) -> Outline | None:
    where = f"{path.name} shape {i + 1}"
    shape = typed(f"{path}: shape {i + 1}", said, _Shape)
    points, group = shape.points, "" if shape.group_id is None else str(shape.group_id)
    flat = [number for point in points for number in point]
    if not all(map(math.isfinite, flat)):
        broken(where, "a corner is not a number")
    kind = shape.shape_type
    if kind == "rectangle" and len(points) == 2:
        flat = rectangle(*flat)
    elif kind == "circle" and len(points) == 2:
        radius = math.dist(*points)
        flat = ellipse(*points[0], radius, radius)
    elif kind == "mask" and len(points) == 2 and shape.mask is not None:
        return _mask(source, where, shape, group, size_hw)
    elif kind not in ("polygon", "rectangle", "rotation"):  # the last is a turned rectangle
        source.notes[f"shapes of kind {kind[:40]!r} have no area and are left out"] += 1
        return None
    return Outline(where, shape.label, [flat], group=group)


def _mask(
    source: Source, where: str, shape: _Shape, group: str, size_hw: tuple[int, int] | None
) -> Outline:
    """A mask is a PNG of the box whose corners are its points."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask.png")
        path.write_bytes(from_base64(where, shape.mask or ""))
        mask = read_labels(path, max_pixels=source.max_pixels) > 0
    left, top = (round(corner) for corner in shape.points[0])
    if size_hw is None:
        broken(where, "a mask in a file without imageHeight and imageWidth")
    inside = left >= 0 and top >= 0
    if not inside or top + mask.shape[0] > size_hw[0] or left + mask.shape[1] > size_hw[1]:
        broken(where, f"a mask of {mask.shape} px at row {top}, column {left} of {size_hw}")
    runs = box_runs(mask, top, left, size_hw[0])
    return Outline(where, shape.label, runs=runs, size_hw=size_hw, group=group)
