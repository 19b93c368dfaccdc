"""Folders of images into a folder of results; a failed input is reported, and the others continue.

Reading, the network, clustering and writing overlap: ``Predictor.outcomes`` and ``ResultFolder``
hold a bounded number of images each, and both keep the order.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spatialembed.console import Stages, noted_warnings, printable
from spatialembed.errors import PARTIAL, RESOURCE, SpatialEmbedError
from spatialembed.files import locked
from spatialembed.images.listing import list_images, refuse_collisions
from spatialembed.images.pixel_size import pixel_size
from spatialembed.images.read import Page, each_page
from spatialembed.images.windows import image_size
from spatialembed.inference.predict_large import goes_by_tiles, predict_large
from spatialembed.inference.predictor import Outcome, Predictor
from spatialembed.inference.tiling import TileOptions
from spatialembed.method.cluster import ClusterOptions
from spatialembed.pictures.contact_sheet import ContactSheet
from spatialembed.pictures.run_page import RunPage
from spatialembed.results.folder import CITYSCAPES, ResultFolder
from spatialembed.results.formats import DEFAULT, WHOLE_ONLY, chosen

logger = logging.getLogger("spatialembed")

SAMPLED = 16
"""Headers that are read to tell how long a job will be."""


@dataclass
class FolderResult:
    """What ``predict_folder`` did."""

    out: Path
    images: int = 0  # with results
    objects: int = 0
    truncated: list[Path | Page] = field(default_factory=list)  # stopped at max_instances
    failed: list[tuple[Path | Page, SpatialEmbedError]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Of the command line: 0, 6 if some inputs failed, the first fault's own if all did."""
        if not self.failed:
            return 0
        return PARTIAL if self.images else self.failed[0][1].exit_code


def predict_folder(
    predictor: Predictor,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    batch: int = 8,
    augment: bool = False,
    options: ClusterOptions | None = None,
    ambiguity: bool = False,
    pages: Literal["first", "all"] = "first",
    tiles: TileOptions | None = None,
    formats: str | Sequence[str] = DEFAULT,
    simplify: float = 0.0,
    sheet: bool = False,
    report: Mapping[str, object] | None = None,
    progress: bool = True,
) -> FolderResult:
    """Predict files, folders and globs into the folder ``out``.

    Each image's own files are written once it is done, folders mirrored. ``objects.csv`` and
    ``instances.json`` of all images are written every half minute and on the way out, after Ctrl-C
    too. A failed input is logged and kept in the result, and the others continue.

    Args:
        predictor: The model.
        sources: Image files, folders (with all below) and globs.
        out: Folder of the results.
        batch: Most images of one size that go through the network together.
        augment: Average the maps over the 8 turns and flips.
        options: Thresholds; None: the model's own.
        ambiguity: Whether each image gets ``<name>_ambiguity.png`` too.
        pages: "first", or "all": every page of a TIFF is an image, ``<name>_p0001`` and so on.
        tiles: Images that are large by these settings come last, one by one, see ``predict_large``;
            None: the defaults of ``TileOptions``.
        formats: Names of ``results.formats.FORMATS``, in a sequence or with commas between.
        simplify: Px by which outlines may depart from the pixel edges.
        sheet: Whether to write contact sheets, ``sheet.jpg`` and so on.
        report: Settings of the run to show in ``report.html``; None: no such page.
        progress: Whether to draw a bar on stderr.

    Returns:
        Counts, failures and paths of the run.

    Raises:
        SpatialEmbedError: Those of ``list_images``, ``formats.check`` and ``files.locked`` before
            anything runs; ``disk_full`` (exit 5).
    """
    out, tiles, formats = Path(out), tiles or TileOptions(), chosen(formats)
    names = dict(_inputs(sources, out, pages))
    if CITYSCAPES in formats:  # the benchmark tells images by the last part of their names
        refuse_collisions([(path, name.rpartition("/")[2]) for path, name in names.items()])
    class_names = predictor.info.class_names
    shown: list[ContactSheet | RunPage] = [ContactSheet(out)] if sheet else []
    shown += [] if report is None else [RunPage(out, class_names, report)]
    results = ResultFolder(out, class_names, formats=formats, simplify=simplify, pages=shown)
    options = options or predictor.settings
    job = _Job(predictor, names, results, FolderResult(out), options, tiles, augment, progress)
    outcomes = predictor.outcomes(
        job.whole(),
        batch=batch,
        augment=augment,
        options=options,
        ambiguity=ambiguity,
        scale=tiles.scale,
    )
    with locked(out), _closed(shown, job.done), results:
        with Stages(progress, "images", len(names)) as stages:
            for outcome in stages.passed(outcomes):
                job.add(outcome)
        without = [name for name in formats if name in WHOLE_ONLY] + ["ambiguity"] * ambiguity
        if without and job.large:
            left_out = ", ".join(without)
            logger.warning("no %s for the %d tiled images", left_out, len(job.large))
        for path in job.large:
            job.add_large(path)
    return job.done


