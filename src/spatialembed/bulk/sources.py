"""Which images are meant: folders, globs, lists and buckets as one sorted list of inputs."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from sys import intern
from typing import NamedTuple

import numpy as np

from spatialembed.bulk.store import Bucket, as_path, is_url
from spatialembed.errors import SpatialEmbedError, missing_extra
from spatialembed.images.listing import SUFFIXES, list_images

LISTS = (".txt", ".csv", ".parquet")
COLUMNS = ("image", "path", "file", "file_name", "url")
"""Of a CSV or Parquet list, the first of these that it has."""


class Input(NamedTuple):
    """An image; ``root + name`` is its path or URL."""

    name: str  # in the results, with suffix and "/" between
    root: str  # ends in "/", or is empty

    @property
    def path(self) -> str:
        """Where it is."""
        return self.root + self.name

    @property
    def stem(self) -> str:
        """Name of its label image, without suffix."""
        path = PurePosixPath(self.name)
        return (path.with_suffix("") if path.name else path).as_posix()  # "." has no name


def list_inputs(sources: Sequence[str], out: str) -> list[Input]:
    """All images of the sources, each once, in the order in which ``predict`` lists a folder.

    Raises SpatialEmbedError: those of ``list_images``; ``bad_list``, ``store_failed``,
    ``missing_extra``.
    """
    found: list[Input] = []
    for source in map(as_path, sources):
        some = list(_of_source(source, out))
        if not some:
            what = f"{source}: no image found"
            raise SpatialEmbedError("no_images", what, f"looked for {' '.join(SUFFIXES)}")
        found += some
    found.sort(key=_order)
    unique = [each for i, each in enumerate(found) if not i or each != found[i - 1]]
    refuse_collisions(unique)
    return unique


def _order(image: Input) -> str:
    return f"{image.name}/\0{image.root}".replace("/", "\0")  # as paths are: part by part


def refuse_collisions(images: Sequence[Input]) -> None:
    """Two images of one stem would have one label image.

    Raises SpatialEmbedError ``name_collision``.
    """
    hashes = np.fromiter((hash(image.stem) for image in images), np.int64, len(images))
    order = np.argsort(hashes)  # a set of a million stems would take 100 MB
    hashes = hashes[order]
    first: dict[str, Input] = {}
    for at in np.flatnonzero(hashes[1:] == hashes[:-1]):
        for image in (images[order[at]], images[order[at + 1]]):
            if (same := first.setdefault(image.stem, image)) != image:
                what = f"{image.path}: its outputs would overwrite those of {same.path}"
                remedy = "rename one, or use one output folder for each"
                raise SpatialEmbedError("name_collision", what, remedy)


def _of_source(source: str, out: str) -> Iterable[Input]:
    suffix = PurePosixPath(source).suffix.lower()
    if is_url(source):
        if source.lower().endswith(SUFFIXES):
            return [_of_entry(source, "")]
        root = source.rstrip("/") + "/"
        names = (name for name in Bucket(source).names() if name.lower().endswith(SUFFIXES))
        return (Input(name, root) for name in names if "/." not in f"/{name}")
    if suffix in LISTS and os.path.isfile(source):
        folder = os.path.dirname(os.path.abspath(source))
        entries = {".txt": _lines, ".csv": _csv, ".parquet": _parquet}[suffix](Path(source))
        return (_of_entry(entry, folder) for entry in entries if entry)
    exclude = None if is_url(out) else as_path(out)
    return (_of_file(path, name) for path, name in list_images([source], exclude))


def _of_file(path: Path, name: str) -> Input:
    """A file that was found, whose name for outputs has no suffix."""
    full, whole = Path(os.path.abspath(path)).as_posix(), name + path.suffix
    return Input(whole, intern(full.removesuffix(whole)))


def _of_entry(entry: str, folder: str) -> Input:
    """A line of a list: a URL, an absolute path, or one below the folder of the list."""
    entry = as_path(entry)
    if is_url(entry):
        scheme, _, name = entry.partition("://")
        return Input(name, intern(f"{scheme}://"))
    if not entry.startswith("/") and ".." not in entry.split("/"):
        return Input(entry, intern(f"{folder}/"))  # one for a million
    return Input(os.path.normpath(os.path.join(folder, entry)).lstrip("/"), "/")


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from (line.rstrip("\n") for line in file)


def _column(path: Path, names: Iterable[str]) -> str:
    known = set(names)
    for name in COLUMNS:
        if name in known:
            return name
    what = f"{path}: no column of images"
    raise SpatialEmbedError("bad_list", what, f"name it {', '.join(COLUMNS)}")


def _csv(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            column = _column(path, reader.fieldnames or ())
            yield from (row[column] or "" for row in reader)
        except csv.Error as error:  # a quote that is not closed, in a long file
            raise SpatialEmbedError("bad_list", f"{path}: {error}", "check the file") from error


def _parquet(path: Path) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "bulk", "a list in Parquet") from error
    try:
        with parquet.ParquetFile(path) as file:
            column = _column(path, file.schema_arrow.names)
            for batch in file.iter_batches(columns=[column]):
                yield from (str(entry or "") for entry in batch.column(0).to_pylist())
    except ArrowException as error:
        raise SpatialEmbedError("bad_list", f"{path}: {error}", "check the file") from error
