"""YOLO segmentation: a text file for each image, labels/ beside images/, names in data.yaml.

A line is a class and a polygon, ``0 x1 y1 x2 y2 x3 y3 ...``, in shares of width and height. An
image without a file has no object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spatialembed.data.layouts.scene import (
    Outline,
    Scene,
    Source,
    broken,
    files_below,
    not_found,
    read_text,
    rectangle,
    split_and_name,
)
from spatialembed.images.listing import image_files

MOST_NAMES = 1 << 20
"""Bytes of data.yaml and classes.txt."""


def read_yolo(source: Source) -> Iterator[Scene]:
    """Of a folder with all below, or of the folder of a data.yaml."""
    root = source.path if source.path.is_dir() else source.path.parent
    names, used = _names(source, root), set()
    images = image_files(source.images or root)
    for path in images:
        places = _texts(path, root, source.images)
        text = next((text for text in places if text.is_file()), None)
        used.add(text)
        split, name = split_and_name(path.relative_to(source.images or root))
        if text is None:
            source.notes["images without a file of labels have no object"] += 1
        yield Scene(name, split, path, partial(_outlines, source, text, names))
    texts = (t for t in files_below(root, ".txt") if t.name not in ("classes.txt", "labels.txt"))
    for text in texts:
        if "labels" in text.relative_to(root).parts and text not in used:
            split, name = split_and_name(text.relative_to(root))
            lack = not_found(text, f"{text.stem}.*", [source.images or root])
            yield Scene(name, split, lack, list)


def _texts(image: Path, root: Path, images: Path | None) -> Iterator[Path]:
    """Where the labels of an image may lie: labels/ in place of the last images/, or beside it."""
    parts = list(image.with_suffix(".txt").parts)
    within = len((images or root).parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images" and at >= within - 1:
            yield Path(*parts[:at], "labels", *parts[at + 1 :])
            break
    yield image.with_suffix(".txt")
    if images is not None:
        yield root / "labels" / image.relative_to(images).with_suffix(".txt")


def _names(source: Source, root: Path) -> Mapping[int, str]:
    given = [source.path] if source.path.is_file() else []
    for path in (*given, *(root / name for name in ("data.yaml", "data.yml", "dataset.yaml"))):
        if path.is_file():
            return _of_yaml(path)
    if (path := root / "classes.txt").is_file():
        lines = read_text(path, MOST_NAMES).splitlines()
        return {i: line.strip() for i, line in enumerate(lines) if line.strip()}
    source.notes["no data.yaml with names: classes are called by their numbers"] += 1
    return {}


def _of_yaml(path: Path) -> Mapping[int, str]:
    try:
        said: Any = yaml.safe_load(read_text(path, MOST_NAMES))
    except (yaml.YAMLError, RecursionError) as error:
        broken(path, f"not YAML: {' '.join(str(error).split())[:200]}")
    names = said.get("names") if isinstance(said, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    plain = isinstance(names, dict) and all(
        isinstance(i, int) and isinstance(name, (str, int)) for i, name in names.items()
    )
    if not plain:
        broken(path, "names is neither a list nor a table of numbers and names")
    return {i: str(name) for i, name in names.items()}  # type: ignore[union-attr]


def _outlines(source: Source, path: Path | None, names: Mapping[int, str]) -> list[Outline]:
    found = []
    for i, line in enumerate(read_text(path).splitlines() if path else [], start=1):
        words, where = line.split(), f"{path and path.name} line {i}"
        if not words:
            continue
        try:
            xy = np.array(words[1:], np.float64)
        except ValueError:
            broken(f"{path}, line {i}", f"not numbers: {line[:60]!r}")
        if not words[0].isdecimal() or len(words[0]) > 6:
            broken(f"{path}, line {i}", f"the class {words[0][:20]!r} is no number")
        if not np.isfinite(xy).all() or np.abs(xy).max(initial=0) > 2:
            broken(f"{path}, line {i}", "x and y are shares of width and height, 0 to 1")
        if len(xy) == 4:  # the middle and the size of a box, as of a detector
            source.notes["boxes are taken as rectangles: they are no outlines"] += 1
            half = xy[2:] / 2
            xy = np.array(rectangle(*(xy[:2] - half), *(xy[:2] + half)))
        kind = int(words[0])
        if names and kind not in names:
            broken(f"{path}, line {i}", f"class {kind} has no name, there are {len(names)}")
        found.append(Outline(where, names.get(kind, str(kind)), [xy.tolist()], relative=True))
    return found
