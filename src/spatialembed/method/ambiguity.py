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

import numpy as np
from torch import Tensor

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
    owner = found.labels.ravel()
    e = _flat(geometry.embed(maps.offset[0].detach().float().cpu()))  # (2, H*W)
    raw = maps.log_precision[0].detach().float().cpu()
    p = _flat(geometry.precision(raw))  # (S, H*W)
    seeds = seed_pixels(found, _flat(maps.seed[0].detach().float().cpu()))
    order = np.argsort(e[0], kind="stable")
    x, y, owner = e[0, order], e[1, order], owner[order]
    own = np.zeros(len(x), np.float32)  # phi of the instance that owns the pixel
    other = np.zeros(len(x), np.float32)  # largest phi of the rest
    reach = -np.log(LEAST)
    half = np.sqrt(reach / p[0, seeds])
    begins = np.searchsorted(x, e[0, seeds] - half, side="left")
    ends = np.searchsorted(x, e[0, seeds] + half, side="right")
    for k, seed in enumerate(seeds):
        strip = slice(begins[k], ends[k])
        dx, dy = x[strip] - e[0, seed], y[strip] - e[1, seed]
        phi = np.exp(-(p[0, seed] * dx * dx + p[-1, seed] * dy * dy))
        mine = owner[strip] == k + 1
        own[strip][mine] = phi[mine]
        np.maximum(other[strip], np.where(mine, 0, phi), out=other[strip])
    result = np.zeros(len(x), np.float32)
    result[order] = np.maximum(np.where(owner > 0, 1 - own, 0), other)
    return result.reshape(shape)


def seed_pixels(found: Instances, seed: np.ndarray) -> np.ndarray:
    """Linear index (N,) of the pixel that each instance grew from; seed (C, H*W)."""
    pixels = np.flatnonzero(found.labels)
    owner = found.labels.ravel()[pixels] - 1
    away = np.abs(seed[found.classes[owner], pixels] - found.scores[owner])
    order = np.lexsort((pixels, away, owner))  # by owner, then nearest, then first
    first = np.searchsorted(owner[order], np.arange(len(found)))
    return pixels[order[first]]


def _flat(maps: Tensor) -> np.ndarray:
    """(C, H, W) -> (C, H*W)."""
    return maps.flatten(1).numpy()
