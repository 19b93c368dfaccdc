"""Engines whose answer at a pixel depends on a few pixels around it, for the tests of tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from spatialembed.inference.model_file import ModelInfo
from spatialembed.method.cluster import ClusterOptions
from spatialembed.types import UNIT, Embeddings, Normalization

RADIUS = 8
"""Pixels that it sees to each side."""


def info(classes: int = 1, kind: str = "percentile", scale: float = 1.0) -> ModelInfo:
    return ModelInfo(
        tuple("abcdef"[:classes]),
        True,
        Normalization(kind),  # type: ignore[arg-type]
        ClusterOptions(min_pixels=10),
        scale,
    )


class NearCentres:
    """Every bright pixel points at the mean of the bright pixels in a square around it.

    The classes take turns by brightness. calls counts images; a log file, if given, gets a line
    for each, so that another process can be watched.
    """

    name = "near"
    precision = "float32"
    device = torch.device("cpu")

    def __init__(self, classes: int = 1, scale: float = 1.0, log: Path | None = None) -> None:
        self.classes, self.scale, self.log = classes, scale, log
        self.calls = 0
        self.largest = 0  # pixels of the largest image

    def __call__(self, images: Tensor) -> Embeddings:
        self.calls += len(images)
        self.largest = max(self.largest, images[0, 0].numel())
        if self.log is not None:
            with open(self.log, "a", encoding="ascii") as file:
                file.write(f"{images.shape[-2]} x {images.shape[-1]}\n")
        maps = [_maps(image.numpy(), self.classes) for image in images[:, 0]]
        return Embeddings(*(torch.from_numpy(np.stack(m)) for m in zip(*maps, strict=True)))


def _maps(grey: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    side = 2 * RADIUS + 1
    steps = np.arange(-RADIUS, RADIUS + 1.0)
    bright = (grey > 0.3).astype(np.float64)

    def box(values: np.ndarray, axis: int) -> np.ndarray:
        return ndimage.correlate1d(values, np.ones(side), axis, mode="constant")

    count = box(box(bright, 0), 1)
    sums = [
        ndimage.correlate1d(box(bright, 1 - axis), steps, axis, mode="constant") for axis in (1, 0)
    ]
    offset = np.stack([np.rint(s / np.maximum(count, 1)) / UNIT for s in sums])  # (2, H, W)
    turn = (np.clip(grey, 0, 1) * 255).astype(int) // 16 % classes
    seed = np.where((bright > 0) & (turn == np.arange(classes)[:, None, None]), 0.8 + grey / 5, 0)
    wide = np.full((2, *grey.shape), 0.9, np.float32)  # margin 9.4 px
    return offset.astype(np.float32), wide, np.clip(seed, 0, 1).astype(np.float32)
