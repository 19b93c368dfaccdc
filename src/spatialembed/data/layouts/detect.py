"""Which foreign layout a path holds, by names and by the beginnings of files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Literal

from spatialembed.data.layouts.one_mask_each import samples_below
from spatialembed.data.layouts.scene import files_below
from spatialembed.images.listing import image_files

Kind = Literal["labelme", "yolo", "cvat", "label-studio", "one-mask-each", "coco"]
LOOKED_AT = 100_000
"""Files whose names are looked at; of a few the beginning is read."""
BEGINNING = 1 << 16


def detect(path: Path) -> Kind | None:
    """The layout of a file or folder; None: none that is known."""
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except OSError:
        return None


def convert_remedy(path: Path, *, coco: bool = False) -> str:
    """The command that converts what lies at a path; "" where there is nothing to convert.

    coco: whether COCO instances are to be converted too; train and evaluate take them as they are.
    """
    found = detect(path)
    if found is None or (found == "coco" and not coco):
        return ""
    words = f"spatialembed data convert {quote(str(path))} --out DIR"
    return f"this looks like {found}: {words}"


def parts_of(path: Path, kind: Kind) -> list[Path]:
    """What a reader of that layout is given: the path, or all files of that kind below it."""
    if kind not in ("cvat", "label-studio", "coco") or not path.is_dir():
        return [path]
    suffix = ".xml" if kind == "cvat" else ".json"
    return [file for file in files_below(path, suffix) if _of_file(file) == kind]


def _of_file(path: Path) -> Kind | None:
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".json", ".xml", ".yaml", ".yml"):
        return None
    with open(path, "rb") as file:
        start = file.read(BEGINNING).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if suffix == ".xml":
        return "cvat" if "<annotations" in start else None
    if suffix != ".json":
        return "yolo" if re.search(r"^names\s*:", start, re.MULTILINE) else None
    kinds: tuple[tuple[Kind, str], ...] = (
        ("label-studio", r'\[.*"(annotations|file_upload|original_width)"\s*:'),
        ("labelme", r'\{.*"(shapes|imagePath)"\s*:'),
        ("coco", r'\{.*"(images|categories|annotations)"\s*:\s*\['),
    )
    return next((kind for kind, keys in kinds if re.match(keys, start, re.DOTALL)), None)


def _of_folder(path: Path) -> Kind | None:
    """By what is certain first: a data.yaml, labels/, folders of masks; then single files."""
    names = [name for name in ("data.yaml", "data.yml", "dataset.yaml") if (path / name).is_file()]
    if names or _has_labels(path):
        return "yolo"
    if any(_is_sample(folder) for folder in islice(samples_below(path), 5)):
        return "one-mask-each"
    if (file := path / "annotations.xml").is_file():
        return _of_file(file)
    for file in islice((p for p in _files(path) if p.suffix.lower() in (".json", ".xml")), 5):
        if found := _of_file(file):
            return found
    return None


def _files(path: Path) -> Iterator[Path]:
    """The first files below a folder, those nearest to it first in each part."""
    every = (
        Path(parent, name)
        for parent, _, files in os.walk(path)
        for name in sorted(files)
        if not name.startswith(".")
    )
    return islice(every, LOOKED_AT)


def _has_labels(path: Path) -> bool:
    """Whether a folder labels/, or one in it, holds text files."""
    places = (path / "labels", *(path / part / "labels" for part in ("train", "valid", "val")))
    return any(file.suffix.lower() == ".txt" for place in places for file in _files(place))


def _is_sample(folder: Path) -> bool:
    """One image, and masks of other names or several of them."""
    images = image_files(folder / "images")
    masks = image_files(folder / "masks")
    return len(images) == 1 and bool(masks) and [m.stem for m in masks] != [images[0].stem]
