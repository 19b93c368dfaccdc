"""In which image each instance of a data set lies, and of which class; and the pixels of classes.

Made of the truth alone, once; kept in a file named by the hash of what the truth is made of. From
it objects are drawn to cut crops around, rare classes as often as common ones, and the seed weights
of classes are measured.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np

from spatialembed.concurrency import helpers, prefetch
from spatialembed.console import Stages
from spatialembed.errors import SpatialEmbedError
from spatialembed.files import BROKEN_ARRAYS, atomic_write
from spatialembed.types import Target

logger = logging.getLogger("spatialembed")

T = TypeVar("T")
Sampling = Literal["image", "natural", "balanced"]
VERSION = 1
"""Of what is stored; another one is not read."""
ENET = 1.02
"""Enters the ENet rule (Paszke et al. 2016): weights lie between 1.4 and 50.5."""


class HasTruth(Protocol):
    """What an index is made of."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def truth(self, i: int) -> Target: ...
    def truth_digest(self, i: int) -> bytes: ...


@dataclass(frozen=True, eq=False)
class InstanceIndex:
    """The N instances of I images, in the order of images, then of labels; and the C classes."""

    image: np.ndarray  # (N,) int64
    label: np.ndarray  # (N,) int64, in the truth of its image, 1..K
    class_index: np.ndarray  # (N,) int64
    class_pixels: np.ndarray  # (C,) int64, px of instances that are not ignored
    valid_pixels: np.ndarray  # () int64, px of all images that are not ignored

    def __len__(self) -> int:
        return len(self.image)

    def enet_weights(self) -> list[float]:
        """Weight (C,) of the seed foreground of each class: 1 / ln(1.02 + p), p its pixels' share.

        Of all valid pixels. A class without instance gets the largest, 1 / ln 1.02.
        """
        share = self.class_pixels / max(1, int(self.valid_pixels))
        return [1 / math.log(ENET + p) for p in share.tolist()]

    def draw(self, sampling: Sampling, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` instances (their rows) in random order, none twice before all came once.

        natural: every instance as often as any other. balanced: every class that there is, and
        within it every instance.
        """
        if sampling == "natural":
            return in_rounds(np.arange(len(self)), count, rng)
        classes = np.unique(self.class_index)
        turns = in_rounds(classes, count, rng)  # (count,) the class of each
        rows = np.empty(count, np.int64)
        for c in classes:
            mine = turns == c
            rows[mine] = in_rounds(np.flatnonzero(self.class_index == c), int(mine.sum()), rng)
        return rows


def in_rounds(items: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of the items, shuffled anew whenever all have come."""
    rounds = -(-count // len(items))
    return np.concatenate([items[:0], *(rng.permutation(items) for _ in range(rounds))])[:count]


# ---------------------------------------------------------------- making it


def instance_index(
    images: HasTruth, cache: Path | None = None, *, progress: bool = True
) -> InstanceIndex:
    """The index of a data set: from the folder ``cache`` if it is there, else made and put there.

    The file is named by the hash of the bytes of all masks (or annotations) and of what they are
    taken for. So a mask that was changed without a new date is seen, and a data set that was copied
    keeps its index; to read the bytes takes a hundredth of the time of decoding them.

    Raises SpatialEmbedError as ``truth`` of the data set does.
    """
    with Stages(progress, "instances") as stages:
        stages.begin("looking for changes", len(images))
        digests = list(stages.passed(_each(images.truth_digest, len(images))))
        path = None if cache is None else cache / f"{_key(images, digests)}.npz"
        if path is not None and (known := _read(path)) is not None:
            return known
        stages.begin("indexing", len(images))
        count = len(images.class_names)
        parts = stages.passed(_each(lambda i: _of_image(images.truth(i), i, count), len(images)))
        index = _joined(list(parts))
    if path is not None:
        _write(index, path)
    return index


def _each(work: Callable[[int], T], count: int) -> Iterator[T]:
    """``work`` of each image, in order; decoders let go of the interpreter while they work."""
    threads = helpers()
    return prefetch(work, range(count), threads=threads, room=lambda _: 2 * threads)


def _key(images: HasTruth, digests: Sequence[bytes]) -> str:
    told = repr((VERSION, images.class_names)).encode()
    return hashlib.sha256(told + b"".join(digests)).hexdigest()[:32]


def _of_image(target: Target, number: int, num_classes: int) -> InstanceIndex:
    """The index of one image; no row for a label without a pixel."""
    labels, ignore = target.labels.numpy(), target.ignore.numpy()
    classes, end = target.classes.numpy(), len(target.classes) + 1
    label = np.flatnonzero(np.bincount(labels.ravel(), minlength=end)[1:]) + 1
    known = np.bincount(labels[~ignore], minlength=end)[1:]  # px that are not ignored
    return InstanceIndex(
        np.full(len(label), number, np.int64),
        label,
        classes[label - 1],
        np.bincount(classes, known, num_classes).astype(np.int64),
        np.array(ignore.size - ignore.sum(), np.int64),
    )


def _joined(parts: Sequence[InstanceIndex]) -> InstanceIndex:
    image, label, class_index, class_pixels, valid_pixels = zip(
        *(vars(part).values() for part in parts), strict=True
    )
    return InstanceIndex(
        *(np.concatenate(columns) for columns in (image, label, class_index)),
        sum(class_pixels),
        sum(valid_pixels),
    )


# ---------------------------------------------------------------- keeping it


def _read(path: Path) -> InstanceIndex | None:
    """A stored index; None where there is none, or a damaged one, which is rebuilt."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return InstanceIndex(**{f.name: file[f.name] for f in fields(InstanceIndex)})
    except FileNotFoundError:
        return None
    except BROKEN_ARRAYS as error:
        logger.warning("%s: damaged (%s), rebuilt", path, error)
        return None


def _write(index: InstanceIndex, path: Path) -> None:
    """Only a help for later runs: where it cannot be written, a warning is enough."""
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{f.name: getattr(index, f.name) for f in fields(index)})
    except (OSError, SpatialEmbedError) as error:
        logger.warning("the index of instances cannot be saved: %s", error)
