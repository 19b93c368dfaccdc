"""Hostile maps against those of a trained network: seconds a pixel of the clustering, as a ratio.

    python benchmarks/hostile.py [--side 1024] [--repeats 3] [--json PATH]

Same process, same size, in turn. trained: the bundled model nuclei on a generated field of nuclei.
Memory: the most that the clustering adds to the process, bytes a pixel.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

from spatialembed.command.bench import machine
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset
from spatialembed.inference.predictor import load
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.types import Embeddings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from hostile_maps import KINDS, hostile_maps


def resident() -> int:
    """Memory of this process in bytes, as Linux counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def measured(maps: Embeddings, repeats: int) -> dict[str, float]:
    """Least seconds of some repeats, and the most memory added, both a pixel."""
    pixels = maps.seed[0, 0].numel()
    before = most = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = cluster(maps, ClusterOptions(min_pixels=3))[0]
        seconds.append(time.perf_counter() - began)
    done.set()
    watcher.join()
    return {
        "ns_a_pixel": round(1e9 * min(seconds) / pixels, 1),
        "bytes_a_pixel": round(max(0, most - before) / pixels, 1),
        "instances": len(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    side = given.side
    image = SyntheticDataset("nuclei", (side, side), 1, seed=0)[0].image
    trained = load("nuclei", device="cpu", engine="torch").embeddings(image)
    cluster(trained)  # compiled and warm
    rows = {"trained": measured(trained, given.repeats)}
    for kind in KINDS:
        rows[kind] = measured(hostile_maps(kind, side, side), given.repeats)
    usual = rows["trained"]["ns_a_pixel"]
    for kind, row in rows.items():
        row["times_trained"] = round(row["ns_a_pixel"] / usual, 2)
        print(f"{kind:12}", row, flush=True)
    if given.json:
        report = {"side": side, "machine": machine(), "rows": rows}
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
