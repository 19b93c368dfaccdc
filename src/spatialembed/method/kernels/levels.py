"""Passes over the pixels of an image as it is read: count its levels, and look each one up."""

from __future__ import annotations

import numpy as np

from spatialembed.method.kernels.jit import compiled


@compiled
def count_levels(image: np.ndarray, levels: int) -> np.ndarray:
    """How often each level occurs: image (P, C) uint8 or uint16 below ``levels`` -> (C, levels)."""
    pixels, channels = image.shape
    # Neighbours have the same level, and a counter waits for its last increment: four take turns.
    lanes = 4 if levels <= 256 else 1
    counts = np.zeros((lanes, channels, levels), np.int64)
    for i in range(pixels):
        lane = i % lanes
        for c in range(channels):
            counts[lane, c, image[i, c]] += 1
    return counts.sum(axis=0)


@compiled
def look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each pixel by a table: image (P, C) uint8 or uint16, table (K, levels) float32 -> (K, P).

    C is K, or 1: then one channel goes through K tables.
    """
    pixels, channels = image.shape
    result = np.empty((len(table), pixels), np.float32)
    for k in range(len(table)):
        c = k if channels > 1 else 0
        for i in range(pixels):
            result[k, i] = table[k, image[i, c]]
    return result
