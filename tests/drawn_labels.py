"""Label images for the tests of what is drawn of them."""

from __future__ import annotations

import numpy as np


def cells(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Labels (side, side) int32 that fill the image: each pixel to the nearest of random points."""
    points = np.random.default_rng(seed).uniform(0, side, (count, 2))
    y, x = np.mgrid[:side, :side]
    distance = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    return distance.argmin(axis=-1).astype(np.int32) + 1


def discs(side: int, centres: list[tuple[int, int]], radius: int) -> np.ndarray:
    labels = np.zeros((side, side), np.int32)
    y, x = np.mgrid[:side, :side]
    for label, (cy, cx) in enumerate(centres, start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = label
    return labels
