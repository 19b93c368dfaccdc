"""The tables beside images/ and masks/: classes.csv (image,id,class), index.csv (any columns)."""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.listing import SUFFIXES

Key = TypeVar("Key", int, str)


def find_table(top: Path, root: Path, name: str) -> Path | None:
    """A table beside images/, or beside train/ val/ test/."""
    return next((at / name for at in (root, top) if (at / name).is_file()), None)


def _rows(path: Path, one_of: Sequence[str], also: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file whose header has a name column (``one_of``) and the columns ``also``."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [
                {key: (value or "").strip() for key, value in row.items() if key} for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpatialEmbedError("bad_table", f"{path}: {error}", "save it as UTF-8 CSV") from error
    if not set(one_of) & set(columns) or set(also) - set(columns):
        wanted = ",".join((" or ".join(one_of), *also))
        what = f"{path}: columns {','.join(columns)}"
        raise SpatialEmbedError("bad_table", what, f"its header must have {wanted}")
    if not rows:
        raise SpatialEmbedError(
            "bad_table", f"{path}: no row below its header", "fill or remove it"
        )
    return rows


def _key(name: str) -> str:
    """Name of an image as written in a table: with or without suffix and the folder images/."""
    name = re.sub(r"^(?:\./)?((?:train/|val/|test/)?)images/", r"\1", name.replace("\\", "/"))
    return os.path.splitext(name)[0] if name.lower().endswith(SUFFIXES) else name


def read_classes(path: Path | None) -> dict[str, dict[int, str]] | None:
    """Class name by image name and id."""
    if path is None:
        return None
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for line, row in enumerate(_rows(path, ["image"], ["id", "class"]), start=2):
        number, name = row["id"], row["class"]
        where = f"{path}, line {line}"
        if not number.isdecimal() or len(number) > 10 or int(number) == 0 or not name:
            what = f"{where}: id {number[:20]!r}, class {name!r}"
            remedy = "ids are whole numbers from 1 to 2147483647, classes have a name"
            raise SpatialEmbedError("bad_table", what, remedy)
        if found[_key(row["image"])].setdefault(int(number), name) != name:
            what = f"{where}: a second class for id {number} of {row['image']}"
            raise SpatialEmbedError("bad_table", what, "keep one")
    return dict(found)


def read_index(path: Path | None) -> dict[str, dict[str, str]]:
    """Rows by image name; the name column is ``image``, or ``id`` where there is none."""
    if path is None:
        return {}
    rows = _rows(path, ["image", "id"])
    return {_key(row["image"] if "image" in row else row["id"]): row for row in rows}


def of_image(table: Mapping[str, dict[Key, str]], split: str | None, name: str) -> dict[Key, str]:
    """Of a table beside the parts: train/a comes before a, which is one of several parts."""
    return table.get(f"{split}/{name}", table.get(name, {}))


def names_of(classes: Mapping[str, Mapping[int, str]]) -> tuple[str, ...]:
    """Names of the classes in order of the alphabet."""
    return tuple(sorted({name for by_id in classes.values() for name in by_id.values()}))


def check_names(path: Path | None, classes: Iterable[str], images: Iterable[str]) -> None:
    """Every image in the table must be there. Raises SpatialEmbedError ``bad_table``."""
    if unknown := sorted(set(classes) - set(images)):
        what = f"{path}: no image is named {unknown[0]!r} ({len(unknown)} such names)"
        raise SpatialEmbedError("bad_table", what, "correct the names")
