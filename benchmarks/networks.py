"""Accuracy against time: erfnet and lite, on each engine, in one run.

    python benchmarks/networks.py [--data DATA --models erfnet=FOLDER lite=nuclei]

Seconds are of the network alone, the median of ``--rounds`` images after a first one; they do not
depend on the weights. Ratios are taken round by round, so that other work on the machine disturbs
both alike. With ``--models`` the mean AP (IoU .50 to .90) of each on the held-out groups of DATA
stands beside them. Writes results/networks.json.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from spatialembed.inference.engine import NetworkEngine, build
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import Network

ENGINES = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
)
NEEDS = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
RESULT = Path(__file__).parent / "results" / "networks.json"
SPEED_UP = 2.5
"""Wanted of lite against erfnet."""


def flop(net: SpatialEmbeddingNet, size_hw: tuple[int, int]) -> float:
    """Operations of one image, 1e9, two a multiplication with its addition."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        net(torch.zeros(1, 3, *size_hw))
    return counter.get_total_flops() / 1e9


def seconds(engine: NetworkEngine, image: torch.Tensor) -> float:
    began = time.perf_counter()
    engine(image)
    return time.perf_counter() - began


def timed(size_hw: tuple[int, int], rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row for each engine and precision that is installed."""
    names = get_args(Network)
    nets = {name: SpatialEmbeddingNet(1, network=name).eval() for name in names}
    gflop = {name: flop(net, size_hw) for name, net in nets.items()}
    image = torch.rand(1, 3, *size_hw)
    rows = []
    for engine, precision in ENGINES:
        if engine in NEEDS and find_spec(NEEDS[engine]) is None:
            continue
        started = {
            name: build(net, engine=engine, precision=precision, device="cpu", threads=threads)
            for name, net in nets.items()
        }
        laps = [[seconds(started[name], image) for name in names] for _ in range(rounds + 1)][1:]
        took = dict(zip(names, np.median(laps, axis=0).tolist(), strict=True))
        ratio = float(np.median([a / b for a, b in laps]))
        row = {"engine": engine, "precision": precision, "seconds": took, "ratio": ratio}
        row["gflop_s"] = {name: gflop[name] / took[name] for name in names}
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    s, rate = row["seconds"], row["gflop_s"]
    return (
        f"| {row['engine']} {row['precision']} | {s['erfnet']:.3f} | {s['lite']:.3f} | "
        f"{row['ratio']:.2f} | {rate['erfnet']:.0f} | {rate['lite']:.0f} |"
    )


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
        predictor = load(model, device="cpu")
        samples = [held_out[i] for i in range(len(held_out))]
        found[name] = float(np.nanmean([mean_ap(predictor(s.image), s, 1) for s in samples]))
        print(f"{name}: mean AP {found[name]:.4f} on {len(samples)} images", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1024x2048", help="height x width")
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--data", help="folder of nuclei with index.csv")
    parser.add_argument("--models", nargs="*", default=[], help="NAME=MODEL")
    given = parser.parse_args()
    height, width = map(int, given.size.split("x"))
    print("| engine | erfnet, s | lite, s | times as fast | erfnet, GFLOP/s | lite, GFLOP/s |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = timed((height, width), given.rounds, given.threads)
    ap = scored(given.models, given.data) if given.models else {}
    slow = [f"{r['engine']} {r['precision']}" for r in rows if r["ratio"] < SPEED_UP]
    print(f"lite below {SPEED_UP} times as fast: {', '.join(slow) or 'on no engine'}")
    facts = {"size_hw": [height, width], "threads": given.threads, "rows": rows, "mean_ap": ap}
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
