"""Images of any size in bounded memory: the network tile by tile, the clustering once over all.

    look over -> tiles: read, network, candidates -> gather -> cluster -> labels, table, overlay
                 \\___ each saved in a work folder ___/

An object across a seam is one object, since only the maps are made in tiles. With a context of
``Parts.exact_context`` px the answer is that of the whole image; less is an approximation, whose
effect docs/huge.md gives. An interrupted run resumes with the tiles it has.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from spatialembed import __version__
from spatialembed.concurrency import prefetch
from spatialembed.console import Stages
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.images.listing import is_zarr
from spatialembed.images.overview import Overview, look_over, rescaled
from spatialembed.images.pixel_size import pixel_size
from spatialembed.images.read import MAX_PIXELS
from spatialembed.images.resample import nearest_index
from spatialembed.images.windows import LargeImage, image_size, open_large
from spatialembed.images.write import write_png
from spatialembed.inference.engine import average_over_turns
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.tile_candidates import WorkFolder, check_room, label_bands, owned
from spatialembed.inference.tiling import (
    BASE_BYTES,
    BYTES_TILE,
    BYTES_WHOLE,
    WIDEST,
    Tile,
    cut_off,
    image_context,
    plan_tiles,
    tile_for,
)
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.kernels.candidates import Candidates, candidates
from spatialembed.method.model import NETWORKS
from spatialembed.method.normalization import network_input
from spatialembed.pictures.drawing import overlay
from spatialembed.pictures.thumbnail import thumbnail
from spatialembed.results import coco, objects_csv
from spatialembed.results.folder import ResultFolder
from spatialembed.results.labels import TILE, remove_labels, write_label_tiff, write_label_zarr
from spatialembed.results.measurements import Measure
from spatialembed.results.overlay import overlay_path
from spatialembed.types import Instances

if TYPE_CHECKING:
    from spatialembed.inference.engine import Engine

logger = logging.getLogger("spatialembed")

BYTES_READ = 45
"""Of an image that is read whole, bytes for each pixel: its colours, as floats, and on the way."""
OVERLAY_SIDE = 2048
"""Longest side of the overlay, px."""
USUAL_SHARE = 0.25
"""Share of candidates among the pixels for which disk space is required beforehand."""


@dataclass(frozen=True)
class TileOptions:
    """How large images are worked on."""

    tile: int | None = None
    """Side of the tiles in px of the image, images above it go by tiles; none: by memory."""
    context: int = 128
    """Px around a tile that the network sees too, as it sees them; 624 is exact, 224 of lite."""
    memory: float = 3.0
    """Process memory in GB; images whose whole maps need more go by tiles."""
    scale: float = 1.0
    """Images are reduced by this, in (0, 1], and what is found is enlarged again."""
    labels: Literal["tiff", "zarr"] = "tiff"
    """File of the labels of an image that went by tiles."""

    def __post_init__(self) -> None:
        """Raises SpatialEmbedError ``bad_setting`` (exit 2)."""
        for name, wanted, fine in (
            ("tile", "16 or more", self.tile is None or self.tile >= 16),
            ("context", "0 or more", self.context >= 0),
            ("memory", "1.2 or more", self.memory >= 1.2),
            ("scale", "from 1/64 to 1", 1 / 64 <= self.scale <= 1),
        ):
            if not fine:
                what = f"{name} is {getattr(self, name)}"
                raise SpatialEmbedError("bad_setting", what, f"give {wanted}", USAGE)


class LargeResult(NamedTuple):
    """What ``predict_large`` wrote."""

    labels: Path
    overlay: Path
    objects: int
    truncated: bool
    tiles: int
    resumed: int  # tiles that an earlier run had done


def goes_by_tiles(
    path: Path, network_scale: float, tiles: TileOptions, max_pixels: int = MAX_PIXELS
) -> bool:
    """Whether an image file is one for ``predict_large``, by its header alone.

    network_scale: at which the model's network sees images. max_pixels: above it the usual reader
    refuses an image.
    """
    if is_zarr(path):
        return True
    size = image_size(path)
    if size is None:
        return False  # the usual reader reports the fault
    if tiles.tile is not None and max(size) * tiles.scale > tiles.tile:
        return True
    pixels = size[0] * size[1]
    seen = pixels * (tiles.scale * network_scale) ** 2
    need = max(pixels * BYTES_READ, seen * BYTES_WHOLE)
    return pixels > max_pixels or (tiles.tile is None and need > tiles.memory * 1e9)


def predict_large(
    engine: Engine,
    info: ModelInfo,
    source: str | Path,
    results: ResultFolder,
    *,
    name: str,
    stem: str,
    options: ClusterOptions,
    tiles: TileOptions = TileOptions(),
    augment: bool = False,
    progress: bool = True,
) -> LargeResult:
    """Detect the instances of one large image tile by tile; adds them to ``results``.

    Args:
        engine: The network.
        info: Description of its model.
        source: A file or Zarr folder, as ``open_large`` takes it.
        results: The folder that gets its objects.
        name: Of the image in the shared files.
        stem: Of its own files below the folder: ``<stem>_labels.tif`` (or .zarr) and
            ``<stem>_overlay.png``; unfinished work stands in ``.<stem>.part`` beside them.
        options: Thresholds.
        tiles: Size, context, scale and memory.
        augment: Average the maps over the 8 turns and flips.
        progress: Whether to draw bars on stderr.

    Returns:
        The paths and the number of objects.

    Raises:
        SpatialEmbedError: Those of ``open_large`` and ``LargeImage.read``; ``bad_setting``
            (exit 2), ``non_finite_output`` (exit 4), ``out_of_memory`` and ``disk_full``
            (exit 5).
    """
    place = results.out / stem
    run = _Run(engine, info, Path(source), place, options, tiles, augment)
    with Stages(progress, name) as stages:
        return run.work(results, name, stages)


class _Run:
    """One large image on its way."""

    def __init__(
        self,
        engine: Engine,
        info: ModelInfo,
        source: Path,
        place: Path,
        options: ClusterOptions,
        tiles: TileOptions,
        augment: bool,
    ) -> None:
        self.engine, self.info, self.source, self.place = engine, info, source, place
        self.options, self.tiles, self.augment = options, tiles, augment
        folder = place.with_name(f".{place.name}.part")
        self.folder = WorkFolder(folder, self._facts(), 2 if info.elliptical else 1)

    def work(self, results: ResultFolder, name: str, stages: Stages) -> LargeResult:
        differs = self.folder.open()
        if differs:
            logger.warning("%s: starting over, the %s has changed", self.source, differs)
        with closing(open_large(self.source, self.folder.path)) as source:
            image = rescaled(source, self.tiles.scale)
            plan = self.plan(image.shape_hw)
            pixels = image.shape_hw[0] * image.shape_hw[1]
            check_room(self.folder.path, pixels, USUAL_SHARE, self.folder.record.itemsize)
            todo = [tile for tile in plan if self.folder.load(tile) is None]
            logger.info("%s: tiles: %d, to do: %d", self.source, len(plan), len(todo))
            overview = self.overview(image, stages)
            self.run_tiles(image, overview, todo, stages)
            stages.begin("clustering", None)
            width = image.shape_hw[1]
            found = self.folder.gather(plan, width, len(self.info.class_names))
            instances, owners = self.cluster(found)
            labels, overlay = self.write(
                results, name, (found, owners, instances), source, image, plan, overview, stages
            )
        self.folder.remove()
        done = len(plan) - len(todo)
        number = len(instances)
        return LargeResult(labels, overlay, number, instances.truncated, len(plan), done)

    def _facts(self) -> dict[str, Any]:
        """All that the candidates of a tile depend on."""
        return {
            "version": __version__,  # another may find other candidates
            "image": [os.path.abspath(self.source), *_identity(self.source)],
            "model": self.info.weights_sha256,
            "normalization": asdict(self.info.normalization),
            "engine": [self.engine.name, self.engine.precision, self.engine.scale],
            "tiles": {k: v for k, v in asdict(self.tiles).items() if k != "labels"},
            "augment": self.augment,
            "foreground": self.options.foreground,
        }

    def plan(self, shape_hw: tuple[int, int]) -> list[Tile]:
        """The tiles of the image as it is worked on."""
        scale, stride = self.engine.scale, NETWORKS[self.info.network].stride
        context = image_context(self.tiles.context, scale, stride)
        tile = self.tiles.tile or tile_for(
            self.tiles.memory * 1e9 - BASE_BYTES,
            context,
            scale,
            bytes_per_pixel=BYTES_TILE,
            most=WIDEST,
            stride=stride,
        )
        return plan_tiles(*shape_hw, tile=tile, context=context, scale=scale, stride=stride)

    def overview(self, image: LargeImage, stages: Stages) -> Overview:
        """The first look at the image; that of an earlier run where there is one."""
        file = self.folder.path / "overview.npz"
        if (saved := Overview.load(file)) is not None:
            return saved
        stages.begin("first look", 100)
        overview = look_over(
            image,
            self.info.normalization,
            side=OVERLAY_SIDE,
            advance=lambda share: stages.advance(100 * share),
        )
        overview.save(file)
        return overview

    def run_tiles(
        self, image: LargeImage, overview: Overview, todo: Sequence[Tile], stages: Stages
    ) -> None:
        """Run the network on the windows of these tiles and save the candidates of their cores."""
        stages.begin("network", len(todo))

        def read(tile: Tile) -> tuple[Tile, np.ndarray]:
            return tile, image.read(*tile.window)

        for tile, pixels in prefetch(read, todo, threads=1, room=lambda _: 1):
            self.folder.save(tile, self.candidates(tile, pixels, overview, image.shape_hw[1]))
            stages.advance()

    def candidates(
        self, tile: Tile, pixels: np.ndarray, overview: Overview, width: int
    ) -> list[Candidates]:
        """Candidates of each class in the core of a tile, by the pixels of its window."""
        images = network_input(pixels, self.info.normalization, overview.levels)[None]
        maps = average_over_turns(self.engine, images) if self.augment else self.engine(images)
        core, window = tile.core, tile.window
        rows = slice(core.y0 - window.y0, core.y1 - window.y0)
        columns = slice(core.x0 - window.x0, core.x1 - window.x0)
        offset, log_precision, seed = (
            m[0, :, rows, columns].detach().to("cpu", torch.float32).contiguous().numpy()
            for m in maps
        )
        return candidates(
            offset,
            log_precision,
            seed,
            foreground=self.options.foreground,
            origin_yx=(core.y0, core.x0),
            image_width=width,
            threads=torch.get_num_threads(),
            name=f"{self.source}, rows {core.y0} to {core.y1}, columns {core.x0} to {core.x1}",
        )

    def cluster(self, found: Sequence[Candidates]) -> tuple[Instances, list[np.ndarray]]:
        """The instances, without their labels, and of each class the label of each candidate."""
        from spatialembed.method.kernels import cpu

        settled = cpu.cluster_candidates(found, self.options, threads=torch.get_num_threads())
        expected = None
        if self.info.calibration is not None:
            sums = np.zeros((2, len(settled.scores) + 1))
            for label, part in owned(found, settled.owners):
                sums[0] += np.bincount(label, part.seed, sums.shape[1])
                sums[1] += np.bincount(label, minlength=sums.shape[1])
            expected = self.info.calibration.expected_iou(sums[0, 1:] / sums[1, 1:])
        instances = Instances(
            np.zeros((0, 0), np.int32),
            settled.scores,
            settled.classes,
            self.info.class_names,
            settled.truncated,
            expected,
        )
        return instances, settled.owners

    def warn_of_size(
        self, boxes: np.ndarray, plan: Sequence[Tile], shape_hw: tuple[int, int]
    ) -> None:
        """Warn where the context was too small for the detections; boxes in px of the plan."""
        if self.tiles.context >= (exact := NETWORKS[self.info.network].exact_context):
            return
        cut = cut_off(boxes, plan, shape_hw)
        if len(cut):
            window = plan[0].window.shape_hw
            logger.warning(
                "%s: %d of %d objects are longer than a tile could see around them (%d x %d px), "
                "so their outlines may be wrong: give a larger --context (%d is exact) or a "
                "smaller --scale; the first is object %d",
                self.source, len(cut), len(boxes), window[0], window[1], exact, cut[0] + 1,
            )  # fmt: skip

    def write(
        self,
        results: ResultFolder,
        name: str,
        what: tuple[Sequence[Candidates], Sequence[np.ndarray], Instances],
        source: LargeImage,
        worked: LargeImage,
        plan: Sequence[Tile],
        overview: Overview,
        stages: Stages,
    ) -> tuple[Path, Path]:
        """Labels and overlay, at the size of the source, and its lines in the shared files."""
        found, owners, instances = what
        factor, size_hw, small_hw = self.tiles.scale, source.shape_hw, worked.shape_hw
        rows, columns = (
            nearest_index(0, side, small, factor)
            for side, small in zip(size_hw, small_hw, strict=True)
        )
        stages.begin("writing", -(-size_hw[0] // TILE))
        read = partial(_rows_of, source) if "csv" in results.formats else None
        measure = Measure(len(instances), size_hw, self.folder.path / "runs.bin", read)
        by_band = (rows[y : y + TILE] for y in range(0, size_hw[0], TILE))
        bands = label_bands(found, owners, small_hw[1], by_band, columns)
        bands = stages.passed(measure.passed(bands))
        write = write_label_tiff if self.tiles.labels == "tiff" else write_label_zarr
        suffix = "tif" if self.tiles.labels == "tiff" else "zarr"
        path = self.place.with_name(f"{self.place.name}_labels.{suffix}")
        written = write(self.folder.path / f"labels.{suffix}", bands, size_hw, len(instances))
        for kind in ("png", "tif", "zarr"):  # of an earlier run
            remove_labels(self.place.with_name(f"{self.place.name}_labels.{kind}"))
        os.replace(written, path)
        few_rows, few_columns = (
            at[((np.arange(px) + 0.5) * len(at) / px).astype(np.int64)]
            for at, px in zip((rows, columns), overview.picture.shape, strict=False)
        )
        by_row = iter(few_rows[:, None])
        seen = np.concatenate([*label_bands(found, owners, small_hw[1], by_row, few_columns)])
        shown = write_png(overlay_path(self.place), overlay(overview.picture, seen))
        facts = measure.facts()
        self.warn_of_size(_reduced_boxes(facts.boxes, factor, small_hw), plan, small_hw)
        lines = objects_csv.rows(name, instances, facts, pixel_size(self.source))
        entry = coco.describe(name, instances, facts, measure.masks(), size_hw)
        link = results.link(self.place)
        small = thumbnail(name, link, overview.picture, seen, instances, facts.areas)
        results.note(lines, entry, small)
        return path, shown


def _rows_of(image: LargeImage, top: int, bottom: int) -> np.ndarray:
    return image.read(top, bottom, 0, image.shape_hw[1])


def _reduced_boxes(boxes: np.ndarray, factor: float, small_hw: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) of an image as boxes of the image that was worked on."""
    most = np.array(small_hw[::-1]) - 1  # (x, y)
    first, last = (
        np.minimum(((corner + 0.5) * factor).astype(np.int64), most)
        for corner in (boxes[:, :2], boxes[:, 2:] - 1)
    )
    return np.concatenate((first, last + 1), axis=1)


def _identity(source: Path) -> list[int]:
    """Bytes, files and the latest change in ns of a file, or of all below a folder."""
    if source.is_dir():
        paths = [Path(parent, f) for parent, _, files in os.walk(source) for f in files]
    else:
        paths = [source]
    status = [os.stat(path) for path in paths if path.exists()]
    newest = max((s.st_mtime_ns for s in status), default=0)
    return [sum(s.st_size for s in status), len(status), newest]
