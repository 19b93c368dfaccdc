"""Results in the format of the Cityscapes benchmark, for its evaluator and its test server.

    lindenberg_000003_000019_leftImg8bit.txt         a line per object: mask, id of the class, score
    masks/lindenberg_000003_000019_leftImg8bit_0001.png        1 bit: what is not 0 is the object

A line's path counts from the folder of the text file. All text files lie at the top, so that it
counts from the root of the upload as well.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from spatialembed.data.cityscapes_ids import IDS
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.files import atomic_write
from spatialembed.images.write import png_bytes
from spatialembed.types import Instances

MASKS = "masks"
"""Folder of the masks."""


def check_class_names(class_names: Sequence[str]) -> None:
    """Refuse classes that the benchmark does not have, before anything is predicted.

    Raises SpatialEmbedError ``unknown_class`` (exit 2).
    """
    unknown = [name for name in class_names if name not in IDS]
    if unknown:
        raise SpatialEmbedError(
            "unknown_class",
            f"{', '.join(unknown)}: not a class of Cityscapes",
            f"its classes with instances are {', '.join(IDS)}; choose another format or metric",
            USAGE,
        )


def write_result(folder: str | Path, name: str, instances: Instances) -> Path:
    """Write the detections of one image: a text file, and a mask for each object.

    name: of the image; what stands before its last "/" is left out, since the benchmark tells
    images by their file names. instances: with names of Cityscapes classes; scores are written to
    their last bit. An image without detections gets an empty text file, which the benchmark
    requires. Returns the path of the text file, which is written last.

    Raises SpatialEmbedError ``unknown_class``, ``bad_name`` for white space in a name, which the
    format cannot hold, and ``disk_full``.
    """
    found = instances.numpy()
    check_class_names(found.class_names)
    stem = PurePath(name).name
    if not stem or re.search(r"\s", stem):
        raise SpatialEmbedError(
            "bad_name",
            f"{name!r}: the benchmark's files hold no names with white space",
            "rename the image, as city_000000_000000_leftImg8bit",
        )
    folder = Path(folder)
    (folder / MASKS).mkdir(parents=True, exist_ok=True)
    text = folder / f"{stem}.txt"
    with atomic_write(text) as temporary:
        lines = []
        for i in range(len(found)):
            mask = f"{MASKS}/{stem}_{i + 1:04d}.png"
            (folder / mask).write_bytes(png_bytes(found.mask(i)))
            class_id = IDS[found.class_names[found.classes[i]]]
            lines.append(f"{mask} {class_id} {float(found.scores[i])!r}\n")
        temporary.write_bytes(os.fsencode("".join(lines)))
    return text


def write_upload(
    folder: str | Path, path: str | Path | None = None, *, texts: Iterable[Path] | None = None
) -> Path:
    """Pack the results of a folder into the one ZIP that the test server takes.

    path: of the file, by default ``upload.zip`` in the folder. texts: the text files that go into
    it, with the masks that they name; by default all of the folder, of earlier runs too. Returns
    the path.
    Raises SpatialEmbedError ``no_results``, ``disk_full``.
    """
    folder = Path(folder)
    texts = sorted(folder.glob("*.txt") if texts is None else texts)
    if not texts:
        raise SpatialEmbedError(
            "no_results", f"{folder}: no results of Cityscapes", "predict with --format cityscapes"
        )
    path = folder / "upload.zip" if path is None else Path(path)
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for text in texts:
            file.write(text, text.name)
            for line in os.fsdecode(text.read_bytes()).splitlines():
                mask = line.split(" ")[0]
                file.write(folder / mask, mask)  # stored: a PNG is packed already
    return path
