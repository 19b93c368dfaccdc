"""The same image twice: by bytes, by pixels, or nearly, in time that grows with the images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.fft import dctn
from scipy.spatial import cKDTree

from spatialembed.doctor.probe import THUMB, ImageFacts, Pair

ALIKE = 0.95
"""Correlation of two thumbnails from which on they count as one image. Between images of one kind,
adjoining tiles too, 0.63 was the most that was seen; JPEG of quality 50, half the size, a gamma of
1.5, a shift by 2 px of 256 and doubled brightness leave at least 0.965."""
COARSE = 4
"""Frequencies a side by which candidates are found."""
NEAREST = 8
"""Candidates that each image is compared with."""


class Twin(NamedTuple):
    """Two pairs of one image, by their places in the list."""

    kind: Literal["bytes", "pixels", "nearly"]
    a: int  # a < b
    b: int
    correlation: float  # of the thumbnails, 1 for equal ones


def find_twins(pairs: Sequence[Pair]) -> list[Twin]:
    """Images that are stored twice; of several copies each is paired with the first one.

    Near ones have thumbnails (32 x 32 block means, free of brightness and contrast) that correlate
    by ``ALIKE`` or more: other formats, sizes and exposures of one picture, not its crops and
    mirrors.
    """
    images = [(i, pair.image) for i, pair in enumerate(pairs) if pair.image is not None]
    found = {(t.a, t.b): t for t in _equal(images, "bytes", lambda image: image.file_hash)}
    for twin in _equal(images, "pixels", lambda image: image.pixel_hash):
        found.setdefault((twin.a, twin.b), twin)
    copies = {twin.b for twin in found.values()}
    for twin in _alike([(i, image) for i, image in images if i not in copies]):
        found.setdefault((twin.a, twin.b), twin)
    return sorted(found.values(), key=lambda twin: (twin.a, twin.b))


def _equal(
    images: Sequence[tuple[int, ImageFacts]],
    kind: Literal["bytes", "pixels"],
    key: Callable[[ImageFacts], Hashable],
) -> Iterator[Twin]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, image in images:
        groups[key(image)].append(i)
    for first, *others in groups.values():
        yield from (Twin(kind, first, other, 1.0) for other in others)


def _alike(images: Sequence[tuple[int, ImageFacts]]) -> Iterator[Twin]:
    """Near twins. For vectors of norm 1 correlation c means a distance of sqrt(2 - 2 c).

    Some low frequencies of the cosine transform, which keeps distances, can only lie nearer than
    the whole: a tree over them loses no pair within that distance.
    """
    numbers = np.array([i for i, image in images if image.thumbnail is not None])
    if len(numbers) < 2:
        return
    thumbs = np.stack([image.thumbnail for _, image in images if image.thumbnail is not None])
    waves = dctn(thumbs.reshape(-1, THUMB, THUMB), axes=(1, 2), norm="ortho")
    coarse = waves[:, :COARSE, :COARSE].reshape(len(numbers), -1)  # (I, 16)
    radius = float(np.sqrt(2 - 2 * ALIKE))
    count = min(NEAREST + 1, len(numbers))
    distance, other = cKDTree(coarse).query(coarse, k=count, distance_upper_bound=radius)
    i, j = np.nonzero(np.isfinite(distance))
    a, b = i, other[i, j]
    a, b = np.unique(np.sort(np.stack((a, b))[:, a != b], axis=0), axis=1)
    correlation = (thumbs[a] * thumbs[b]).sum(axis=1)
    for first, second, value in zip(a, b, correlation, strict=True):
        if value >= ALIKE:
            yield Twin("nearly", int(numbers[first]), int(numbers[second]), float(value))
