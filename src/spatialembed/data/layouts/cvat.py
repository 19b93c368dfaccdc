"""CVAT for images: one XML file with all images. An entity or a document type in it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from spatialembed.data.layouts.scene import (
    Outline,
    Scene,
    Source,
    box_runs,
    broken,
    ellipse,
    not_found,
    number,
    read_text,
    rectangle,
    split_and_name,
    turned,
)
from spatialembed.data.pairing import find_image
from spatialembed.errors import SpatialEmbedError

AREAS = ("polygon", "box", "ellipse", "mask")
NO_AREAS = ("polyline", "points", "cuboid", "skeleton", "tag")


class _Tag(NamedTuple):
    name: str
    said: dict[str, str]


def read_cvat(source: Source) -> Iterator[Scene]:
    """Of ``annotations.xml``; images beside it or in images/."""
    path = source.path
    folders = [source.images] if source.images else [path.parent / "images", path.parent]
    for said, shapes in _images(path):
        where = f"{path}: image {said.get('id', '')[:20]}"
        sides = (said.get(side, "") for side in ("height", "width"))
        height, width = (int(s) if s.isdecimal() and len(s) < 10 else 0 for s in sides)
        size_hw = source.size(where, height, width)
        name = said.get("name", "")
        part = said.get("subset", "")  # some exports have folders of that name
        image = find_image(folders, f"{part}/{name}") or find_image(folders, name)
        inside, at = image or (name or where, not_found(where, name, folders))
        split, short = split_and_name(Path(inside))
        subset, _ = split_and_name(Path(part or "-", "a"))
        outlines = partial(_outlines, source, where, shapes, size_hw)
        yield Scene(short, split or subset, at, outlines, size_hw)


def _images(path: Path) -> Iterator[tuple[dict[str, str], list[_Tag]]]:
    """The attributes of each image, and of the shapes in it."""
    found: list[tuple[dict[str, str], list[_Tag]]] = []
    depth = 0

    def start(name: str, said: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth == 1 and name != "annotations":
            broken(path, f"not CVAT for images: its root is {name[:40]!r}")
        if depth == 2 and name == "track":
            broken(path, "a video of CVAT: export it as CVAT for images")
        if depth == 2 and name == "image":
            found.append((said, []))
        elif depth == 3 and found and name in (*AREAS, *NO_AREAS):
            found[-1][1].append(_Tag(name, said))

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: object) -> None:
        broken(path, "a document type, which no export of CVAT has")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_text(path), True)
    except expat.ExpatError as error:
        broken(path, f"not XML: {error}")
    if not found:
        raise SpatialEmbedError("no_images", f"{path}: no image in it", "export it with images")
    return iter(found)


def _outlines(
    source: Source, where: str, shapes: list[_Tag], size_hw: tuple[int, int]
) -> list[Outline]:
    found = []
    for i, shape in enumerate(shapes, start=1):
        if shape.name in NO_AREAS:
            source.notes[f"shapes of kind {shape.name!r} have no area and are left out"] += 1
        else:
            found.append(_outline(f"{where} shape {i}", shape, size_hw))
    return found


def _outline(where: str, shape: _Tag, size_hw: tuple[int, int]) -> Outline:
    name, said = shape
    label, group = said.get("label", ""), said.get("group_id", "0")
    layer = int(number(where, said, "z_order", 0))
    shared = {"layer": layer, "group": "" if group == "0" else group}
    if name == "mask":
        runs = _mask(where, said, size_hw)
        return Outline(where, label, runs=runs, size_hw=size_hw, **shared)  # type: ignore[arg-type]
    degrees = number(where, said, "rotation", 0)
    if name == "polygon":
        words = said.get("points", "").replace(";", ",").split(",")
        corners = [number(where, {"points": word}, "points") for word in words]
    elif name == "box":
        x1, y1, x2, y2 = (number(where, said, n) for n in ("xtl", "ytl", "xbr", "ybr"))
        corners = rectangle(x1, y1, x2, y2)
        corners = turned(corners, (x1 + x2) / 2, (y1 + y2) / 2, degrees)
    else:
        x, y, rx, ry = (number(where, said, n) for n in ("cx", "cy", "rx", "ry"))
        corners = ellipse(x, y, rx, ry, degrees)
    return Outline(where, label, [corners], **shared)  # type: ignore[arg-type]


def _mask(where: str, said: dict[str, str], size_hw: tuple[int, int]) -> np.ndarray:
    """Run lengths of a box, row by row, of zeros first."""
    sides = (number(where, said, n) for n in ("left", "top", "width", "height"))
    left, top, width, height = map(int, sides)
    if min(left, top) < 0 or min(width, height) < 1:
        broken(where, f"a mask of {height} x {width} px at row {top}, column {left}")
    if top + height > size_hw[0] or left + width > size_hw[1]:
        broken(where, "a mask that reaches out of the image")
    words = [word.strip() for word in said.get("rle", "").split(",")]
    if len(words) > width * height + 1 or not all(w.isdecimal() and len(w) < 10 for w in words):
        broken(where, "rle is not a list of run lengths")
    counts = np.array(words, np.int64)
    if counts.sum() != width * height:
        broken(where, f"run lengths of {counts.sum()} px in a box of {width * height}")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return box_runs(pixels, top, left, size_hw[0])
