"""Large images tile by tile: the answer of the whole image, in bounded memory, resumable."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from spatialembed.errors import SpatialEmbedError
from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.images.overview import rescaled
from spatialembed.images.read import read_image
from spatialembed.images.resample import enlarged
from spatialembed.images.windows import open_large
from spatialembed.inference.predict_folder import predict_folder
from spatialembed.inference.predict_large import (
    LargeResult,
    goes_by_tiles,
    predict_large,
)
from spatialembed.inference.predictor import Predictor, load
from spatialembed.inference.tiling import TileOptions
from spatialembed.method.calibration import Calibration
from spatialembed.method.cluster import cluster
from spatialembed.method.model import NETWORKS
from spatialembed.method.normalization import network_input
from spatialembed.results import coco, objects_csv
from spatialembed.results.folder import ResultFolder
from spatialembed.results.measurements import measure
from spatialembed.types import Embeddings, Instances
from tile_engines import RADIUS, NearCentres, info

SMALL = TileOptions(tile=64, context=2 * RADIUS)


def field(height: int, width: int, seed: int = 0) -> np.ndarray:
    return nuclei_field(height, width, seed=seed).image


def run(
    engine: Any,
    path: Path,
    out: Path,
    tiles: TileOptions = SMALL,
    classes: int = 1,
    kind: str = "percentile",
    **settings: Any,
) -> LargeResult:
    about = info(classes, kind, engine.scale)
    with ResultFolder(out, about.class_names) as results:
        return predict_large(
            engine,
            about,
            path,
            results,
            name=path.name,
            stem=path.stem,
            options=about.thresholds,
            tiles=tiles,
            progress=False,
            **settings,
        )


def whole(engine: Any, pixels: np.ndarray, classes: int = 1, kind: str = "percentile") -> Instances:
    about = info(classes, kind)
    maps = engine(network_input(pixels, about.normalization)[None])
    return cluster(maps, about.thresholds, about.class_names)[0].numpy()


def check(result: LargeResult, want: Instances, out: Path, name: str) -> None:
    """Every output tells of the same instances."""
    assert result.objects == len(want)
    assert np.array_equal(tifffile.imread(result.labels), want.labels)
    lines = (out / "objects.csv").read_text().split("\n", 1)[1]
    facts = measure(want.labels, len(want), read_image(out.parent / name))
    assert lines == objects_csv.rows(name, want, facts)
    written = json.loads((out / "instances.json").read_text())
    entry = coco.describe(name, want)
    assert [{k: v for k, v in i.items() if k != "id"} for i in written["images"]] == [entry.image]
    kept = [
        {k: v for k, v in a.items() if k not in ("id", "image_id")} for a in written["annotations"]
    ]
    assert kept == list(entry.objects)


# ---------------------------------------------------------------- equal to the whole


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 300), (300, 1), (63, 65), (128, 192), (131, 257), (40, 30)], ids=str
)
@pytest.mark.parametrize("fault", ["INF-08"])
def test_tiled_is_whole(
    size: tuple[int, int], scale: float, classes: int, tmp_path: Path, fault: str
) -> None:
    pixels = field(*size)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(32, 32), compression="zlib")
    engine = NearCentres(classes, scale)
    want = whole(engine, pixels, classes)
    result = run(engine, tmp_path / "a.tif", tmp_path / "out", classes=classes)
    check(result, want, tmp_path / "out", "a.tif")
    assert result.tiles == engine.calls - 1
    assert set(os.listdir(tmp_path / "out")) == {
        "a_labels.tif", "a_overlay.png", "objects.csv", "instances.json", ".spatialembed-results",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("kind", ["percentile", "none", "fixed"])
def test_types_and_colours(dtype: type, kind: str, tmp_path: Path) -> None:
    pixels = np.stack([field(140, 150, seed=s) for s in range(3)], axis=-1)
    if dtype is np.float32:
        pixels = pixels.astype(np.float32) / 255
    else:
        pixels = pixels.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(32, 32))
    engine = NearCentres()
    result = run(engine, tmp_path / "a.tif", tmp_path / "out", kind=kind)
    check(result, whole(engine, pixels, kind=kind), tmp_path / "out", "a.tif")


@pytest.mark.parametrize("fault", ["INF-12 seam"])
def test_an_object_across_seams_is_one(tmp_path: Path, fault: str) -> None:
    pixels = np.zeros((200, 200), np.uint8)
    pixels[58:70, 57:71] = 200  # over the corner of four tiles
    pixels[130:142, 10:20] = 250
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    result = run(NearCentres(), tmp_path / "a.tif", tmp_path / "out", kind="none")
    assert (result.tiles, result.objects) == (16, 2)
    labels = tifffile.imread(result.labels)
    assert np.array_equal(labels == 2, pixels == 200)
    assert np.array_equal(labels == 1, pixels == 250)


def test_expected_iou_is_that_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialembed.inference.tile_candidates.CHUNK_PIXELS", 4000)
    calibration = Calibration((0.5, 0.9, 1.0), (0.1, 0.5, 0.95), 500, 0.1, 0.2)
    about = replace(info(2), calibration=calibration)
    pixels = field(150, 170)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    predictor = Predictor(NearCentres(2), about)  # type: ignore[arg-type]
    for way, tiles in (("whole", TileOptions()), ("tiled", SMALL)):
        predict_folder(predictor, [tmp_path / "a.tif"], tmp_path / way, tiles=tiles, progress=False)
    tables = [(tmp_path / way / "objects.csv").read_text() for way in ("whole", "tiled")]
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert len({row["expected_iou"] for row in rows}) > 3


@pytest.mark.parametrize("factor", [0.5, 0.3])
def test_reduced_and_mapped_back(factor: float, tmp_path: Path) -> None:
    pixels = field(301, 403, seed=4)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64))
    engine = NearCentres()
    tiles = TileOptions(tile=64, context=2 * RADIUS, scale=factor)
    result = run(engine, tmp_path / "a.tif", tmp_path / "out", tiles)
    with closing(open_large(tmp_path / "a.tif", tmp_path)) as source:
        image = rescaled(source, factor)
        small = whole(engine, image.read(0, image.shape_hw[0], 0, image.shape_hw[1]))
    labels = enlarged(small.labels, pixels.shape, factor)
    want = Instances(labels, small.scores, small.classes, small.class_names)
    assert len(small) > 5
    check(result, want, tmp_path / "out", "a.tif")


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_network_with_its_whole_context(scale: float, tmp_path: Path) -> None:
    """A strip, longer than the context: the same instances, and maps equal but for rounding."""
    strip = np.tile(field(24, 650, seed=9), (1, 4))[:, : round(2600 / scale)]
    tifffile.imwrite(tmp_path / "a.tif", strip)
    predictor = load("nuclei", device="cpu", precision="float32")
    predictor.engine.scale = scale
    kept: list[torch.Tensor] = []

    class Watched:
        name, precision, device = "watched", "float32", torch.device("cpu")

        def __init__(self) -> None:
            self.scale = scale

        def __call__(self, images: torch.Tensor) -> Any:
            kept.append(images)
            return predictor.engine(images)

    want = predictor(strip)
    with ResultFolder(tmp_path / "out", predictor.info.class_names) as results:
        result = predict_large(
            Watched(),
            predictor.info,
            tmp_path / "a.tif",
            results,
            name="a.tif",
            stem="a",
            options=predictor.settings,
            tiles=TileOptions(tile=128, context=NETWORKS["erfnet"].exact_context),
            progress=False,
        )
    assert len(want) > 5
    assert max(image.shape[-1] for image in kept) < 0.6 * strip.shape[1]
    assert np.array_equal(tifffile.imread(result.labels), want.labels)
    # Maps of the window in the middle; other sizes may take other ways of adding up.
    maps, window = predictor.engine(kept[0]), predictor.embeddings(strip)
    kept_px = 128
    for ours, theirs in zip(maps, window, strict=True):
        assert torch.allclose(ours[..., :kept_px], theirs[..., :kept_px], atol=2e-5, rtol=0)


# ---------------------------------------------------------------- outputs


def test_label_file_is_tiled_and_counts(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", field(300, 280))
    result = run(NearCentres(), tmp_path / "a.tif", tmp_path / "out")
    with tifffile.TiffFile(result.labels) as tiff:
        page = tiff.pages.first
        assert (page.tilewidth, page.tilelength, page.dtype) == (256, 256, np.uint16)
        assert page.compression.name == "ADOBE_DEFLATE"
        assert not tiff.is_bigtiff


def test_labels_as_ome_zarr(tmp_path: Path) -> None:
    import ome_zarr.io
    import ome_zarr.reader

    pixels = field(300, 280)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    tiles = TileOptions(tile=64, context=16, labels="zarr")
    result = run(NearCentres(), tmp_path / "a.tif", tmp_path / "out", tiles)
    result = run(NearCentres(), tmp_path / "a.tif", tmp_path / "out", tiles)  # over the first
    assert result.labels.name == "a_labels.zarr"
    nodes = list(ome_zarr.reader.Reader(ome_zarr.io.parse_url(result.labels))())
    labels = np.asarray(nodes[0].data[0])
    assert np.array_equal(labels, whole(NearCentres(), pixels).labels)


def test_labels_of_another_kind_do_not_stay(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", field(100, 90))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_labels.png").touch()
    run(NearCentres(), tmp_path / "a.tif", tmp_path / "out")
    assert not (tmp_path / "out" / "a_labels.png").exists()


@pytest.mark.parametrize("fault", ["INF-13"])
def test_object_beyond_the_context_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    class OnePoint(NearCentres):
        """Bright pixels, which tell their own column, point at row 10 of column 300."""

        def __call__(self, images: torch.Tensor) -> Any:
            columns = (images[:, 0] * 65535).round()  # (1, 20, w)
            rows = torch.arange(20.0)[:, None].expand(columns.shape)
            offset = torch.stack(((300 - columns), (10 - rows)), dim=1) / 1024
            seed = torch.where(columns > 0, 0.95, 0.0)[:, None]
            return Embeddings(offset, torch.full_like(offset, 0.9), seed)

    pixels = np.tile(np.arange(600, dtype=np.uint16), (20, 1))
    pixels[:, :100] = 0
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with caplog.at_level(logging.WARNING, "spatialembed"):
        run(OnePoint(), tmp_path / "a.tif", tmp_path / "far", kind="none")
    assert "1 of 1 objects are longer than a tile could see around them (20 x 96 px)" in caplog.text
    caplog.clear()
    tiles = TileOptions(tile=64, context=NETWORKS["erfnet"].exact_context)
    run(OnePoint(), tmp_path / "a.tif", tmp_path / "exact", tiles, kind="none")
    tifffile.imwrite(tmp_path / "a.tif", pixels[:, 250:350])
    run(OnePoint(), tmp_path / "a.tif", tmp_path / "near", TileOptions(tile=100), kind="none")
    assert caplog.text == ""


def test_all_background(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((150, 160), np.uint8))
    result = run(NearCentres(), tmp_path / "a.tif", tmp_path / "out")
    assert result.objects == 0
    assert not tifffile.imread(result.labels).any()
    assert json.loads((tmp_path / "out" / "instances.json").read_text())["annotations"] == []


# ---------------------------------------------------------------- resuming


class Fails(NearCentres):
    """Stops the run at an image."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def __call__(self, images: torch.Tensor) -> Any:
        if self.calls == self.at:
            raise KeyboardInterrupt
        return super().__call__(images)


