"""Label Studio: one JSON file of tasks, exported as JSON (not JSON-MIN); outlines and masks."""

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
    from_base64,
    not_found,
    number,
    read_json,
    rectangle,
    split_and_name,
    turned,
    typed,
)
from spatialembed.data.pairing import find_image
from spatialembed.images.decode import png_alpha
from spatialembed.images.listing import SUFFIXES

_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
MASKS = ("brush", "bitmask")
KINDS = ("polygon", *MASKS, "rectangle", "ellipse")


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
        missing = names[0] if names else ""
        inside, image = next(iter(found), (missing or where, not_found(where, missing, folders)))
        split, name = split_and_name(Path(inside))
        results = done[0].result
        size_hw = _mask_size(results)
        outlines = partial(_outlines, source, where, results, size_hw)
        yield Scene(name, split, image, outlines, size_hw)


def _kind(said: Mapping[str, Any]) -> str:
    """Of a result: polygon, brush, ..., whether it has a class with it or not."""
    return str(said.get("type", "")).removesuffix("labels")


def _mask_size(results: list[dict[str, Any]]) -> tuple[int, int] | None:
    """As the first mask states it: the image is held to it before a mask of that size is made."""
    mask = next((said for said in results if _kind(said) in MASKS), {})
    height, width = mask.get("original_height"), mask.get("original_width")
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
        kind = _kind(said)
        value, at = said.get("value"), f"{where}, result {str(said.get('id', i))[:40]}"
        if kind not in KINDS:
            if kind != "":  # "labels" alone is the class of a shape of the same id
                source.notes[f"results of kind {kind[:40]!r} are left out"] += 1
            continue
        if not isinstance(value, dict):
            broken(at, "no value")
        if said.get("image_rotation"):
            broken(at, "drawn on a turned image: turn the image, and draw again")
        stated = said.get("original_height"), said.get("original_width")
        if kind in MASKS and size_hw is not None and stated != size_hw:
            broken(at, "another size than the mask before it")
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
    if kind in MASKS:
        size = source.size(at, said.get("original_height"), said.get("original_width"))
        if kind == "brush":
            mask = decoded_brush(at, value.get("rle"), *size)
        else:
            mask = _decoded_bitmask(at, value.get("imageDataURL"), size)
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


def _decoded_bitmask(where: str, url: Any, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of a PNG in the text: black where the object is, else transparent."""
    head, _, text = typed(where, url, str).partition(",")
    if head != "data:image/png;base64":
        broken(where, f"a bitmask as {head[:40]!r}, not as a PNG")
    most = 2 * size_hw[0] * size_hw[1]  # the limit is one of RGB
    mask = png_alpha(where, from_base64(where, text), most) > 0
    if mask.shape != size_hw:
        broken(where, f"a bitmask of {mask.shape} px for an image of {size_hw}")
    return mask


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
