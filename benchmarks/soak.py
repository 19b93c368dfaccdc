"""Predict images of random sizes for minutes: memory, descriptors and threads must stay flat.

    python benchmarks/soak.py [--minutes 30] [--engine torch] [--json PATH]

The first tenth of the time warms up; after it the highest memory of the process, of which the
allocator keeps some, is compared between the first and the last third of what remains. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spatialembed.command.bench import machine
from spatialembed.inference.predictor import load

FLAT_BYTES = 16 << 20
SIDES = (16, 512)


def state() -> tuple[int, int, int]:
    """Resident bytes, open descriptors, threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        pages * os.sysconf("SC_PAGESIZE"),
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
    )


def images(until: float) -> Iterator[np.ndarray]:
    """Bright squares on noise, of random sizes, grey or in colour."""
    rng = np.random.default_rng(0)
    while time.monotonic() < until:
        height, width = rng.integers(*SIDES, 2)
        image = rng.integers(0, 40, (height, width), np.uint8)
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + 30, x : x + 30] += 180
        yield np.repeat(image[..., None], 3, 2) if rng.random() < 0.3 else image


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    predictor = load("shapes", device="cpu", engine=given.engine)
    began = time.monotonic()
    until = began + 60 * given.minutes
    found = predictor.map(images(until), batch=4)
    rows = [(time.monotonic() - began, *state()) for _ in found]
    measured = np.array([row for row in rows if row[0] > 6 * given.minutes])
    first, _, last = np.array_split(measured, 3)
    growth = int(last[:, 1].max() - first[:, 1].max())
    report = {
        "minutes": given.minutes,
        "engine": given.engine,
        "images": len(rows),
        "growth_bytes": growth,
        "peak_bytes": int(measured[:, 1].max()),
        "descriptors": sorted(set(measured[:, 2].astype(int).tolist())),
        "threads": sorted(set(measured[:, 3].astype(int).tolist())),
        "machine": machine(),
    }
    print({name: value for name, value in report.items() if name != "machine"})
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if growth > FLAT_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
