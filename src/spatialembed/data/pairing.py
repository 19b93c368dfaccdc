"""Which image and which file of truth belong together: those of one name."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.listing import image_files, is_result

logger = logging.getLogger("spatialembed")


def by_name(
    folder: Path, end: str = "", twice: list[SpatialEmbedError] | None = None
) -> dict[str, Path]:
    """Image files below a folder by their path in it without suffix, or without ``end``.

    end: of the names that are taken; "": all are. Results of an earlier run are left out with a
    line. Raises SpatialEmbedError ``duplicate_name``, or adds it to ``twice`` and takes the first.
    """
    found: dict[str, Path] = {}
    for path in image_files(folder):
        if not path.name.endswith(end):
            continue
        if is_result(path):
            logger.warning("%s: a result of an earlier run, left out", path)
            continue
        below = path.relative_to(folder)
        name = below.as_posix().removesuffix(end) if end else below.with_suffix("").as_posix()
        if (first := found.setdefault(name, path)) != path:
            what = f"{path}: {first.name} has the same name"
            error = SpatialEmbedError("duplicate_name", what, "keep one")
            if twice is None:
                raise error
            twice.append(error)
    return found


def find_image(folders: Sequence[Path], name: str) -> tuple[str, Path] | None:
    """The file that another program named, and its name in the folder where it was found.

    Its folders are dropped one by one from the left, so that absolute names and those of another
    machine are found; nothing outside of ``folders`` is.
    """
    plain = [name] if "/" not in name and name not in ("", ".", "..") else []
    parts = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".", "..")][-32:]
    for inside in (*plain, *("/".join(parts[i:]) for i in range(len(parts)))):
        for folder in folders:
            if os.path.isfile(at := folder / inside):  # a name that no file can have is none
                return inside, at
    return None


def paired(
    where: object,
    images: Mapping[str, Path],
    truths: Mapping[str, Path],
    noun: str,
    allow_missing: bool,
) -> list[str]:
    """The names that have both an image and a truth, sorted; all others are refused by name.

    noun: of a file of truth, for messages. allow_missing: those without partner are left out.
    Raises SpatialEmbedError ``missing_pairs``.
    """
    lines = [f"no {noun} for {images[name]}" for name in sorted(images.keys() - truths.keys())]
    lines += [f"no image for {truths[name]}" for name in sorted(truths.keys() - images.keys())]
    if lines and not allow_missing:
        what = f"{where}: {len(lines)} without partner: {'; '.join(lines)}"
        remedy = "add them, or leave these out with --allow-missing"
        raise SpatialEmbedError("missing_pairs", what, remedy)
    if not (names := sorted(images.keys() & truths.keys())):
        what = f"{where}: no image has a {noun} of its name"
        raise SpatialEmbedError("missing_pairs", what, "give pairs one name")
    return names
