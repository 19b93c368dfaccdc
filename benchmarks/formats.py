"""The result formats: what each costs beside the label image, and measuring beside scikit-image.

    python benchmarks/formats.py

One generated field of elliptical objects; every writer writes the same instances. Times are ratios
to that of the label image as PNG, medians over rounds in which all run in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import Table, finish
from skimage.measure import regionprops_table

from spatialembed.command.bench import in_turns, ratio
from spatialembed.results import coco, objects_csv
from spatialembed.results.labels import write_labels
from spatialembed.results.measurements import measure
from spatialembed.results.outline_files import write_geojson, write_imagej
from spatialembed.results.overlay import write_overlay
from spatialembed.types import Instances

PROPERTIES = ("area", "bbox", "centroid", "perimeter", "eccentricity", "intensity_mean")


def main() -> None:
    options = parsed()
    labels, image = field(options.objects, options.side)
    count = int(labels.max())
    scores = np.linspace(1, 0.5, count, dtype=np.float32)
    found = Instances(labels, scores, np.zeros(count, np.int64), ("cell",))
    with tempfile.TemporaryDirectory() as folder:
        seconds = in_turns(
            {
                **writers(Path(folder), found, image),
                "ours": lambda: measure(labels, count, image),
                "regionprops": lambda: regionprops_table(labels, image, properties=PROPERTIES),
            },
            options.rounds,
        )
    ours, theirs = seconds.pop("ours"), seconds.pop("regionprops")
    base = statistics.median(seconds["labels"])
    rows = [[name, f"{statistics.median(s) / base:.1f}"] for name, s in seconds.items()]
    title = f"{count} objects, {options.side} x {options.side} px"
    finish(
        f"formats_{count}",
        [
            Table(f"{title}: time of a format, the label PNG is 1", ["format", "time"], rows),
            Table(
                f"{title}: measuring, times faster than regionprops_table",
                ["", "ratio"],
                [["all columns of objects.csv", str(ratio(theirs, ours))]],
            ),
        ],
    )


def writers(out: Path, found: Instances, image: np.ndarray) -> dict[str, Callable[[], object]]:
    return {
        "labels": lambda: write_labels(out / "a", found.labels),
        "tiff": lambda: write_labels(out / "b", found.labels, tiff=True),
        "overlay": lambda: write_overlay(out / "a", image, found),
        "csv": lambda: objects_csv.rows("a", found, measure(found.labels, len(found), image)),
        "coco": lambda: coco.describe("a", found),
        "geojson": lambda: write_geojson(out / "a.geojson", found),
        "geojson, simplified": lambda: write_geojson(out / "b.geojson", found, simplify=1.0),
        "imagej": lambda: write_imagej(out / "a.zip", found),
    }


def field(objects: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (side, side) int32 of ellipses on a grid, and a grey image uint16."""
    random = np.random.default_rng(0)
    labels = np.zeros((side, side), np.int32)
    across = int(np.ceil(np.sqrt(objects)))
    step = side // across
    y, x = np.mgrid[:step, :step] - step / 2
    for k in range(objects):
        top, left = step * (k // across), step * (k % across)
        axes = random.uniform(0.25, 0.45, 2) * step
        ellipse = (x / axes[0]) ** 2 + (y / axes[1]) ** 2 < 1
        labels[top : top + step, left : left + step][ellipse] = k + 1
    return labels, random.integers(0, 65_536, (side, side)).astype(np.uint16)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=3000)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
