"""Every stage of a prediction from 256 x 256 to 4096 x 4096 px: how time grows with the pixels.

python benchmarks/sizes.py --engines torch
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from end_to_end import at_pixel_size, label, loaded
from report import Line, Table, finish
from scenes import scene

from spatialembed.command.bench import in_turns
from spatialembed.inference.predictor import Predictor
from spatialembed.method.cluster import cluster
from spatialembed.method.normalization import network_input

SIDES = (256, 512, 1024, 2048, 4096)
DENSITY = 100 / (1024 * 2048)
"""Objects a pixel, at every size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["torch"])
    parser.add_argument("--largest", type=int, default=SIDES[-1], help="side of the last one, px")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sides = [side for side in SIDES if side <= options.largest]
    with tempfile.TemporaryDirectory() as folder:
        model = at_pixel_size("nuclei", Path(folder) / "model")
        engines = {name: loaded(model, name, None) for name in options.engines}
        each = [at_size(side, engines, options.rounds) for side in sides]
    pixels = [side * side for side in sides]
    lines = [Line("pixels", stage, pixels, [s[stage] for s in each]) for stage in each[0]]
    rows = [[line.label, *relative(line), f"{slope(line):.2f}"] for line in lines]
    columns = ["stage", *(f"{side} x {side}" for side in sides), "slope"]
    table = Table(f"Time a pixel, by that at {sides[0]} x {sides[0]}", columns, rows)
    finish("sizes", [table], lines=lines)


def at_size(side: int, engines: dict[str, Predictor], rounds: int) -> dict[str, float]:
    """Median seconds of each stage at side x side px."""
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    maps = scene(side, side, math.ceil(DENSITY * side**2))
    info = next(iter(engines.values())).info
    images = network_input(image, info.normalization)[None]
    jobs: dict[str, Callable[[], object]] = {
        "normalise": partial(network_input, image, info.normalization),
        **{f"network, {label(p)}": partial(p.engine, images) for p in engines.values()},
        "cluster": partial(cluster, maps, info.thresholds),
    }
    seconds = in_turns(jobs, rounds)
    return {name: statistics.median(times) for name, times in seconds.items()}


def relative(line: Line) -> list[str]:
    first = line.seconds[0] / line.x[0]
    return [f"{s / x / first:.2f}" for s, x in zip(line.seconds, line.x, strict=True)]


def slope(line: Line) -> float:
    """Of the logarithms: 1 where time grows in proportion to the pixels."""
    x, y = np.log(line.x), np.log(line.seconds)
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else math.nan


if __name__ == "__main__":
    main()
