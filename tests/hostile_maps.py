"""Maps that no network gives but a damaged model or file could: finite, and else anything."""

from __future__ import annotations

import numpy as np
import torch

from spatialembed.types import UNIT, Embeddings

KINDS = ("bits", "denormals", "equal_seeds", "one_centre", "far_apart", "all_noise")


def hostile_maps(kind: str, height: int, width: int) -> Embeddings:
    """One image, one class, two bandwidths; every pixel takes part but in "bits".

    bits: every float32 alike, NaN and infinity set to the largest number; seeds in [0, 1], as
    bits of that range. denormals: offsets, log-precisions and half of the seeds below the smallest
    normal number. equal_seeds: no seed before another. one_centre: all embed at one point.
    far_apart: each at a point of its own, of the smallest margin. all_noise: none of these.
    """
    rng = np.random.default_rng(KINDS.index(kind))
    shape = (5, height, width)
    maps = rng.standard_normal(shape).astype(np.float32)
    maps[4] = rng.uniform(0.6, 1.0, shape[1:])
    y, x = np.mgrid[:height, :width].astype(np.float32) / UNIT
    if kind == "bits":
        maps = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
        maps = np.nan_to_num(maps, nan=np.finfo(np.float32).max)
        maps[4] = rng.integers(0, 0x3F800001, shape[1:], np.uint32).view(np.float32)
    elif kind == "denormals":
        tiny = rng.integers(0, 1 << 23, shape, np.uint32).view(np.float32)
        maps = np.where(np.arange(5)[:, None, None] < 4, tiny, maps)
        maps[4] = np.where(rng.random(shape[1:]) < 0.5, tiny[4], maps[4])
    elif kind == "equal_seeds":
        maps[4] = 0.95
    elif kind == "one_centre":
        maps[0], maps[1] = 0.1 - x, 0.1 - y
    elif kind == "far_apart":
        maps[:2] *= 100
        maps[2:4] = 4.0
    offset, log_precision, seed = (torch.from_numpy(m[None]) for m in np.split(maps, (2, 4)))
    return Embeddings(offset, log_precision, seed)
