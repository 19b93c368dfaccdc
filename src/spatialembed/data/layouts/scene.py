"""The common form of all foreign layouts: images, and outlines with class names.

x and y are px from the upper left corner of the image, so that the first pixel reaches from 0 to 1.
Runs are in column-major order as in COCO: places are x H + y, ends are not included.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import msgspec
import numpy as np

from spatialembed.errors import RESOURCE, SpatialEmbedError
from spatialembed.images.checks import check_size

T = TypeVar("T")
MOST_BYTES = 1 << 29
"""Of a file of annotations; labelme puts the image into it."""
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Folders that are parts of a data set."""


class Outline(NamedTuple):
    """One drawn shape: polygons or a mask."""

    where: str  # it stands in its source
    class_name: str
    polygons: Sequence[Sequence[float]] = ()  # each x1, y1, x2, y2, ...
    relative: bool = False  # x and y are shares of width and height
    runs: np.ndarray | None = None  # (R, 2) int64 of a mask
    size_hw: tuple[int, int] | None = None  # of the image of that mask
    layer: int = 0  # higher ones lie on top
    group: str = ""  # shapes of one group and class are one object


@dataclass(frozen=True)
class Scene:
    """An image with its outlines."""

    name: str  # below images/, without suffix
    split: str  # train, val, test or ""
    image: Path | Callable[[], bytes] | SpatialEmbedError  # file; bytes of one, read late; its lack
    outlines: Callable[[], list[Outline]]  # read late: of a broken one the others are converted
    size_hw: tuple[int, int] | None = None  # as the source has it


@dataclass(frozen=True)
class Source:
    """What a reader is told, and where it tells what it left out."""

    path: Path
    images: Path | None  # folder of the images; None: where the layout has them
    max_pixels: int
    notes: Counter[str] = field(default_factory=Counter)

    def size(self, where: object, height: object, width: object) -> tuple[int, int]:
        """A size that is stated. Raises SpatialEmbedError: bad_annotation, too_large."""
        if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
            broken(where, f"size {str(height)[:20]} x {str(width)[:20]}")
        check_size(where, width, height, 1, self.max_pixels)
        return height, width


def broken(where: object, what: object) -> NoReturn:
    """Raise ``bad_annotation``."""
    message = f"{where}: {what}"
    raise SpatialEmbedError("bad_annotation", message, "correct or remove what is named")


def not_found(where: object, image: object, folders: Sequence[Path]) -> SpatialEmbedError:
    """``missing_pairs``: the image of an annotation is not there; the other images are."""
    looked = ", ".join(str(folder) for folder in folders)
    what = f"{where}: no image {str(image)[:200]!r} in {looked}"
    return SpatialEmbedError("missing_pairs", what, "name the folder of the images with --images")


def from_base64(where: object, text: str) -> bytes:
    """Bytes that a file of annotations holds. Raises SpatialEmbedError ``bad_annotation``."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        broken(where, f"embedded data is not base64: {error}")


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """A text file. Raises SpatialEmbedError: unreadable, not_text, too_large (exit 5)."""
    try:
        if (size := os.stat(path).st_size) > most:
            what = f"{path}: {size} bytes, the limit is {most}"
            raise SpatialEmbedError("too_large", what, "export it in parts", RESOURCE)
        if not path.is_file():  # a pipe has no end
            raise SpatialEmbedError("not_a_file", f"{path}: not a plain file", "name a file")
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise SpatialEmbedError("unreadable", f"{path}: {error}", "check its path") from error
    except UnicodeDecodeError as error:
        raise SpatialEmbedError("bad_annotation", f"{path}: not UTF-8", "export again") from error


def read_json(path: Path) -> Any:
    """A JSON file. Raises SpatialEmbedError: bad_json, and those of ``read_text``."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        what = f"{path}: not JSON: {error}"
        raise SpatialEmbedError("bad_json", what, "copy or export it again") from error


def typed(where: object, value: Any, kind: type[T]) -> T:
    """A JSON value as that struct. Raises SpatialEmbedError ``bad_annotation``."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeError) as error:  # of a key that is no UTF-8
        broken(where, error)


def files_below(folder: Path, suffix: str) -> Iterator[Path]:
    """Files of that suffix, sorted, those in hidden and linked folders left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(suffix) and not name.startswith("."):
                yield Path(parent, name)


def split_of(file: Path) -> str:
    """The part that a file of annotations is of, as valid/_annotations.json, instances_train.json.

    The folder next to it counts first; "" where none is named.
    """
    words = [*reversed(file.parent.parts), *re.findall("[a-z]+", file.stem.lower())]
    return next((SPLIT_NAMES[w.lower()] for w in words if w.lower() in SPLIT_NAMES), "")


def split_and_name(relative: Path) -> tuple[str, str]:
    """Part and name of an image by its path in the source, as "train/images/a.png"."""
    *folders, last = relative.with_suffix("").parts
    kept = [part for part in folders if part.lower() not in ("images", "labels")]
    split = next((SPLIT_NAMES[p.lower()] for p in kept if p.lower() in SPLIT_NAMES), "")
    kept = [part for part in kept if part.lower() not in SPLIT_NAMES]
    return split, "/".join([*kept, last])


def box_runs(mask: np.ndarray, top: int, left: int, height: int) -> np.ndarray:
    """(R, 2) runs of a mask (h, w) bool that lies at ``top`` and ``left`` in ``height`` rows."""
    rows = mask.shape[0] + 1  # an empty row parts the columns
    padded = np.zeros((rows, mask.shape[1]), np.int8)
    padded[:-1] = mask
    flat = np.concatenate(([0], padded.ravel(order="F")))
    edges = np.flatnonzero(np.diff(flat)).reshape(-1, 2)
    column, row = np.divmod(edges[:, 0], rows)
    starts = (left + column) * height + top + row
    return np.stack((starts, starts + edges[:, 1] - edges[:, 0]), axis=1).astype(np.int64)


def rectangle(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """Its four corners."""
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def ellipse(
    x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0
) -> list[float]:
    """A polygon of 360 corners: an outline of 1,000 px radius is 0.04 px off."""
    angle, turn = np.linspace(0, 2 * np.pi, 360, endpoint=False), np.deg2rad(degrees)
    u, v = radius_x * np.cos(angle), radius_y * np.sin(angle)
    xs, ys = x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)
    return np.stack((xs, ys), axis=1).ravel().tolist()


def turned(corners: Sequence[float], x: float, y: float, degrees: float) -> list[float]:
    """Corners turned clockwise, as seen, around (x, y)."""
    xy, turn = np.array(corners, float).reshape(-1, 2) - (x, y), np.deg2rad(degrees)
    cos, sin = np.cos(turn), np.sin(turn)
    return (xy @ np.array([[cos, sin], [-sin, cos]]) + (x, y)).ravel().tolist()


def number(where: object, said: Mapping[str, Any], name: str, default: Any = None) -> float:
    """A finite number of attributes or JSON. Raises SpatialEmbedError ``bad_annotation``."""
    value = said.get(name, default)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        broken(where, f"{name} is {str(value)[:40]!r}, not a number")
    if not abs(found) < 1e9:
        broken(where, f"{name} is {found}")
    return found