@dataclass
class _Job:
    """A folder on its way: each image goes into the results, or is noted as failed."""

    predictor: Predictor
    names: Mapping[Path | Page, str]  # of the outputs of each input
    results: ResultFolder
    done: FolderResult
    options: ClusterOptions
    tiles: TileOptions
    augment: bool
    progress: bool
    large: list[Path] = field(default_factory=list)  # for later, told as ``whole`` comes to them

    def whole(self) -> Iterator[Path | Page]:
        """The inputs that go through the network whole."""
        for path in self.names:
            # Its scale is as --diameter has it.
            scale, most = self.predictor.engine.scale, self.predictor.max_pixels
            if isinstance(path, Path) and goes_by_tiles(path, scale, self.tiles, most):
                self.large.append(path)
            else:
                yield path

    def add(self, outcome: Outcome) -> None:
        """One image that went through the network whole."""
        path, found = outcome.source, outcome.instances
        if found is None or outcome.pixels is None:
            assert outcome.error is not None
            self.failed(path, outcome.error)
            return
        name = self.names[path]
        self.results.add(
            name + path.suffix,
            outcome.pixels,
            found,
            stem=_short(name),
            ambiguity=outcome.ambiguity,
            pixel_um=pixel_size(path),
        )
        self.counted(path, len(found), found.truncated)

    def add_large(self, path: Path) -> None:
        """Predict one image tile by tile."""
        logger.info("%s: predicted tile by tile", path)
        name = self.names[path]
        try:
            found = predict_large(
                self.predictor.engine,
                self.predictor.info,
                path,
                self.results,
                name=name + path.suffix,
                stem=_short(name),
                options=self.options,
                tiles=self.tiles,
                augment=self.augment,
                channel=self.predictor.channel,
                progress=self.progress,
            )
            self.counted(path, found.objects, found.truncated)
        except SpatialEmbedError as error:
            self.failed(path, error)
        except MemoryError:
            what, remedy = f"{path}: no memory left", "give less to --memory"
            self.failed(path, SpatialEmbedError("out_of_memory", what, remedy, RESOURCE))

    def failed(self, path: Path | Page, error: SpatialEmbedError) -> None:
        self.done.failed.append((path, error))
        logger.error("%s", printable(_named(path, error)))

    def counted(self, path: Path | Page, objects: int, truncated: bool) -> None:
        self.done.images += 1
        self.done.objects += objects
        if truncated:
            self.done.truncated.append(path)
            logger.warning("%s: stopped at max_instances, there may be more", printable(str(path)))


def job_pixels(sources: Sequence[str | Path], out: str | Path) -> float:
    """Pixels of all images of a ``predict_folder`` together, estimated by a few headers.

    Raises SpatialEmbedError as ``list_images`` does: so missing inputs are told before a model is
    loaded.
    """
    return pixels_of([path for path, _ in list_images(sources, exclude=out, quiet=True)])


def pixels_of(files: Sequence[Path]) -> float:
    """Pixels of image files together, estimated by a few headers; broken ones count nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again when the image is read
        sizes = [image_size(path) for path in files[:: max(1, -(-len(files) // SAMPLED))]]
    known = [height * width for height, width in filter(None, sizes)]
    return len(files) * sum(known) / max(1, len(known))


def _inputs(
    sources: Sequence[str | Path], out: Path, pages: Literal["first", "all"]
) -> list[tuple[Path | Page, str]]:
    """Files, or each page of each, with the names of their outputs."""
    files = list_images(sources, exclude=out)
    if pages == "first":
        return [*files]
    images = [image for path, name in files for image in each_page(path, name)]
    refuse_collisions(images)
    return images


def _short(name: str) -> str:
    """A name whose outputs fit the 255 bytes of file systems: a long one ends in its hash."""
    folder, slash, last = name.rpartition("/")
    encoded = os.fsencode(last)
    if len(encoded) <= 255 - len("_ambiguity.png"):
        return name
    kept = encoded[:200].decode("utf-8", "ignore")
    return f"{folder}{slash}{kept}-{hashlib.sha256(encoded).hexdigest()[:16]}"


def _named(path: Path | Page, error: SpatialEmbedError) -> str:
    """The error's line with the path in it, once."""
    return str(error) if str(path) in error.message else f"{path}: {error}"


@contextmanager
def _closed(shown: Sequence[ContactSheet | RunPage], result: FolderResult) -> Iterator[None]:
    """Collect the warnings of a run, and show them and its failures on its pages."""
    said: list[str] = []
    try:
        with noted_warnings(said):
            yield
    finally:  # after Ctrl-C too
        for page in shown:
            page.close([_named(path, error) for path, error in result.failed], said)
