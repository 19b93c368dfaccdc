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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from spatialembed import __version__
from spatialembed.concurrency import prefetch
from spatialembed.console import Stages
from spatialembed.images.channels import Channel
from spatialembed.images.listing import is_zarr
from spatialembed.images.overview import Overview, look_over, rescaled
from spatialembed.images.pixel_size import pixel_size
from spatialembed.images.read import MAX_PIXELS
from spatialembed.images.resample import nearest_index
from spatialembed.images.windows import LargeImage, image_size, open_large
from spatialembed.images.write import write_png
from spatialembed.inference.engine import Engine
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.test_time_augmentation import average_over_turns
from spatialembed.inference.tile_candidates import WorkFolder, label_bands, mean_seeds
from spatialembed.inference.tiling import BYTES_WHOLE, Tile, TileOptions, cut_off, plan
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.kernels.candidates import Candidates, candidates
from spatialembed.method.model import parts_of
from spatialembed.method.normalization import network_input
from spatialembed.pictures.drawing import overlay
from spatialembed.pictures.thumbnail import thumbnail
from spatialembed.results import coco, objects_csv
from spatialembed.results.folder import ResultFolder
from spatialembed.results.labels import TILE, remove_labels, write_label_tiff, write_label_zarr
from spatialembed.results.measurements import Measure
from spatialembed.results.overlay import overlay_path
from spatialembed.types import Instances

logger = logging.getLogger("spatialembed")

