"""How near each pixel came to another answer: 1 - phi along borders, as a map.

    phi_k(i)       what pixel i is to instance k: 1 at its centre, ``membership`` at its border
    own pixel      1 - phi of its instance: how far it is from certain to belong
    any pixel      largest phi of the other instances: how far they would claim it too
    ambiguity      the larger of the two; on background the second alone

It is near 0 where all is clear and rises to 1 - membership on the inner side of a border; the wider
the ridge, the less certain its place. A dark object with a thin bright outline is a certain one, an
object bright all over is doubtful, and a bright spot beside objects is one that they dispute.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spatialembed.method import geometry
from spatialembed.types import Embeddings, Instances

LEAST = 1 / 512
"""A phi below this, half a level of 8 bits, is not looked for."""


def ambiguity(maps: Embeddings, instances: Instances) -> np.ndarray:
    """How near each pixel of one image came to another answer.

    Centre and bandwidth of an instance are read again at its seed: its pixel whose seed is its
    score (ties: the lowest index; the pixel of the nearest seed where an instance of another class
    owns that one). Memory is that of a few maps, however many instances.

    Args:
        maps: Of one image (B = 1), those that the instances come from.
        instances: Of the same image.

    Returns:
        (H, W) float32 in [0, 1]: near 0 where all is clear, high along doubtful borders.
    """
    found = instances.numpy()
    shape = found.labels.shape
    offset, raw, seed = (m[0].detach().float().cpu() for m in maps)
    e = geometry.embed(offset).flatten(1).numpy()  # (2, H*W)
    p = geometry.precision(raw).flatten(1).numpy()  # (S, H*W)
    seeds = seed_pixels(found, seed.flatten(1).numpy())
    order = np.argsort(e[0], kind="stable")
    owner = found.labels.ravel()[order]
    own = np.zeros(len(order), np.float32)  # phi of the instance that owns the pixel
    other = np.zeros(len(order), np.float32)  # largest phi of the rest
    half = np.sqrt(-np.log(LEAST) / p[0, seeds])
    for k, strip, d in strips(e[:, order], e[:, seeds], p[:, seeds], half):
        phi = np.exp(-d)
        mine = owner[strip] == k + 1
        own[strip][mine] = phi[mine]
        np.maximum(other[strip], np.where(mine, 0, phi), out=other[strip])
    result = np.zeros(len(order), np.float32)
    result[order] = np.maximum(np.where(owner > 0, 1 - own, 0), other)
    return result.reshape(shape)


def strips(
    e: np.ndarray, centers: np.ndarray, p: np.ndarray, half: np.ndarray
) -> Iterator[tuple[int, slice, np.ndarray]]:
    """Each centre's pixels within ``half`` (K,) of it along x, and their exponents.

    e (2, P): embeddings sorted by x, so that the pixels are a slice. centers (2, K); p (S, K).
    """
    begins = np.searchsorted(e[0], centers[0] - half, side="left")
    ends = np.searchsorted(e[0], centers[0] + half, side="right")
    for k, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        strip = slice(begin, end)
        dx, dy = e[:, strip] - centers[:, k, None]
        yield k, strip, p[0, k] * dx * dx + p[-1, k] * dy * dy


def seed_pixels(found: Instances, seed: np.ndarray) -> np.ndarray:
    """Linear index (N,) of the pixel that each instance grew from; seed (C, H*W)."""
    pixels = np.flatnonzero(found.labels)
    owner = found.labels.ravel()[pixels] - 1
    away = np.abs(seed[found.classes[owner], pixels] - found.scores[owner])
    order = np.lexsort((pixels, away, owner))  # by owner, then nearest, then first
    first = np.searchsorted(owner[order], np.arange(len(found)))
    return pixels[order[first]]
