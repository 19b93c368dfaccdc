"""Which files are meant: files, folders and globs as image paths, each with a name for outputs."""

from __future__ import annotations

import logging
import os
import sys
import unicodedata
from collections.abc import Sequence
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path

from spatialembed.errors import SpatialEmbedError

logger = logging.getLogger("spatialembed")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")
"""Names that a folder is searched for; the content alone decides how a file is read."""
RESULTS_MARKER = ".spatialembed-results"
"""A file of this name marks a folder, with all below it, as results."""
RESULT_ENDS = ("_labels.png", "_labels.tif", "_labels.zarr", "_overlay.png", "_ambiguity.png")
"""Names of results that are images; other images in a marked folder are the user's own."""
_FOLDING = sys.platform in ("win32", "darwin")
"""Whether A.png and a.png are one file, as is usual there."""


def list_images(
    sources: Sequence[str | os.PathLike[str]],
    exclude: str | os.PathLike[str] | None = None,
    *,
    quiet: bool = False,
) -> list[tuple[Path, str]]:
    """Image files of files, folders (with all below) and globs, each with its name for the outputs.

    The name is the path below the folder (or below the fixed part of the glob) without suffix, with
    "/" between. Order: as the sources, inside a folder by name. Hidden files, linked folders and
    the folder ``exclude`` (where outputs go) are passed over; so are results of earlier runs and,
    in the folder of a data set, the masks, with a line unless ``quiet``. Folders are searched by
    suffix.

    Raises SpatialEmbedError: not_found, no_images, name_collision, output_in_input.
    """
    found: dict[str, tuple[Path, str]] = {}
    out = None if exclude is None else Path(exclude).resolve()
    if not sources:
        raise SpatialEmbedError("no_images", "no source", "name files, folders or globs")
    for source in map(Path, sources):
        matches = _of_source(source, out, quiet)
        if not matches:  # a mistyped one among good ones would drop its images unseen
            raise SpatialEmbedError(
                "no_images", f"{source}: no image found", f"looked for {' '.join(SUFFIXES)}"
            )
        for path, name in matches:
            found.setdefault(os.path.abspath(path), (path, name))
    kept = [(path, name) for path, name in found.values() if not is_result(path)]
    if len(kept) < len(found):
        what = f"{len(found) - len(kept)} of {len(found)} images are results of earlier runs"
        if not kept:
            remedy = "copy those that are to be read to a folder of their own"
            raise SpatialEmbedError("no_images", what, remedy)
        if not quiet:
            logger.warning("%s, left out", what)
    refuse_collisions(kept)
    return kept


def _of_source(source: Path, out: Path | None, quiet: bool) -> list[tuple[Path, str]]:
    """Paths and output names of one file, folder or glob."""
    try:
        os.lstat(source)
    except (FileNotFoundError, NotADirectoryError):
        pass  # a glob, or not there
    except (OSError, ValueError) as error:  # too long a name, no right to look; a zero byte
        what = f"{source}: {getattr(error, 'strerror', error)}"
        raise SpatialEmbedError("unreadable", what, "check the path") from error
    if source.is_dir():
        if out == source.resolve():
            raise SpatialEmbedError(
                "output_in_input",
                f"{source}: both input and output folder",
                "choose another output folder; one inside the input is fine",
            )
        if is_zarr(source):
            return [(source, source.stem)]
        paths = _without_masks(source, image_files(source, out, zarr=True), quiet)
        return [(path, _name(path, source)) for path in paths]
    if has_magic(str(source)) and not source.exists():
        return _of_glob(source, out)
    if not os.path.lexists(source):
        raise SpatialEmbedError("not_found", f"{source}: no such file or folder", "check the path")
    return [(source, source.stem)]


def _without_masks(source: Path, paths: Sequence[Path], quiet: bool) -> list[Path]:
    """A data set keeps masks/ beside images/; they are images to read, but not to look into."""
    masks = {p.parent for p in paths if p.parent != source and p.parent.name == "masks"}
    masks = {folder for folder in masks if (folder.parent / "images").is_dir()}
    for folder in [] if quiet else sorted(masks):
        logger.warning("%s: masks of a data set, left out", folder)
    return [path for path in paths if path.parent not in masks]


def mark_results(folder: Path) -> None:
    """Say of a folder, made if need be, that it holds results."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (marker := folder / RESULTS_MARKER).exists():
        marker.write_text("Results of spatialembed: a later run does not read them as images.\n")


def is_result(path: Path) -> bool:
    """Whether a path is named as a result is and lies in, or below, a folder of results."""
    of_benchmark = path.parent.parts[-2:] == ("cityscapes", "masks")
    if not (path.name.endswith(RESULT_ENDS) or of_benchmark):
        return False
    return any((folder / RESULTS_MARKER).exists() for folder in path.absolute().parents)


def is_zarr(path: Path) -> bool:
    """Whether a path is the folder of a Zarr array or group, of format 2 or 3: one image."""
    return path.is_dir() and any((path / f).is_file() for f in ("zarr.json", ".zgroup", ".zarray"))


def image_files(folder: Path, out: Path | None = None, *, zarr: bool = False) -> list[Path]:
    """Image files below a folder, by suffix, sorted by name; links to folders are not followed.

    zarr: folders that are Zarr images count as files; otherwise they are searched like others.
    """
    paths = []
    for parent, folders, files in os.walk(folder, onerror=_warn_of_folder, followlinks=False):
        if out is not None and Path(parent).resolve() == out:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in files if _is_image_name(name)]
        if zarr:
            images = [name for name in folders if is_zarr(Path(parent, name))]
            paths += [Path(parent, name) for name in images]
            folders[:] = [name for name in folders if name not in images]
    return sorted(paths, key=lambda path: path.parts)


def _warn_of_folder(error: OSError) -> None:
    """A folder that cannot be opened may hold images: it is not passed over in silence."""
    logger.warning("%s: not searched: %s", error.filename, error.strerror)


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _of_glob(pattern: Path, out: Path | None) -> list[tuple[Path, str]]:
    """Matches of a glob; "**" is walked here, since the standard one follows links in circles."""
    fixed = next(i for i, part in enumerate(pattern.parts) if has_magic(part))
    base, parts = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
    if "**" in parts:
        every = image_files(base, out, zarr=True)
        paths = [p for p in every if _matches(p.relative_to(base).parts, parts)]
    else:
        found = [Path(hit) for hit in sorted(glob(str(pattern)))]
        hits = [hit for hit in found if _is_image_name(hit.name) or is_zarr(hit)]
        paths = [hit for hit in hits if out is None or out not in hit.resolve().parents]
    return [(path, _name(path, base)) for path in paths if not path.is_dir() or is_zarr(path)]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _name(path: Path, base: Path) -> str:
    return path.relative_to(base).with_suffix("").as_posix()


def refuse_collisions(found: Sequence[tuple[object, str]]) -> None:
    """Two inputs of one name would overwrite each other's outputs: refused before anything runs.

    Raises SpatialEmbedError: name_collision.
    """
    first: dict[str, object] = {}
    for path, name in found:
        key = unicodedata.normalize("NFC", name).casefold() if _FOLDING else name
        if key in first:
            raise SpatialEmbedError(
                "name_collision",
                f"{path}: its outputs would overwrite those of {first[key]}",
                "rename one, name their common folder, or use one output folder for each",
            )
        first[key] = path
