"""Scenes for timing: what a trained network would say of a street, and a picture for a real one.

Sizes are spread as on a street, many small objects and a few near ones, over a fixed share of the
image: more objects are smaller objects, so that time against instances is seen at fixed area.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.types import UNIT, Embeddings

COVER = 0.15
"""Share of the image that objects take; about that of the things in Cityscapes."""
SPREAD = 0.7
"""Standard deviation of the log of a radius."""
MARGIN = 0.4
"""Margin by radius: where phi is 0.5."""


def scene(height: int, width: int, instances: int, seed: int = 0, classes: int = 1) -> Embeddings:
    """Maps (B = 1, two bandwidths) of ``instances`` noisy ellipses, as trained maps look.

    Pixels point at their centre, 15 % short of it and with a noise of 0.12 radii; the seed is the
    phi that follows, with a noise of 0.02. A few objects may be hidden by others, or be too small
    to be found: the result has about ``instances``.
    """
    rng = np.random.default_rng(seed)
    radius = _radii(rng, height, width, instances)
    labels, center = _place(rng, height, width, radius)
    label = labels.ravel()  # (H*W,)
    kind = rng.integers(0, classes, instances)

    offset = rng.normal(0, 5 / UNIT, (2, height * width)).astype(np.float32)
    log_precision = rng.normal(0.7, 0.05, (2, height * width)).astype(np.float32)
    seeds = np.abs(rng.normal(0, 0.04, (classes, height * width))).astype(np.float32)

    pixel = np.flatnonzero(label)
    k = label[pixel] - 1
    position = np.stack((pixel % width, pixel // width))  # (2, P) px
    away = 0.15 * (position - center[k].T) + rng.normal(0, 0.12, position.shape) * radius[k].T
    offset[:, pixel] = (center[k].T + away - position) / UNIT
    margin = MARGIN * radius[k].T
    raw = np.log(math.log(2) / (margin / UNIT) ** 2) / 10
    log_precision[:, pixel] = raw + rng.normal(0, 0.003, raw.shape)
    phi = np.exp(-math.log(2) * ((away / margin) ** 2).sum(axis=0))
    seeds[kind[k], pixel] = np.clip(phi + rng.normal(0, 0.02, phi.shape), 0, 0.999)
    maps = (m.reshape(1, -1, height, width) for m in (offset, log_precision, seeds))
    return Embeddings(*map(torch.from_numpy, maps))


def scene_image(height: int, width: int, instances: int, seed: int = 0) -> np.ndarray:
    """Picture (height, width) uint8 with up to ``instances`` nuclei: for runs with a network."""
    return nuclei_field(height, width, seed=seed, count=instances).image


def _radii(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Half axes (count, 2) (x, y) px, large ones first."""
    radius = np.exp(rng.normal(0, SPREAD, count))[:, None] * np.exp(rng.normal(0, 0.25, (count, 2)))
    radius *= math.sqrt(COVER * height * width / (math.pi * radius.prod(axis=1).sum()))
    radius = np.minimum(radius, 0.3 * min(height, width))
    return radius[np.argsort(-radius.prod(axis=1))]


def _place(
    rng: np.random.Generator, height: int, width: int, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) int32 and centres (K, 2) (x, y) px: on free ground, where 30 tries find it."""
    labels = np.zeros((height, width), np.int32)
    center = np.empty_like(radius)
    for k in range(len(radius)):
        for _ in range(30):
            center[k] = rng.uniform((0, 0), (width, height))
            x1, y1 = np.maximum(np.floor(center[k] - radius[k]), 0).astype(int)
            x2, y2 = np.ceil(center[k] + radius[k]).astype(int) + 1
            window = labels[y1:y2, x1:x2]
            if not window.any():
                break
        y, x = np.ogrid[y1 : y1 + window.shape[0], x1 : x1 + window.shape[1]]
        u, v = (x - center[k, 0]) / radius[k, 0], (y - center[k, 1]) / radius[k, 1]
        window[(u**2 + v**2 <= 1) & (window == 0)] = k + 1
    return labels, center