def stopped(path: Path, out: Path, at: int = 5) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Fails(at), path, out)


def test_finished_tiles_are_not_done_again(tmp_path: Path) -> None:
    pixels = field(200, 220)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    stopped(tmp_path / "a.tif", tmp_path / "out")
    assert (tmp_path / "out" / ".a.part").is_dir()
    engine = NearCentres()
    result = run(engine, tmp_path / "a.tif", tmp_path / "out")
    assert (result.resumed, engine.calls) == (5, result.tiles - 5)
    check(result, whole(NearCentres(), pixels), tmp_path / "out", "a.tif")
    assert not (tmp_path / "out" / ".a.part").exists()


def test_a_damaged_tile_is_done_again(tmp_path: Path) -> None:
    pixels = field(200, 220)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    stopped(tmp_path / "a.tif", tmp_path / "out")
    tile = sorted((tmp_path / "out" / ".a.part").glob("tile_*"))[2]
    tile.write_bytes(tile.read_bytes()[:-20])
    result = run(NearCentres(), tmp_path / "a.tif", tmp_path / "out")
    assert result.resumed == 4
    check(result, whole(NearCentres(), pixels), tmp_path / "out", "a.tif")


@pytest.mark.parametrize("change", ["image", "tiles", "engine", "version"])
def test_anything_else_begins_anew(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, field(200, 220))
    stopped(path, tmp_path / "out")
    pixels, tiles, engine = field(200, 220), SMALL, NearCentres()
    if change == "image":
        pixels = field(200, 220, seed=1)
        tifffile.imwrite(path, pixels)
    elif change == "tiles":
        tiles = TileOptions(tile=48, context=16)
    elif change == "version":
        monkeypatch.setattr("spatialembed.inference.predict_large.__version__", "99.0")
    else:
        engine.precision = "bfloat16"
    with caplog.at_level(logging.WARNING, "spatialembed"):
        result = run(engine, path, tmp_path / "out", tiles)
    assert f"starting over, the {change} has changed" in caplog.text
    assert result.resumed == 0
    check(result, whole(NearCentres(), pixels), tmp_path / "out", "a.tif")


