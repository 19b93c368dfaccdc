"""Label Studio: one JSON file of tasks, exported as JSON (not JSON-MIN); polygons, brush, boxes."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
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
    read_json,
    rectangle,
    split_and_name,
    turned,
    typed,
)
from spatialembed.data.pairing import find_image
from spatialembed.images.listing import SUFFIXES

_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
KINDS = ("polygon", "brush", "rectangle", "ellipse")


class _Annotation(msgspec.Struct):
    result: list[dict[str, Any]] = []
    was_cancelled: bool | None = False


class _Task(msgspec.Struct):
    data: dict[str, Any]
    annotations: list[_Annotation]
    id: int | str = ""
    file_upload: str | None = None


def read_label_studio(source: Source) -> Iterator[Scene]:
    """Of the export; images beside it, in images/, or in the folder ``--images``."""
    path = source.path
    tasks = typed(path, read_json(path), list[Any])
    folders = [source.images] if source.images else [path.parent / "images", path.parent]
    uploads = _uploads(folders)
    for i, said in enumerate(tasks, start=1):
        if isinstance(said, dict) and "annotations" not in said:
            broken(f"{path}: task {i}", "no annotations: export as JSON, not as JSON-MIN")
        task = typed(f"{path}: task {i}", said, _Task)
        where = f"{path}: task {task.id or i}"
        done = [a for a in task.annotations if not a.was_cancelled]
        if not done:
            source.notes["tasks that nobody annotated are left out"] += 1
            continue
        if len(done) > 1:
            source.notes["tasks were annotated more than once: the first annotation counts"] += 1
        names = list(_names(task))
        found = [f for f in (find_image(folders, n) for n in names) if f]
        found += [(p.name, p) for n in names if len(those := uploads[n]) == 1 for p in those]
        if (image := next(iter(found), None)) is None:
            not_found(where, names[0] if names else "", folders)
        split, name = split_and_name(Path(image[0]))
        results = done[0].result
        size_hw = _brush_size(results)
        outlines = partial(_outlines, source, where, results, size_hw)
        yield Scene(name, split, image[1], outlines, size_hw)


def _brush_size(results: list[dict[str, Any]]) -> tuple[int, int] | None:
    """As the first brush states it: the image is held to it before a mask of that size is made."""
    brush = next((said for said in results if str(said.get("type", "")).startswith("brush")), {})
    height, width = brush.get("original_height"), brush.get("original_width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _names(task: _Task) -> Iterator[str]:
    """Names that the image of a task may have: an upload gets eight digits and a dash in front."""
    values = [v for v in task.data.values() if isinstance(v, str)]
    for value in [*values, *([task.file_upload] if task.file_upload else [])]:
        try:
            url = urlsplit(value)
        except ValueError:
            continue
        name = parse_qs(url.query).get("d", [unquote(url.path)])[0]
        if name.lower().endswith(SUFFIXES):
            yield name
            if match := re.fullmatch(r"(?:.*/)?[0-9a-f]{8}-([^/]+)", name):
                yield match[1]


def _uploads(folders: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Files by the name that their upload gets: "my cell (1).png" becomes "my_cell_1.png"."""
    found = defaultdict(list)
    for folder in (folder for folder in folders if folder.is_dir()):
        for file in os.listdir(folder):
            found[re.sub(r"[^-\w.]", "", file.strip().replace(" ", "_"))].append(folder / file)
    return found


def _outlines(
    source: Source, where: str, results: list[dict[str, Any]], size_hw: tuple[int, int] | None
) -> list[Outline]:
    labels = _labels(results)
    found: dict[str, Outline] = {}
    for i, said in enumerate(results, start=1):
        kind = str(said.get("type", "")).removesuffix("labels")
        value, at = said.get("value"), f"{where}, result {str(said.get('id', i))[:40]}"
        if kind not in KINDS:
            if kind != "":  # "labels" alone is the class of a shape of the same id
                source.notes[f"results of kind {kind[:40]!r} have no area and are left out"] += 1
            continue
        if not isinstance(value, dict):
            broken(at, "no value")
        if said.get("image_rotation"):
            broken(at, "drawn on a turned image: turn the image, and draw again")
        stated = said.get("original_height"), said.get("original_width")
        if kind == "brush" and size_hw is not None and stated != size_hw:
            broken(at, "another size than the brush before it")
        name = labels.get(str(said.get("id", i)), "object")
        outline = _outline(source, at, kind, name, said, value)
        found[str(said.get("id", i))] = outline  # a shape may be there as such and with its class
    return list(found.values())


def _labels(results: list[dict[str, Any]]) -> dict[str, str]:
    """The class of each id."""
    found = {}
    for i, said in enumerate(results, start=1):
        value, kind = said.get("value"), str(said.get("type", ""))
        names = value.get(kind) if isinstance(value, dict) and kind.endswith("labels") else None
        if isinstance(names, list) and names and isinstance(names[0], str):
            found[str(said.get("id", i))] = names[0]
    return found


def _outline(
    source: Source, at: str, kind: str, name: str, said: Mapping[str, Any], value: dict[str, Any]
) -> Outline:
    if kind == "brush":
        size = source.size(at, said.get("original_height"), said.get("original_width"))
        mask = decoded_brush(at, value.get("rle"), *size)
        return Outline(at, name, runs=box_runs(mask, 0, 0, size[0]), size_hw=size)
    if kind == "polygon":
        points = typed(at, value.get("points"), list[tuple[float, float]])
        percent = [x for point in points for x in point]
        return Outline(at, name, [[x / 100 for x in percent]], relative=True)
    # A turn is one of px, not of percents.
    height, width = source.size(at, said.get("original_height"), said.get("original_width"))
    x, y = number(at, value, "x") * width / 100, number(at, value, "y") * height / 100
    degrees = number(at, value, "rotation", 0)
    if kind == "rectangle":
        right = x + number(at, value, "width") * width / 100
        bottom = y + number(at, value, "height") * height / 100
        corners = turned(rectangle(x, y, right, bottom), x, y, degrees)
    else:
        radii = number(at, value, "radiusX") * width, number(at, value, "radiusY") * height
        corners = ellipse(x, y, radii[0] / 100, radii[1] / 100, degrees)
    return Outline(at, name, [corners])


def decoded_brush(where: object, rle: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool of the run lengths of a brush, which are those of thi.ng/rle-pack of RGBA.

    32 bits   values that follow, height x width x 4
    5 bits    bits of a value, less one
    4 x 4     bits of the length of a run, less one, four choices
    runs      1 bit: repeated; 2 bits: which length; the length, less one; the value or values
    """
    data = bytes(typed(where, rle, list[_Byte]))
    bits, at, count = len(data) * 8, 0, height * width * 4

    def take(n: int) -> int:
        nonlocal at
        if at + n > bits:
            broken(where, "run lengths of a brush that end early")
        first, last = at >> 3, (at + n + 7) >> 3
        at += n
        whole = int.from_bytes(data[first:last], "big")
        return whole >> (last * 8 - at) & ((1 << n) - 1)

    said, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if said != count or word != 8:
        broken(where, f"a brush of {said} values for an image of {height} x {width} px")
    values, i = np.zeros(count, np.uint8), 0
    while i < count:
        repeated, length = take(1), take(sizes[take(2)]) + 1
        if i + length > count:
            broken(where, "run lengths of a brush beyond the image")
        for j in range(i, i + 1 if repeated else i + length):
            values[j] = take(8)
        if repeated:
            values[i : i + length] = values[i]
        i += length
    return values.reshape(height, width, 4)[..., 3] > 0
