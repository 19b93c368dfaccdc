"""Accuracy against time: erfnet and lite, on each engine, in one run.

    python benchmarks/networks.py [--data DATA --models erfnet=FOLDER lite=nuclei]

Seconds are of the network alone, the median of ``--rounds`` images after a first one; they do not
depend on the weights. Ratios are taken round by round, so that other work on the machine disturbs
both alike. With ``--models`` the mean AP (IoU .50 to .90) of each on the held-out groups of DATA at
the native scale stands beside them, and docs/images/networks.png shows one against the other.
Writes results/networks.json, which ``run.py`` puts into docs/speed.md.
"""

from __future__ import annotations

import argparse
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from floor import matrix_rate, operations
from report import Table, finish, percent

from spatialembed.inference.engine import NetworkEngine, build
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.options import DeviceOptions

NETWORKS = ("erfnet", "lite")
ENGINES = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
)
NEEDS = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
PLOT = Path(__file__).parents[1] / "docs" / "images" / "networks.png"
SPEED_UP = 2.5
"""Wanted of lite against erfnet."""


def seconds(engine: NetworkEngine, image: torch.Tensor) -> float:
    began = time.perf_counter()
    engine(image)
    return time.perf_counter() - began


def timed(size_hw: tuple[int, int], rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row for each engine and precision that is installed."""
    nets = {name: SpatialEmbeddingNet(1, network=name).eval() for name in NETWORKS}
    work = {name: operations(net, *size_hw) for name, net in nets.items()}
    torch.set_num_threads(threads)
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    rates = {name: matrix_rate(kind, torch.device("cpu")) for name, kind in kinds.items()}
    image = torch.rand(1, 3, *size_hw)
    rows = []
    for engine, precision in ENGINES:
        if engine in NEEDS and find_spec(NEEDS[engine]) is None:
            continue
        how = DeviceOptions(device="cpu", engine=engine, precision=precision, threads=threads)
        started = {name: build(net, how) for name, net in nets.items()}
        laps = [[seconds(started[name], image) for name in NETWORKS] for _ in range(rounds + 1)][1:]
        took = dict(zip(NETWORKS, np.median(laps, axis=0).tolist(), strict=True))
        ratio = float(np.median([a / b for a, b in laps]))
        row = {"engine": engine, "precision": precision, "seconds": took, "ratio": ratio}
        row["share"] = {name: work[name] / took[name] / rates[precision] for name in NETWORKS}
        rows.append(row)
        print(f"{engine} {precision}: lite {ratio:.2f} times as fast", flush=True)
    return rows


def scored(models: list[str], data: str) -> dict[str, float]:
    """Mean AP by name of ``NAME=MODEL``."""
    from spatialembed.data.folder import open_folder
    from spatialembed.data.splitting import split_dataset
    from spatialembed.evaluation.threshold_sweep import mean_ap
    from spatialembed.inference.predictor import load

    _, held_out = split_dataset(open_folder(data), group_by="mosaic")
    found = {}
    for entry in models:
        name, _, model = entry.partition("=")
        predictor = load(model, device="cpu", diameter="native")
        samples = [held_out[i] for i in range(len(held_out))]
        found[name] = float(np.nanmean([mean_ap(predictor(s.image), s, 1) for s in samples]))
        print(f"{name}: mean AP {found[name]:.4f} on {len(samples)} images", flush=True)
    return found


def tables(rows: list[dict[str, Any]], ap: dict[str, float], size: str) -> list[Table]:
    """Ratios, the share of the machine's rate of matrix products in that precision, accuracy."""
    ratios = [
        (
            f"{row['engine']} {row['precision']}",
            f"{row['ratio']:.2f}",
            *(percent(row["share"][name]) for name in NETWORKS),
        )
        for row in rows
    ]
    columns = (
        "engine",
        "times as fast as erfnet",
        *(f"{name}, share of the rate" for name in NETWORKS),
    )
    title = f"lite beside erfnet, {size} px, and their share of the rate of matrix products"
    found = [Table(title, columns, ratios)]
    if ap:
        scores = [(name, f"{value:.3f}") for name, value in ap.items()]
        found.append(Table("Held-out nuclei, native scale", ("network", "mean AP"), scores))
    return found


def draw(rows: list[dict[str, Any]], ap: dict[str, float]) -> None:
    """AP against time, a marker for each engine; time by that of the slowest."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    slowest = max(row["seconds"][name] for row in rows for name in ap)
    for color, name in enumerate(ap):
        for row, marker in zip(rows, "os^Dv", strict=False):
            label = f"{name}, {row['engine']} {row['precision']}"
            where = row["seconds"][name] / slowest, ap[name]
            axes.plot(*where, marker, color=f"C{color}", label=label, linestyle="none")
    axes.set_xlabel("time of the network, by that of the slowest")
    axes.set_ylabel("mean AP of held-out nuclei")
    axes.grid(alpha=0.3)
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(PLOT, dpi=140)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1024x2048", help="height x width")
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--data", help="folder of nuclei with index.csv")
    parser.add_argument("--models", nargs="*", default=[], help="NAME=MODEL")
    given = parser.parse_args()
    for name in (entry.partition("=")[0] for entry in given.models):
        if name not in NETWORKS:
            parser.error(f"--models: {name!r} is not one of {', '.join(NETWORKS)}")
    height, width = map(int, given.size.split("x"))
    rows = timed((height, width), given.rounds, given.threads)
    ap = scored(given.models, given.data) if given.models else {}
    slow = [f"{r['engine']} {r['precision']}" for r in rows if r["ratio"] < SPEED_UP]
    print(f"lite below {SPEED_UP} times as fast: {', '.join(slow) or 'on no engine'}")
    facts = {"rows": rows, "mean_ap": ap}
    finish("networks", tables(rows, ap, f"{height} x {width}"), facts=facts)
    if ap:
        draw(rows, ap)


if __name__ == "__main__":
    main()
