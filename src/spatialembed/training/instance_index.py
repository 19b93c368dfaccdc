"""In which image each instance of a data set lies, and of which class; and the pixels of classes.

Made of the truth alone, before the first epoch. From it objects are drawn to cut crops around, rare
classes as often as common ones, and the seed weights of classes are measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spatialembed.concurrency import helpers, prefetch
from spatialembed.console import track
from spatialembed.data.dataset import FileDataset

Sampling = Literal["image", "natural", "balanced"]
ENET = 1.02
"""Enters the ENet rule (Paszke et al. 2016): weights lie between 1.4 and 50.5."""


@dataclass(frozen=True, eq=False)
class InstanceIndex:
    """The N instances of I images, in the order of images, then of labels; and the C classes."""

    image: np.ndarray  # (N,) int64
    label: np.ndarray  # (N,) int64, in the truth of its image, 1..K
    class_index: np.ndarray  # (N,) int64
    class_pixels: np.ndarray  # (C,) int64, px of instances that are not ignored
    valid_pixels: int  # px of all images that are not ignored

    def __len__(self) -> int:
        return len(self.image)

    def enet_weights(self) -> list[float]:
        """Weight (C,) of the seed foreground of each class: 1 / ln(1.02 + p), p its pixels' share.

        Of all valid pixels. A class without instance gets the largest, 1 / ln 1.02.
        """
        share = self.class_pixels / max(1, self.valid_pixels)
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


def instance_index(images: FileDataset, *, progress: bool = True) -> InstanceIndex:
    """The index of a data set. Raises SpatialEmbedError as ``truth`` of the data set does."""
    count, threads = len(images), helpers()  # decoders let go of the interpreter while they work
    read = prefetch(images.truth, range(count), threads=threads, room=lambda _: 2 * threads)
    class_pixels, valid_pixels = np.zeros(len(images.class_names), np.int64), 0
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for i, truth in enumerate(track(read, "instances", total=count, shown=progress)):
        labels, classes = truth.labels.numpy().ravel(), truth.classes.numpy()
        valid = ~truth.ignore.numpy().ravel()
        end = len(classes) + 1
        label = np.flatnonzero(np.bincount(labels, minlength=end)[1:]) + 1  # those with a pixel
        columns.append((np.full(len(label), i), label, classes[label - 1]))
        np.add.at(class_pixels, classes, np.bincount(labels[valid], minlength=end)[1:])
        valid_pixels += int(valid.sum())
    image, label, class_index = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return InstanceIndex(image, label, class_index, class_pixels, valid_pixels)
