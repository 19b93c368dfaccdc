"""The results of many images in one folder: files of each, and the two files that all share.

``add`` hands an image to writing threads and returns at once, so that the network does not wait
for pictures; the threads' entries go into the shared files in the order of adding.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from spatialembed.concurrency import helpers
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.images.listing import mark_results
from spatialembed.images.pixel_size import pixel_size
from spatialembed.pictures.contact_sheet import ContactSheet
from spatialembed.pictures.run_page import RunPage
from spatialembed.pictures.thumbnail import Thumbnail, thumbnail
from spatialembed.results import coco, objects_csv
from spatialembed.results.cityscapes import write_result, write_upload
from spatialembed.results.coco import CocoFile
from spatialembed.results.formats import DEFAULT, check, chosen
from spatialembed.results.labels import write_labels
from spatialembed.results.measurements import measure
from spatialembed.results.objects_csv import ObjectTable
from spatialembed.results.outline_files import LONGEST, write_geojson, write_imagej
from spatialembed.results.overlay import overlay_path, pixels_of, write_ambiguity, write_overlay
from spatialembed.types import Instances

logger = logging.getLogger("spatialembed")
WRITE_EVERY_S = 30
"""A kill loses no more of the shared files than this, in seconds; of large ones as long as writing
them takes ``SHARE`` times."""
SHARE = 20
CITYSCAPES = "cityscapes"
"""Folder of the results in the benchmark's format."""
WAITING_PIXELS = 1 << 26
"""No more pixels than this wait to be written, about half a gigabyte; ``add`` waits instead."""


class _Page(NamedTuple):
    """What one image adds to the shared files, once its own are written."""

    rows: str
    entry: coco.Entry | None
    thumbnail: Thumbnail | None = None
    upload: Path | None = None  # the text file for Cityscapes


