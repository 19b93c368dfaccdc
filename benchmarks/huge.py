"""A huge generated image through ``spatialembed predict``: memory, time, and match to the truth.

    python benchmarks/huge.py [--size 20000] [--radius 12] [--scale 1.0] [--json PATH]
    python benchmarks/huge.py --contexts 0,32,64,128,192 --data DIR      # what the context is worth

The first makes a tiled TIFF of fluorescent nuclei, band by band, runs the command in a process of
its own, samples its anonymous memory (RssAnon, which mapped files are no part of) and compares the
label image with the truth, band by band again. Linux only. The second runs the validation images of
a data set by small tiles with several contexts, and whole, and prints mean AP.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from rich.progress import track
from scipy import ndimage

from spatialembed.images.windows import open_large

BAND = 512  # rows
EDGE = 8  # rows beyond a band that its blur looks at
THRESHOLDS = np.arange(0.5, 0.91, 0.05)


# ---------------------------------------------------------------- the scene


class Field:
    """Nuclei on a jittered grid, many touching; any band of it follows from the seed alone."""

    def __init__(self, side: int, radius: float, seed: int = 0) -> None:
        self.side, self.radius = side, radius
        self.step = 2.3 * radius
        self.cells = max(1, int(side / self.step))
        rng = np.random.default_rng(seed)
        shape = (self.cells, self.cells)
        grid = (np.indices(shape) + 0.5) * side / self.cells
        self.y, self.x = grid + rng.uniform(-0.3, 0.3, (2, *shape)) * self.step
        self.long = radius * rng.uniform(0.8, 1.25, shape)
        self.short = self.long * rng.uniform(0.65, 1, shape)
        self.turn = rng.uniform(0, math.pi, shape)
        self.bright = rng.uniform(0.35, 0.8, shape) * (rng.random(shape) < 0.8)  # a fifth is empty

    @property
    def count(self) -> int:
        return int((self.bright > 0).sum())

    def band(self, y0: int, y1: int) -> tuple[np.ndarray, np.ndarray]:
        """Truth (h, W) int32, ids in no order and not all there, and image (h, W) uint8."""
        top, bottom = max(0, y0 - EDGE), min(self.side, y1 + EDGE)
        labels = np.zeros((bottom - top, self.side), np.int32)
        light = np.zeros(labels.shape, np.float32)
        reach = self.long.max() + 1
        near = (self.bright > 0) & (self.y > top - reach) & (self.y < bottom + reach)
        for i, j in np.argwhere(near):  # in one order, whatever the band: the first one is on top
            self._draw(labels, light, top, i, j)
        focus = ndimage.gaussian_filter(light, 0.8)[y0 - top : y1 - top]
        noise = np.random.default_rng((1, y0)).normal(0, 0.02, focus.shape)
        image = np.clip(0.06 + focus + noise, 0, 1) * 255
        return labels[y0 - top : y1 - top], image.astype(np.uint8)

    def _draw(self, labels: np.ndarray, light: np.ndarray, top: int, i: int, j: int) -> None:
        y, x, long = self.y[i, j] - top, self.x[i, j], self.long[i, j]
        rows = slice(max(0, int(y - long)), max(0, int(y + long) + 2))
        columns = slice(max(0, int(x - long)), max(0, int(x + long) + 2))
        there = labels[rows, columns]
        if not there.size:
            return
        dy = np.arange(rows.start, rows.start + there.shape[0])[:, None] - y
        dx = np.arange(columns.start, columns.start + there.shape[1]) - x
        cos, sin = math.cos(self.turn[i, j]), math.sin(self.turn[i, j])
        u, v = (dx * cos + dy * sin) / long, (dy * cos - dx * sin) / self.short[i, j]
        distance = u * u + v * v
        new = (distance <= 1) & (there == 0)
        there[new] = i * self.cells + j + 1
        light[rows, columns][new] = self.bright[i, j] * (1 - 0.35 * distance[new])

    def bands(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for y0 in range(0, self.side, BAND):
            yield self.band(y0, min(y0 + BAND, self.side))


def write_field(field: Field, path: Path) -> None:
    """As a deflated TIFF of 512 px tiles."""

    def tiles() -> Iterator[np.ndarray]:
        for _, image in track(field.bands(), "drawing", total=-(-field.side // BAND)):
            for x in range(0, field.side, BAND):
                tile = np.zeros((BAND, BAND), np.uint8)
                part = image[:, x : x + BAND]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile

    how: dict[str, Any] = {"tile": (BAND, BAND), "compression": "zlib", "maxworkers": 1}
    tifffile.imwrite(path, tiles(), shape=(field.side, field.side), dtype=np.uint8, **how)


def match(field: Field, labels: Path) -> dict[str, float]:
    """Objects found against the truth, by pixels in common."""
    found = open_large(labels, labels.parent)
    both: list[np.ndarray] = []
    true_area, found_area = np.zeros((2, field.cells**2 + 1), np.int64)
    for n, (truth, _) in enumerate(field.bands()):
        ours = found.read(n * BAND, n * BAND + len(truth), 0, field.side).astype(np.int64)
        if ours.max(initial=0) >= len(found_area):
            found_area = np.pad(found_area, (0, int(ours.max())))
        true_area += np.bincount(truth.ravel(), minlength=len(true_area))
        found_area += np.bincount(ours.ravel(), minlength=len(found_area))
        pair = (truth.astype(np.int64) << 32 | ours)[(truth > 0) & (ours > 0)]
        both.append(np.stack(np.unique(pair, return_counts=True)))
    pairs, index = np.unique(np.concatenate([b[0] for b in both]), return_inverse=True)
    common = np.bincount(index, np.concatenate([b[1] for b in both]))
    union = true_area[pairs >> 32] + found_area[pairs & 0xFFFFFFFF] - common
    iou = common / union
    true = int((true_area[1:] > 0).sum())
    number = int((found_area[1:] > 0).sum())
    hits = [int((iou > t).sum()) for t in THRESHOLDS]  # above 0.5 a match is the only one
    ap = [h / (true + number - h) for h in hits]
    return {"true": true, "found": number, "AP50": ap[0], "AP": float(np.mean(ap))}


# ---------------------------------------------------------------- the run


def anonymous_mb(process: int) -> float:
    try:
        with open(f"/proc/{process}/status", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("RssAnon")]
        return int(lines[0][1]) / 1000 if lines else 0.0
    except OSError:
        return 0.0


def run(image: Path, out: Path, arguments: list[str]) -> dict[str, float]:
    """The command's peak of anonymous memory and its time."""
    command = [sys.executable, "-m", "spatialembed", "predict", str(image), "--out", str(out)]
    begun = time.monotonic()
    with subprocess.Popen([*command, *arguments]) as child:
        peak = 0.0
        while child.poll() is None:
            peak = max(peak, anonymous_mb(child.pid))
            time.sleep(0.05)
    if child.returncode:
        raise SystemExit(child.returncode)
    return {"peak_mb": peak, "seconds": time.monotonic() - begun}


