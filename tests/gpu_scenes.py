"""Scenes for the GPU kernel, and, run as a script, what the kernel makes of them.

Triton interprets its kernels on the processor if it is told so before it is first imported: hence
a process of its own. ``python gpu_scenes.py OUT`` writes the results of all scenes to OUT.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch

from spatialembed.types import Embeddings

RULES: dict[str, Any] = {"foreground": 0.5, "start": 0.6, "min_pixels": 5, "min_free": 0.5}


def disks(
    shape: tuple[int, int, int, int], objects: int, noise_px: float = 1.0, seed: int = 0
) -> Embeddings:
    """Maps (B, C, H, W) of disks that overlap, seeds in steps of 0.01 so that many are equal."""
    batch, classes, height, width = shape
    rng = np.random.default_rng(seed)
    offset = np.zeros((batch, 2, height, width), np.float32)
    raw = np.full((batch, 2, height, width), 0.9, np.float32)
    seeds = rng.uniform(0, 0.4, shape).astype(np.float32)
    y, x = np.mgrid[:height, :width]
    for b in range(batch):
        for _ in range(objects):
            radius = rng.integers(3, max(4, min(height, width) // 4))
            cy, cx = rng.integers(height), rng.integers(width)
            distance_sq = (y - cy) ** 2 + (x - cx) ** 2
            inside = distance_sq < radius**2
            offset[b, :, inside] = np.stack((cx - x, cy - y), axis=-1)[inside] / 1024
            raw[b, :, inside] = np.log(np.log(2) * (1024 / (1.2 * radius)) ** 2) / 10
            seeds[b, rng.integers(classes)][inside] = np.exp(-0.2 * distance_sq / radius**2)[inside]
    offset += rng.normal(0, noise_px / 1024, offset.shape).astype(np.float32)
    return Embeddings(*map(torch.from_numpy, (offset, raw, np.round(seeds, 2))))


def random_maps(shape: tuple[int, int, int, int], seed: int = 0) -> Embeddings:
    """No structure at all: offsets of up to a unit, margins from nothing to the whole image."""
    batch, classes, height, width = shape
    draw = torch.Generator().manual_seed(seed)
    offset, raw = (torch.rand(batch, 2, height, width, generator=draw) for _ in range(2))
    return Embeddings(
        2 * offset - 1, 3 * raw - 1, torch.rand(batch, classes, height, width, generator=draw)
    )


def one_place(side: int) -> Embeddings:
    """Every embedding on the same spot of no width: quadratic for whoever looks at all of them."""
    y, x = torch.meshgrid(torch.arange(side) / 1024, torch.arange(side) / 1024, indexing="ij")
    offset = torch.stack((-x, -y))[None] + 1e-6 * torch.rand(1, 2, side, side)
    return Embeddings(offset, torch.full((1, 1, side, side), 4.0), torch.rand(1, 1, side, side))


def circular(maps: Embeddings) -> Embeddings:
    return maps._replace(log_precision=maps.log_precision[:, :1].contiguous())


GIVEN_UP = ("one place", "not a number")
"""What the kernel leaves to the processor."""


def scenes() -> dict[str, Embeddings]:
    """Scenes by name."""
    return {
        "one pixel": disks((1, 1, 1, 1), 1),
        "one row": disks((1, 1, 1, 57), 3),
        "nothing": disks((2, 2, 9, 9), 0),
        "disks": disks((1, 1, 60, 70), 8),
        "batch": disks((3, 1, 40, 33), 6, seed=1),
        "classes": disks((2, 3, 41, 38), 9, seed=2),
        "no noise": disks((1, 2, 48, 48), 6, noise_px=0, seed=3),
        "much noise": disks((1, 1, 32, 32), 6, noise_px=20, seed=4),
        "circular": circular(disks((1, 2, 40, 40), 6, seed=5)),
        "beyond the border": disks((1, 1, 20, 20), 4, noise_px=3000, seed=6),
        "random": random_maps((1, 2, 16, 20), seed=7),
        "tiny margins": random_maps((1, 1, 16, 20))._replace(
            log_precision=torch.full((1, 1, 16, 20), 3.9)
        ),
        "wide margins": random_maps((1, 1, 40, 50))._replace(
            log_precision=torch.full((1, 1, 40, 50), -4.0)
        ),
        "equal seeds": disks((1, 1, 50, 50), 5)._replace(seed=torch.full((1, 1, 50, 50), 0.9)),
        "one place": one_place(20),
        "not a number": disks((1, 1, 9, 9), 1)._replace(seed=torch.full((1, 1, 9, 9), math.nan)),
    }


def main(out: str) -> None:
    from spatialembed.method import cluster

    results = {}
    for name, maps in scenes().items():
        found = cluster._cluster_on_gpu(maps, cluster.ClusterOptions(**RULES), ("object",))
        parts = None if found is None else [(i.labels, i.scores, i.classes) for i in found]
        results[name] = parts
    torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1])