class ResultFolder:
    """Each image's own files, and ``objects.csv`` and ``instances.json`` of all, as chosen.

    As a context it waits for the files of the images and writes the shared ones on the way out,
    after an error or Ctrl-C too: nothing that was added is lost.
    """

    def __init__(
        self,
        out: str | Path,
        class_names: Sequence[str],
        *,
        formats: str | Sequence[str] = DEFAULT,
        simplify: float = 0.0,
        pages: Sequence[ContactSheet | RunPage] = (),
    ) -> None:
        """Names of ``formats.FORMATS``; simplify: of outlines, px, see ``polygons``.

        pages: are handed the thumbnail of each image; who made them closes them.

        Raises SpatialEmbedError of ``formats.check`` (exit 2).
        """
        out, formats = Path(out), check(formats, class_names, simplify)
        self.out, self.formats, self.simplify = out, formats, simplify
        self.pages = pages
        self._table = ObjectTable(out / "objects.csv") if "csv" in formats else None
        self._coco = CocoFile(out / "instances.json", class_names) if "coco" in formats else None
        self._uploads: list[Path] = []
        self._written, self._took = time.monotonic(), 0.0  # s, when and how long it last wrote
        self._threads = ThreadPoolExecutor(helpers(), thread_name_prefix="write")
        self._pending: deque[tuple[Future[_Page], int]] = deque()  # and how many pixels it holds

    def add(
        self,
        image: str,
        pixels: Any,
        instances: Instances,
        *,
        stem: str | None = None,
        ambiguity: np.ndarray | None = None,
        pixel_um: tuple[float, float] | None = None,
    ) -> Path:
        """Queue one image's results for writing; returns the path that its overlay will have.

        image: its name in the shared files. pixels: (H, W) or (H, W, 3), any dtype. stem: path of
        its own files below the folder, without suffix; by default ``image``. ambiguity: (H, W) in
        [0, 1], to be written too. pixel_um: width and height of a pixel, where known. None of them
        may be changed afterwards.
        Raises SpatialEmbedError ``disk_full``, of this image or of one before it.
        """
        place, size = self.out / (stem or image), instances.labels.size
        self._note_written(2 * helpers(), WAITING_PIXELS - size)
        job = self._threads.submit(
            self._write_image, place, image, pixels, instances.numpy(), ambiguity, pixel_um
        )
        self._pending.append((job, size))
        return overlay_path(place)

    def _write_image(
        self,
        place: Path,
        name: str,
        pixels: Any,
        found: Instances,
        ambiguity: np.ndarray | None,
        pixel_um: tuple[float, float] | None,
    ) -> _Page:
        """Write the own files of an image, in a thread."""
        formats = self.formats
        if "labels" in formats or "tiff" in formats:
            write_labels(place, found.labels, "tiff" in formats)
        if "overlay" in formats:
            write_overlay(place, pixels, found)
        if "geojson" in formats:
            path = place.with_name(f"{place.name}.geojson")
            write_geojson(path, found, simplify=self.simplify)
        if "imagej" in formats and max(found.labels.shape) > LONGEST:
            logger.warning("%s: no ImageJ ROIs, their boxes end at %d px", name, LONGEST)
        elif "imagej" in formats:
            path = place.with_name(f"{place.name}_rois.zip")
            write_imagej(path, found, simplify=self.simplify)
        upload = None
        if "cityscapes" in formats:
            upload = write_result(self.out / CITYSCAPES, place.name, found)
        if ambiguity is not None:
            write_ambiguity(place, ambiguity)
        rows, entry, small = "", None, None
        if self._table or self._coco or self.pages:
            facts = measure(found.labels, len(found), pixels)
            rows = objects_csv.rows(name, found, facts, pixel_um) if self._table else ""
            entry = coco.describe(name, found, facts) if self._coco else None
            if self.pages:
                link = self.link(place) if "overlay" in formats else ""
                small = thumbnail(name, link, pixels, found.labels, found, facts.areas, facts.boxes)
        return _Page(rows, entry, small, upload)

    def link(self, place: Path) -> str:
        """The overlay of an image as a page in the folder names it; place: as ``overlay_path``."""
        return overlay_path(place).relative_to(self.out).as_posix()

    def note(self, rows: str, entry: coco.Entry, small: Thumbnail | None = None) -> None:
        """Add an image, whose own files are written already, to the shared files.

        rows, entry, small: of ``objects_csv.rows``, ``coco.entries`` and ``thumbnail``. Waits for
        those added before.
        Raises SpatialEmbedError ``disk_full``.
        """
        self.wait()
        self._append(_Page(rows, entry, small))
        self.write()

    def _append(self, page: _Page) -> None:
        if self._table is not None:
            self._table.append(page.rows)
        if self._coco is not None and page.entry is not None:
            self._coco.append(page.entry)
        if page.thumbnail is not None:
            for shown in self.pages:
                shown.add(page.thumbnail)
        if page.upload is not None:
            self._uploads.append(page.upload)

    def wait(self) -> None:
        """Until the pictures of all images added so far are written. Raises ``disk_full``."""
        self._note_written(0, 0)

    def _note_written(self, most: int, most_pixels: int) -> None:
        """Note the images that are written, and wait until few enough are left."""
        while self._pending and (
            self._pending[0][0].done()
            or len(self._pending) >= most
            or sum(size for _, size in self._pending) > most_pixels
        ):
            self._note_first()

    def _note_first(self) -> None:
        job = self._pending[0][0]
        futures.wait([job])  # interrupted here, it stays pending, and is noted on the way out
        self._pending.popleft()
        self._append(job.result())
        if time.monotonic() - self._written > max(WRITE_EVERY_S, SHARE * self._took):
            self.write()

    def write(self) -> None:
        """Write the shared files as they stand. Raises SpatialEmbedError ``disk_full``."""
        begun = time.perf_counter()
        try:
            if self._table is not None:
                self._table.write()
        finally:  # what keeps one from being written may not keep the other
            if self._coco is not None:
                self._coco.write()
        self._written = time.monotonic()
        self._took = time.perf_counter() - begun

    def __enter__(self) -> ResultFolder:
        mark_results(self.out)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            futures.wait([job for job, _ in self._pending])
        finally:  # a second Ctrl-C ends the waiting
            self._threads.shutdown(wait=False, cancel_futures=True)
            fault = self._note_rest()
            self.write()
            if self._uploads:
                write_upload(self.out / CITYSCAPES, texts=self._uploads)
        if fault is not None and error is None:
            raise fault

    def _note_rest(self) -> BaseException | None:
        """Note those of the rest that are written; returns the first fault of the others."""
        faults: list[BaseException] = []
        while self._pending:
            job = self._pending[0][0]
            if job.cancelled() or not job.done():
                self._pending.popleft()
                continue
            try:
                self._note_first()
            except BaseException as fault:
                faults.append(fault)
        return faults[0] if faults else None


def save(
    instances: Instances,
    folder: str | Path,
    formats: str | Sequence[str] | None = None,
    *,
    image: Any = None,
    name: str | None = None,
) -> None:
    """The files of one image, see ``Instances.save``."""
    path = Path(image) if isinstance(image, (str, os.PathLike)) else None
    pixels = None if image is None else pixels_of(image, instances)
    if formats is None:
        formats = [form for form in DEFAULT if form != "overlay" or image is not None]
    elif image is None and "overlay" in chosen(formats):
        what, remedy = "an overlay without an image", "give image=, or other formats"
        raise SpatialEmbedError("bad_setting", what, remedy, USAGE)
    with ResultFolder(folder, instances.class_names, formats=formats) as results:
        results.add(
            name or (path.name if path else "image"),
            pixels,
            instances.numpy(),
            stem=name or (path.stem if path else "image"),
            pixel_um=pixel_size(path) if path else None,
        )
