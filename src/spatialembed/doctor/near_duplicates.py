"""The same image twice: by pixels, or nearly: saved, sized, lit, turned otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import imagehash
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from spatialembed.doctor.probe import Pair

HASH_SIDE = 16
NEAR_BITS = 48
"""Candidates are images whose perceptual hashes (256 bits) differ in at most as many. JPEG of
quality 50, half the size, a gamma of 1.5 and a shift by a hundredth change 44 at most."""
FINE = 2.0
"""Standard deviation in px of the blur that is taken from a thumbnail before two are compared:
wells of one plate have the light and the rim in common, not the detail."""
ALIKE = 0.7
"""Correlation of that detail from which on two images are one. Between different images of nuclei,
tissue, cells and wells 0.58 was the most that was seen; the changes above leave 0.9."""


class Duplicate(NamedTuple):
    """Image ``b`` of a list is a copy of ``a``, which comes before it."""

    kind: Literal["pixels", "nearly"]
    a: int
    b: int
    correlation: float  # 1 for equal ones


def near_duplicates(pairs: Sequence[Pair]) -> list[Duplicate]:
    """Every image that is a copy of an earlier one, once, beside the first of its copies."""
    found: dict[int, Duplicate] = {}
    first: dict[bytes, int] = {}
    thumbs: dict[int, np.ndarray] = {}  # of the others, but for constant ones
    for i, image in ((i, pair.image) for i, pair in enumerate(pairs) if pair.image is not None):
        if (earlier := first.setdefault(image.pixel_hash, i)) != i:
            found[i] = Duplicate("pixels", earlier, i, 1.0)
        elif image.thumbnail is not None:
            thumbs[i] = image.thumbnail.astype(np.float32)
    links = list(_alike(thumbs))
    a, b = [link.a for link in links], [link.b for link in links]
    graph = coo_array((np.ones(len(links)), (a, b)), shape=(len(pairs),) * 2)
    group = connected_components(graph, directed=False)[1].tolist()
    for link in sorted(links, key=lambda link: link.correlation):  # the surest link is kept
        for i in (link.a, link.b):
            if (start := group.index(group[i])) != i:
                found[i] = Duplicate("nearly", start, i, link.correlation)
    return sorted(found.values(), key=lambda duplicate: (duplicate.a, duplicate.b))


def _alike(thumbs: Mapping[int, np.ndarray]) -> Iterator[Duplicate]:
    """Pairs with near hashes, in any of the eight ways to turn one, whose detail correlates."""
    if len(thumbs) < 2:
        return
    numbers = list(thumbs)
    details = [_detail(thumb) for thumb in thumbs.values()]
    signs = np.stack([_hash(thumb) for thumb in thumbs.values()])  # (I, 256) of -1 and 1
    for turn in range(8):
        turned = np.stack([_hash(_turned(thumb, turn)) for thumb in thumbs.values()])
        for a, row in enumerate(signs):
            # Bits that differ are half the squared distance of signs over two.
            b = a + 1 + np.flatnonzero(row @ turned[a + 1 :].T >= HASH_SIDE**2 - 2 * NEAR_BITS)
            for j in b.tolist():
                correlation = float((details[a] * _turned(details[j], turn)).sum())
                if correlation >= ALIKE:
                    yield Duplicate("nearly", numbers[a], numbers[j], min(1.0, correlation))


def _turned(thumb: np.ndarray, turn: int) -> np.ndarray:
    """Rotated by ``turn % 4`` quarters, mirrored from 4 on."""
    return np.rot90(thumb[:, ::-1] if turn >= 4 else thumb, turn % 4)


def _hash(thumb: np.ndarray) -> np.ndarray:
    """(256,) float32, the bits of ``phash`` as -1 and 1."""
    grey = np.clip(128 + 32 * thumb / thumb.std(), 0, 255).astype(np.uint8)
    bits = imagehash.phash(Image.fromarray(grey), HASH_SIDE).hash.ravel()
    return np.where(bits, 1, -1).astype(np.float32)


def _detail(thumb: np.ndarray) -> np.ndarray:
    """Without uneven light and large shapes; norm 1, or 0 where nothing is left."""
    fine = thumb - gaussian_filter(thumb, FINE)
    return fine / max(float(np.linalg.norm(fine)), 1e-6)
