"""Parts to the files that ``predict`` writes, one row after the other; nothing is held.

objects.csv, instances.json   as of ``predict``, byte by byte
objects.parquet               the table with types, a row group a shard, where pyarrow is
failed.csv                    image, code, message of each image that has no result
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from spatialembed.bulk.plan import Plan
from spatialembed.bulk.store import Bucket, Folder
from spatialembed.errors import INPUT, SpatialEmbedError, missing_extra
from spatialembed.results.coco import CocoFile, Entry
from spatialembed.results.objects_csv import COLUMNS, ObjectTable

TEXT, WHOLE = {"image", "class"}, {"id", "x1", "y1", "x2", "y2", "area"}
"""Columns of objects.csv by type; all others are float64."""


@dataclass
class Tally:
    """What was found."""

    images: int = 0  # with results
    objects: int = 0
    failed: int = 0


class _Entry(msgspec.Struct):
    """As ``coco.Entry``."""

    image: dict[str, Any]
    objects: list[dict[str, Any]]


class _Row(msgspec.Struct):
    """Of an image: its entry and rows, or the error."""

    image: str
    rows: str = ""
    entry: _Entry | None = None
    error: tuple[str, str] = ("internal", "nothing is said of it")


class _Said(msgspec.Struct):
    """The first line of a part."""

    images: int
    tar_bytes: int | None = None


def merge(store: Folder | Bucket, plan: Plan, parquet: bool) -> Tally:
    """Write the shared files of all parts.

    Raises SpatialEmbedError ``rows_missing`` where the rows of a part are not those of its images,
    ``disk_full``, ``missing_extra``.
    """
    place, tally = store.workplace(), Tally()
    table = ObjectTable(place / "objects.csv")
    file = CocoFile(place / "instances.json", plan.fingerprint["classes"])
    typed = _Typed(place / "objects.parquet") if parquet else None
    failures = (place / "failed.csv").open("w", encoding="utf-8", errors="surrogateescape")
    with failures:
        failed = csv.writer(failures, lineterminator="\n")
        failed.writerow(("image", "code", "message"))
        for number in range(plan.shards):
            lines = []
            for row in rows_of(store, plan, number):
                if row.entry is None:
                    failed.writerow((row.image, *row.error))
                    tally.failed += 1
                    continue
                table.append(row.rows)
                file.append(Entry(row.entry.image, row.entry.objects))
                lines.append(row.rows)
                tally.images += 1
                tally.objects += len(row.entry.objects)
            if typed is not None:
                try:
                    typed.append("".join(lines))
                except (ValueError, csv.Error) as error:  # pyarrow's own are ValueErrors
                    raise _missing(plan.part(number), f"no rows of objects: {error}") from error
    made = [table.write(), file.write(), Path(failures.name)]
    if typed is not None:
        typed.close()
        made.append(typed.path)
    if not tally.failed:
        made.remove(Path(failures.name))
        store.remove("failed.csv")
    for path in made:
        store.publish(path.name, path)
    return tally


def rows_of(store: Folder | Bucket, plan: Plan, number: int) -> Iterator[_Row]:
    """The rows of a part, held to be one for each image of the plan, in its order.

    Raises SpatialEmbedError ``rows_missing``, also where its label images are gone or cut.
    """
    part, images = plan.part(number), plan.inputs(store, number)
    try:
        facts, *lines = map(json.loads, store.read(f"{part}.jsonl").splitlines())
        said, rows = msgspec.convert(facts, _Said), msgspec.convert(lines, list[_Row])
    except FileNotFoundError as error:
        raise _missing(part, "it is not there") from error
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise _missing(part, f"it is damaged: {error}") from error
    if len(rows) != len(images) or said.images != len(images):
        raise _missing(part, f"{len(rows)} rows of {len(images)} images")
    if said.tar_bytes is not None and (there := store.size(f"{part}.tar")) != said.tar_bytes:
        what = "not there" if there is None else f"{there} bytes of {said.tar_bytes}"
        raise _missing(part, f"its label images, {part}.tar, are {what}")
    for image, row in zip(images, rows, strict=True):
        if row.image != image.name:
            raise _missing(part, f"a row of {row.image} in place of {image.name}")
        yield row


def _missing(part: str, what: str) -> SpatialEmbedError:
    remedy = f"remove {part}.*, and run the same command again"
    return SpatialEmbedError("rows_missing", f"{part}.jsonl: {what}", remedy, INPUT)


class _Typed:
    """objects.parquet."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise missing_extra("pyarrow", "bulk", "objects.parquet") from error
        self.path, self._arrow = path, pyarrow
        types = [
            pyarrow.string() if c in TEXT else pyarrow.int64() if c in WHOLE else pyarrow.float64()
            for c in COLUMNS
        ]
        self._schema = pyarrow.schema(list(zip(COLUMNS, types, strict=True)))
        self._writer: Any = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def append(self, lines: str) -> None:
        """Lines of ``objects_csv.rows``."""
        columns = list(zip(*csv.reader(io.StringIO(lines, newline="")), strict=True))
        columns = columns or [()] * len(COLUMNS)
        arrays = [
            self._arrow.array([_value(name, cell) for cell in cells], field.type)
            for name, cells, field in zip(COLUMNS, columns, self._schema, strict=True)
        ]
        if arrays and len(arrays[0]):
            self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write its end."""
        self._writer.close()


def _value(name: str, cell: str) -> Any:
    if name in TEXT:
        return (cell[1:] if cell.startswith("'") else cell).encode("utf-8", "replace").decode()
    return None if cell == "" else int(cell) if name in WHOLE else float(cell)