BYTES_READ = 45
"""Of an image that is read whole, bytes for each pixel: its colours, as floats, and on the way."""
OVERLAY_SIDE = 2048
"""Longest side of the overlay, px."""


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
    channel: Channel | None = None,
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
        channel: Of the image, alone, as ``open_large`` takes it.
        progress: Whether to draw bars on stderr.

    Returns:
        The paths and the number of objects.

    Raises:
        SpatialEmbedError: Those of ``open_large`` and ``LargeImage.read``; ``bad_setting``
            (exit 2), ``non_finite_output`` (exit 4), ``out_of_memory`` and ``disk_full``
            (exit 5).
    """
    with Stages(progress, name) as stages:
        place, source = results.out / stem, Path(source)
        return _Run(
            engine, info, source, results, name, place, options, tiles, augment, channel, stages
        ).work()


@dataclass
class _Run:
    """One large image on its way; its arguments are those of ``predict_large``."""

    engine: Engine
    info: ModelInfo
    source: Path
    results: ResultFolder
    name: str
    place: Path  # stem of its own files
    options: ClusterOptions
    tiles: TileOptions
    augment: bool
    channel: Channel | None
    stages: Stages

    def __post_init__(self) -> None:
        path = self.place.with_name(f".{self.place.name}.part")
        self.folder = WorkFolder(path, self._facts(), 2 if self.info.elliptical else 1)

    def work(self) -> LargeResult:
        differs = self.folder.open()
        if differs:
            logger.warning("%s: starting over, the %s has changed", self.source, differs)
        with closing(open_large(self.source, self.folder.path, self.channel)) as source:
            image = rescaled(source, self.tiles.scale)
            height, width = image.shape_hw
            tiles = plan((height, width), self.tiles, self.engine.scale, self.info.network)
            self.folder.check_room(height * width)
            todo = [tile for tile in tiles if self.folder.load(tile) is None]
            logger.info("%s: tiles: %d, to do: %d", self.source, len(tiles), len(todo))
            overview = self.overview(image)
            self.run_tiles(image, overview, todo)
            self.stages.begin("clustering", None)
            found = self.folder.gather(tiles, width, len(self.info.class_names))
            instances, owners = self.cluster(found)
            labels, overlay, boxes = self.write(
                found, owners, instances, source, image.shape_hw, overview
            )
            self.warn_of_size(_reduced_boxes(boxes, self.tiles.scale, image.shape_hw), tiles, image)
        self.folder.remove()
        done = len(tiles) - len(todo)
        number = len(instances)
        return LargeResult(labels, overlay, number, instances.truncated, len(tiles), done)

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
            "channel": self.channel,
            "foreground": self.options.foreground,
        }

    def overview(self, image: LargeImage) -> Overview:
        """The first look at the image; that of an earlier run where there is one."""
        file = self.folder.path / "overview.npz"
        if (saved := Overview.load(file)) is not None:
            return saved
        self.stages.begin("first look", 100)
        overview = look_over(
            image,
            self.info.normalization,
            side=OVERLAY_SIDE,
            advance=lambda share: self.stages.advance(100 * share),
        )
        overview.save(file)
        return overview

    def run_tiles(self, image: LargeImage, overview: Overview, todo: Sequence[Tile]) -> None:
        """Run the network on the windows of these tiles and save the candidates of their cores."""
        self.stages.begin("network", len(todo))

        def read(tile: Tile) -> tuple[Tile, np.ndarray]:
            return tile, image.read(*tile.window)

        for tile, pixels in prefetch(read, todo, threads=1, room=lambda _: 1):
            self.folder.save(tile, self.candidates(tile, pixels, overview, image.shape_hw[1]))
            self.stages.advance()

    def candidates(
        self, tile: Tile, pixels: np.ndarray, overview: Overview, width: int
    ) -> list[Candidates]:
        """Candidates of each class in the core of a tile, by the pixels of its window."""
        images = network_input(pixels, self.info.normalization, overview.levels)[None]
        maps = average_over_turns(self.engine, images) if self.augment else self.engine(images)
        core = tile.core
        return candidates(
            *(m[0, :, *tile.kept].detach().to("cpu", torch.float32).numpy() for m in maps),
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
        expected, calibration = None, self.info.calibration
        if calibration is not None:
            seeds = mean_seeds(found, settled.owners, len(settled.scores))
            expected = calibration.expected_iou(seeds)
        nowhere = np.zeros((0, 0), np.int32)
        names, truncated = self.info.class_names, settled.truncated
        instances = Instances(nowhere, settled.scores, settled.classes, names, truncated, expected)
        return instances, settled.owners

    def warn_of_size(self, boxes: np.ndarray, tiles: Sequence[Tile], image: LargeImage) -> None:
        """Warn where the context was too small for the detections; boxes in px of the tiles."""
        exact = parts_of(self.info.network).exact_context
        cut = cut_off(boxes, tiles, image.shape_hw)
        if self.tiles.context < exact and len(cut):
            logger.warning(
                "%s: %d of %d objects are longer than a tile could see around them (%d x %d px), "
                "so their outlines may be wrong: give a larger --context (%d is exact) or a "
                "smaller --scale; the first is object %d",
                self.source, len(cut), len(boxes), *tiles[0].window.shape_hw, exact, cut[0] + 1,
            )  # fmt: skip

    def write(
        self,
        found: Sequence[Candidates],
        owners: Sequence[np.ndarray],
        instances: Instances,
        image: LargeImage,
        small_hw: tuple[int, int],
        overview: Overview,
    ) -> tuple[Path, Path, np.ndarray]:
        """Labels, overlay and lines in the shared files; the paths, and boxes (N, 4) in px."""
        size_hw, picture = image.shape_hw, overview.picture
        rows, columns = (
            nearest_index(0, side, small, self.tiles.scale)
            for side, small in zip(size_hw, small_hw, strict=True)
        )
        self.stages.begin("writing", -(-size_hw[0] // TILE))

        def read(top: int, bottom: int) -> np.ndarray:
            return image.read(top, bottom, 0, size_hw[1])

        intensities = read if "csv" in self.results.formats else None
        measure = Measure(len(instances), size_hw, self.folder.path / "runs.bin", intensities)
        by_band = (rows[y : y + TILE] for y in range(0, size_hw[0], TILE))
        bands = label_bands(found, owners, small_hw[1], by_band, columns)
        bands = self.stages.passed(measure.passed(bands))
        tiff = self.tiles.labels == "tiff"
        write, suffix = (write_label_tiff, "tif") if tiff else (write_label_zarr, "zarr")
        written = write(self.folder.path / f"labels.{suffix}", bands, size_hw, len(instances))
        for other in ("png", "tif", "zarr"):  # of an earlier run
            remove_labels(self.place.with_name(f"{self.place.name}_labels.{other}"))
        labels = self.place.with_name(f"{self.place.name}_labels.{suffix}")
        os.replace(written, labels)
        few_rows, few_columns = (
            at[((np.arange(px) + 0.5) * len(at) / px).astype(np.int64)]
            for at, px in zip((rows, columns), picture.shape, strict=False)
        )
        by_row = iter(few_rows[:, None])
        seen = np.concatenate([*label_bands(found, owners, small_hw[1], by_row, few_columns)])
        shown = write_png(overlay_path(self.place), overlay(picture, seen))
        facts = measure.facts()
        lines = objects_csv.rows(self.name, instances, facts, pixel_size(self.source))
        entry = coco.describe(self.name, instances, facts, measure.masks(), size_hw)
        link = self.results.link(self.place)
        small = thumbnail(self.name, link, picture, seen, instances, facts.areas)
        self.results.note(lines, entry, small)
        return labels, shown, facts.boxes


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