def huge(options: argparse.Namespace) -> dict[str, Any]:
    field = Field(options.size, options.radius)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        image, out = Path(work) / "field.tif", Path(work) / "out"
        write_field(field, image)
        settings = {"model": options.model, "scale": options.scale, "context": options.context}
        settings |= {"memory": options.memory, "precision": options.precision}
        settings |= {} if options.tile is None else {"tile": options.tile}
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        result: dict[str, Any] = {"size": options.size, "file_mb": image.stat().st_size / 1e6}
        result |= settings | run(image, out, arguments)
        print(json.dumps(result))
        result |= match(field, out / "field_labels.tif")
        if options.keep:
            os.rename(out, options.keep)
    return result


# ---------------------------------------------------------------- what the context is worth


def contexts(options: argparse.Namespace) -> dict[str, Any]:
    """Mean AP of the validation images, whole and by tiles of ``--tile`` px with each context."""
    from spatialembed.data.folder import open_folder
    from spatialembed.data.splitting import split_dataset
    from spatialembed.evaluation.label_metrics import label_ap
    from spatialembed.inference.predict_large import predict_large
    from spatialembed.inference.predictor import load
    from spatialembed.inference.tiling import TileOptions
    from spatialembed.results.folder import ResultFolder

    dataset = split_dataset(open_folder(options.data), group_by=options.group_by)[1]
    predictor = load(options.model, precision=options.precision)
    tile = options.tile or 128
    ways = ["whole", *(int(c) for c in options.contexts.split(","))]
    scores: dict[Any, list[np.ndarray]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        path = Path(work) / "a.tif"
        for i in track(range(0, len(dataset), options.every), "images"):
            sample = dataset[i]
            truth = sample.target.labels.numpy()
            tifffile.imwrite(path, sample.image)
            for way in ways:
                if way == "whole":
                    labels = predictor(sample.image).labels
                else:
                    with ResultFolder(Path(work) / "out", predictor.info.class_names) as results:
                        done = predict_large(
                            predictor.engine, predictor.info, path, results, name="a", stem="a",
                            options=predictor.settings, progress=False,
                            tiles=TileOptions(tile=tile, context=way),
                        )  # fmt: skip
                    labels = tifffile.imread(done.labels).astype(np.int32)
                scores[way].append(label_ap(labels, truth, THRESHOLDS))
    means = {str(way): float(np.nanmean(values)) for way, values in scores.items()}
    return {"images": len(scores["whole"]), "tile": tile, "mean AP": means}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=20_000, help="side of the image, px")
    parser.add_argument("--radius", type=float, default=12.0, help="of the nuclei, px")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--memory", type=float, default=3.0, help="GB")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--work", default=None, help="folder of the files, removed afterwards")
    parser.add_argument("--keep", default=None, help="folder that the results are moved to")
    parser.add_argument("--contexts", default=None, help="contexts to compare, px: 0,32,64")
    parser.add_argument("--data", default=None, help="folder of images/ and masks/ for --contexts")
    parser.add_argument("--group-by", default="mosaic")
    parser.add_argument("--every", type=int, default=1, help="of the validation images, each nth")
    parser.add_argument("--tile", type=int, default=None, help="px; with --contexts 128")
    parser.add_argument("--json", default=None, help="write the figures there")
    options = parser.parse_args()
    result = contexts(options) if options.contexts else huge(options)
    print(json.dumps(result, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
