"""Clustering, beside two plain ways: how many times faster, and how time grows.

    python benchmarks/clustering.py [--repeats 7] [--threads 2] [--json PATH]

Maps in memory -> Instances, as ``cluster.cluster`` is called. All ways run in turn in one process,
on the same maps, and must give equal results. "plain" is ``tests/plain_cluster.py``, which looks at
all candidates in every round; "literal" evaluates phi = exp(-d) of every pixel in every round.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from epochs import Training
from scenes import scene

from spatialembed.command.bench import machine
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.types import Embeddings, Instances

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from plain_cluster import cluster_plain

STREET = (1024, 2048)
SIDES = (256, 512, 1024, 2048, 4096)
COUNTS = (10, 100, 1000, 10_000)
SIDE_OF_COUNTS = 2048
IN_TRAINING = 512
"""Side of the image whose maps come from moments of a training: see ``epochs``."""
DENSITY = 100 / (1024 * 2048)
"""Objects a pixel where the size of the image grows."""


def literal(prediction: Embeddings, options: ClusterOptions) -> Instances:
    """As the method is told: every round looks at the whole image. One class."""
    height, width = prediction.seed.shape[-2:]
    y, x = torch.arange(height) / 1024, torch.arange(width) / 1024
    position = torch.stack((x.expand(height, width), y[:, None].expand(height, width)))
    embedding = position + prediction.offset[0]  # (2, H, W)
    precision = (10 * prediction.log_precision[0].double()).clamp(-40, 40).exp().float()
    seed = prediction.seed[0, 0]
    candidate = seed > options.foreground
    free = candidate.clone()
    labels = torch.zeros(height, width, dtype=torch.int32)
    scores: list[float] = []
    while free.any():
        best = int((seed * free).argmax())
        score = float(seed.view(-1)[best])
        if score < np.float32(options.start):
            break
        center = embedding.view(2, -1)[:, best, None, None]
        bandwidth = precision.view(2, -1)[:, best, None, None]
        phi = torch.exp(-(bandwidth * (embedding - center) ** 2).sum(dim=0))
        member = candidate & (phi > options.membership)
        count = int(member.sum())
        if count > options.min_pixels and int((member & free).sum()) > options.min_free * count:
            scores.append(score)
            labels[member & (labels == 0)] = len(scores)
        free &= ~member
    return Instances(labels, torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64))


def side_by_side(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, in turn; slow ones, above 2 s, run twice only."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            if len(times[name]) < 2 or min(times[name]) < 2:
                begin = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - begin)
    return times


def measure(
    height: int, width: int, instances: int, repeats: int, *, with_plain: bool = True
) -> dict[str, Any]:
    """One row of the table."""
    prediction = scene(height, width, instances)
    options = ClusterOptions(min_pixels=min(128, max(1, height * width // (100 * instances))))
    found = cluster(prediction, options)[0]  # compiles, or loads what was compiled
    ways: dict[str, Callable[[], Any]] = {"cluster": lambda: cluster(prediction, options)}
    if with_plain:
        same(found, cluster_plain(prediction, options)[0], 0)
        same(found, literal(prediction, options), 1e-5)
        ways["plain"] = lambda: cluster_plain(prediction, options)
        ways["literal"] = lambda: literal(prediction, options)
    times = side_by_side(ways, repeats)
    row: dict[str, Any] = {"height": height, "width": width, "instances": len(found)}
    row["candidates"] = int((prediction.seed > options.foreground).sum())
    for name, seconds in times.items():
        row[name] = {"min_s": min(seconds), "median_s": float(np.median(seconds)), "all_s": seconds}
    for name in times.keys() - {"cluster"}:
        # Of runs that stand beside each other, so that what else the machine does hits both.
        ratios = [b / a for a, b in zip(times["cluster"], times[name], strict=False)]
        row[name]["ratio"] = [min(ratios), float(np.median(ratios)), max(ratios)]
    return row


def same(found: Instances, other: Instances, share: float) -> None:
    """Stop where more than a share of the pixels, or any score, differ.

    The literal way compares exp(-d) with 0.5 instead of d with ln 2: a pixel on the very margin may
    fall on its other side.
    """
    differ = int((found.labels != other.labels).sum())
    if differ > share * found.labels.numel() or not torch.equal(found.scores, other.scores):
        raise SystemExit(f"results differ: {differ} pixels, {len(found)} and {len(other)} objects")


def slope(sizes: list[float], seconds: list[float]) -> float:
    """Of log seconds by log size: 1 is linear, 0 constant."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def line(row: dict[str, Any]) -> str:
    text = f"{row['height']:>5} x {row['width']:<5}{row['instances']:>7}{row['candidates']:>10}"
    for name in ("cluster", "plain", "literal"):
        its = row.get(name)
        text += f"{1e3 * its['min_s']:>10.1f}{1e3 * its['median_s']:>9.1f}" if its else " " * 19
    for name in ("plain", "literal"):
        its = row.get(name)
        text += "{1:>7.0f} ({0:.0f}..{2:.0f})".format(*its["ratio"]).rjust(20) if its else ""
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="runs of each way")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--street-only", action="store_true", help="no other sizes and counts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print("ms, minimum and median of the runs; ratio: median (least..most) of runs side by side")
    print(
        "      size       found candidates   cluster   median     plain   median   literal   median"
    )
    street = measure(*STREET, 100, options.repeats)
    print(line(street), flush=True)
    report: dict[str, Any] = {"machine": machine(), "street": street}
    report["epochs"] = in_training(options.repeats)
    if not options.street_only:
        report |= growth(options.repeats)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def in_training(repeats: int) -> list[dict[str, Any]]:
    """Share of the clustering in a prediction by the network lite, by epochs of its training."""
    training = Training(IN_TRAINING)
    options = training.predictor.settings
    by_epoch = training.maps()
    found = {epoch: len(cluster(maps, options)[0]) for epoch, maps in by_epoch.items()}
    ways: dict[str, Callable[[], Any]] = {
        "network": partial(training.predictor.engine, training.images),
        **{epoch: partial(cluster, maps, options) for epoch, maps in by_epoch.items()},
    }
    seconds = side_by_side(ways, repeats)
    rows = []
    for epoch, count in found.items():
        shares = [c / (c + n) for c, n in zip(seconds[epoch], seconds["network"], strict=False)]
        share = float(np.median(shares))
        rows.append({"epoch": epoch, "share": share, "instances": count, "all_s": seconds[epoch]})
        print(f"epoch {epoch:>4}: {100 * share:.1f} % of network and clustering, {count} found")
    return rows


def growth(repeats: int) -> dict[str, Any]:
    """Rows over sizes at one density and over counts at one size, and the slopes of each."""
    sizes, counts = [], []
    for side in SIDES:
        plain = side <= 1024
        sizes.append(measure(side, side, math.ceil(DENSITY * side**2), repeats, with_plain=plain))
        print(line(sizes[-1]), flush=True)
    by_size = slope([r["height"] ** 2 for r in sizes], [r["cluster"]["min_s"] for r in sizes])
    print(f"slope in pixels, log-log: {by_size:.2f}")
    for count in COUNTS:
        plain = count <= 100
        counts.append(measure(SIDE_OF_COUNTS, SIDE_OF_COUNTS, count, repeats, with_plain=plain))
        print(line(counts[-1]), flush=True)
    by_count = slope([r["instances"] for r in counts], [r["cluster"]["min_s"] for r in counts])
    print(f"slope in instances at one total area, log-log: {by_count:.2f}")
    return {
        "sizes": sizes,
        "counts": counts,
        "slope_in_pixels": by_size,
        "slope_in_instances": by_count,
    }


if __name__ == "__main__":
    main()