def test_clustering_takes_the_threads_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []
    for kernel in ("candidates", "cpu"):
        monkeypatch.setattr(
            f"spatialembed.method.kernels.{kernel}.usable", lambda n: asked.append(n) or 1
        )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        tifffile.imwrite(tmp_path / "a.tif", field(100, 100))
        run(NearCentres(), tmp_path / "a.tif", tmp_path / "out")
    finally:
        torch.set_num_threads(before)
    assert len(asked) > 1
    assert set(asked) == {3}


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_large
from tile_engines import NearCentres

class Slow(NearCentres):
    def __call__(self, images):
        time.sleep(0.05)
        return super().__call__(images)

engine = Slow(log=Path({log!r}))
test_large.run(engine, Path({path!r}), Path({out!r}))
"""


@pytest.mark.slow
def test_kill_and_go_on(tmp_path: Path) -> None:
    """Killed at several moments, in the tiles and after them; each run goes on where one was."""
    pixels = field(500, 640)
    path, out, log = tmp_path / "a.tif", tmp_path / "out", tmp_path / "log"
    tifffile.imwrite(path, pixels)
    code = CHILD.format(
        tests=str(Path(__file__).parent), log=str(log), path=str(path), out=str(out)
    )

    def lines() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    kills = 0
    for more in (3, 11, 23):
        child = subprocess.Popen([sys.executable, "-c", code])
        begun = lines()
        while child.poll() is None and lines() < begun + more:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
    saved = len(list((out / ".a.part").glob("tile_*")))
    assert saved >= lines() - kills
    engine = NearCentres()
    result = run(engine, path, out)
    assert result.resumed == saved
    check(result, whole(NearCentres(), pixels), out, "a.tif")


def test_disk_is_looked_at_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", field(100, 90))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))  # type: ignore[attr-defined]
    engine = NearCentres()
    with pytest.raises(SpatialEmbedError, match="disk_full") as caught:
        run(engine, tmp_path / "a.tif", tmp_path / "out")
    assert caught.value.exit_code == 5
    assert engine.calls == 0


def test_a_full_disk_is_told_and_not_run_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    tifffile.imwrite(tmp_path / "a.tif", field(100, 90))
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(SpatialEmbedError, match=r"disk_full: .*all_0_pixel") as caught:
        run(NearCentres(), tmp_path / "a.tif", tmp_path / "out")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "wrong", [{"tile": 8}, {"context": -1}, {"memory": 0.5}, {"scale": 0.0}, {"scale": 1.5}]
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpatialEmbedError, match=f"bad_setting: {next(iter(wrong))} is"):
        TileOptions(**wrong)


# ---------------------------------------------------------------- memory

LIMIT = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_large
from spatialembed.inference.tiling import TileOptions
from tile_engines import NearCentres

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

def watch():
    while True:
        peaks.append(anonymous())
        time.sleep(0.01)

path, out = Path({path!r}), Path({out!r})
tiles = TileOptions(tile=256, context=16)
test_large.run(NearCentres(), path.with_name("warm.tif"), out, tiles)
before, peaks = anonymous(), []
threading.Thread(target=watch, daemon=True).start()
result = test_large.run(NearCentres(), path, out, tiles)
print(result.objects, max(peaks) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("fault", ["INF-12 memory"])
def test_memory_does_not_grow_with_the_image(tmp_path: Path, fault: str) -> None:
    """4,000 x 4,000 px, a fifth of them candidates: whole, maps and labels take over 600 MB."""
    tile = field(500, 500, seed=2)
    tifffile.imwrite(tmp_path / "warm.tif", tile)
    tifffile.imwrite(tmp_path / "a.tif", np.tile(tile, (8, 8)), tile=(512, 512), compression="zlib")
    names = {"tests": str(Path(__file__).parent), "path": str(tmp_path / "a.tif")}
    code = LIMIT.format(**names, out=str(tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    objects, megabytes = done.stdout.split()
    assert int(objects) > 1000
    # A tile and its maps, a batch of the clustering, the overlay; then 5 bytes a candidate.
    assert float(megabytes) < 320


# ---------------------------------------------------------------- from the command line's side


def test_large_ones_among_others(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    big, small = field(200, 220), field(50, 60)
    tifffile.imwrite(source / "a.tif", big)
    tifffile.imwrite(source / "deep" / "b.tif", small)
    predictor = Predictor(NearCentres(), info())  # type: ignore[arg-type]
    result = predict_folder(predictor, [source], out, tiles=SMALL, progress=False)
    assert (result.images, result.failed) == (2, [])
    assert np.array_equal(tifffile.imread(out / "a_labels.tif"), whole(NearCentres(), big).labels)
    assert np.array_equal(
        read_image(out / "deep" / "b_labels.png"), whole(NearCentres(), small).labels
    )
    with open(out / "objects.csv", newline="") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    assert set(names) == {"a.tif", "deep/b.tif"}


def test_a_broken_large_one_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "b.tif", field(200, 220), tile=(64, 64), compression="zlib")
    data = (tmp_path / "in" / "b.tif").read_bytes()
    (tmp_path / "in" / "a.tif").write_bytes(data[:-100])
    predictor = Predictor(NearCentres(), info())  # type: ignore[arg-type]
    result = predict_folder(
        predictor, [tmp_path / "in"], tmp_path / "out", tiles=SMALL, progress=False
    )
    assert [error.code for _, error in result.failed] == ["truncated"]
    assert result.images == 1


@pytest.mark.parametrize("source", ["in", "in/*.zarr", "in/**/b.zarr", "in/deep/b.zarr"])
def test_zarr_folders_are_images(source: str, tmp_path: Path) -> None:
    import zarr

    pixels = field(70, 80)
    for name in ("a.zarr", "deep/b.zarr"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        zarr.create_array(tmp_path / "in" / name, data=pixels, chunks=(32, 32))
    predictor = Predictor(NearCentres(), info())  # type: ignore[arg-type]
    result = predict_folder(predictor, [tmp_path / source], tmp_path / "out", progress=False)
    assert result.failed == []
    found = {p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/**/*.tif")}
    assert (
        found
        == {
            "in": {"a_labels.tif", "deep/b_labels.tif"},
            "in/*.zarr": {"a_labels.tif"},
            "in/**/b.zarr": {"deep/b_labels.tif"},
            "in/deep/b.zarr": {"b_labels.tif"},
        }[source]
    )
    labels = tifffile.imread(tmp_path / "out" / found.pop())
    assert np.array_equal(labels, whole(NearCentres(), pixels).labels)


def test_scale_of_small_images(tmp_path: Path) -> None:
    pixels = field(101, 133, seed=4)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", pixels)
    predictor = Predictor(NearCentres(), info())  # type: ignore[arg-type]
    tiles = TileOptions(scale=0.5)
    predict_folder(predictor, [tmp_path / "in"], tmp_path / "whole", tiles=tiles, progress=False)
    tiles = TileOptions(tile=32, context=16, scale=0.5)
    predict_folder(predictor, [tmp_path / "in"], tmp_path / "tiled", tiles=tiles, progress=False)
    labels = read_image(tmp_path / "whole" / "a_labels.png")
    assert labels.shape == pixels.shape
    assert labels.max() > 2
    assert np.array_equal(labels, tifffile.imread(tmp_path / "tiled" / "a_labels.tif"))
    tables = [(tmp_path / way / "objects.csv").read_text() for way in ("whole", "tiled")]
    assert tables[0] == tables[1]


def test_which_go_by_tiles(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3000, 4000), np.uint8))
    assert not goes_by_tiles(tmp_path / "a.tif", 1.0, TileOptions())
    assert goes_by_tiles(tmp_path / "a.tif", 2.0, TileOptions())
    assert goes_by_tiles(tmp_path / "a.tif", 1.0, TileOptions(memory=1.5))
    assert not goes_by_tiles(tmp_path / "a.tif", 2.0, TileOptions(scale=0.5))
    assert goes_by_tiles(tmp_path / "a.tif", 1.0, TileOptions(tile=3999))
    assert not goes_by_tiles(tmp_path / "a.tif", 1.0, TileOptions(tile=4000))
    assert not goes_by_tiles(tmp_path / "missing.tif", 1.0, TileOptions())
    # It would not be read whole, however small it then is for the network.
    assert goes_by_tiles(tmp_path / "a.tif", 1.0, TileOptions(scale=0.1), max_pixels=10**7)
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((9000, 9000), np.uint8), compression="zlib")
    assert goes_by_tiles(tmp_path / "b.tif", 1.0, TileOptions(scale=0.1))
