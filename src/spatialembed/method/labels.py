"""Label images: contiguous ids, and COCO's compressed run-length encoding.

An encoded mask is the lengths of its runs in column-major order, background first:

    mask  0 1      down the columns 0 1 1 0:
          1 0      one zero, two ones, one zero  ->  counts [1, 2, 1], written "121"

A count is written as its difference to the count two before (from the fourth count on), which is
small where neighbouring columns are alike; and that in groups of five bits, lowest first, each in
one character from "0" (48) on: bit 6 of it says that more follow, bit 5 of the last is the sign.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from spatialembed.errors import SpatialEmbedError

GROUP = 5
"""Bits in a character."""
FIRST = 48
"""The character of zero."""


class Rle(TypedDict):
    """A mask as COCO writes it."""

    size: list[int]  # height, width
    counts: str


def check_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """The label image as an array, held to be (H, W), integral and without negative ids.

    Raises SpatialEmbedError ``bad_labels``, naming it ``name``.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
        raise SpatialEmbedError(
            "bad_labels",
            f"{name}: shape {labels.shape}, type {labels.dtype}; labels are (H, W) integers, "
            "0 background, instances above it",
            "convert them to an integer type without negative ids",
        )
    return labels


def relabel(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the instances of a label image 1..K without gaps, in the order of their ids.

    labels: (H, W) integer, 0 background. Returns the new labels (H, W) int32 and the old ids (K,)
    int64: new label k had the id ``ids[k - 1]``. Raises SpatialEmbedError ``bad_labels``.
    """
    labels = check_labels(labels, "labels")
    highest = int(labels.max(initial=0))
    if highest <= 4 * labels.size:  # a table by id is several times quicker than a sort
        ids = np.flatnonzero(np.bincount(labels.ravel().astype(np.int64), minlength=1))
    else:
        ids = np.unique(labels)
    ids = ids[ids > 0].astype(np.int64)
    if highest == len(ids):
        return labels.astype(np.int32), ids
    return np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0).astype(np.int32), ids


def touching_pairs(labels: np.ndarray, hop: int = 1) -> np.ndarray:
    """(P, 2) int64: pairs of labels with pixels ``hop`` apart along a row, a column or a diagonal.

    labels: (H, W) integer below 2^31, 0 background. Each pair once, the lower label first, sorted.
    """
    codes = [np.empty(0, np.int64)]
    for a, b in (
        (labels[:, hop:], labels[:, :-hop]),
        (labels[hop:], labels[:-hop]),
        (labels[hop:, hop:], labels[:-hop, :-hop]),
        (labels[hop:, :-hop], labels[:-hop, hop:]),
    ):
        differ = a != b  # few do, so the rest is done of those only
        one, other = a[differ].astype(np.int64), b[differ].astype(np.int64)
        low, high = np.minimum(one, other), np.maximum(one, other)
        codes.append(np.unique((low << 32 | high)[low > 0]))
    pairs = np.unique(np.concatenate(codes))
    return np.stack((pairs >> 32, pairs & 0xFFFFFFFF), axis=1)


def encode(mask: np.ndarray) -> Rle:
    """Encode one mask (H, W) bool."""
    return encode_instances(np.asarray(mask, bool).astype(np.int32), 1)[0]


def encode_instances(labels: np.ndarray, number: int) -> list[Rle]:
    """Encode every instance of a label image (H, W) int, labels in [0, number].

    One entry for each label 1..number, in that order; a label without a pixel gives an empty mask.
    All of them cost one pass over the image, since each run of pixels belongs to one instance.
    """
    return encode_runs(*_runs(labels), number, (labels.shape[0], labels.shape[1]))


def encode_runs(
    owner: np.ndarray, start: np.ndarray, end: np.ndarray, number: int, size_hw: tuple[int, int]
) -> list[Rle]:
    """Encode the instances 1..number whose pixels are these runs of a (H, W) = ``size_hw`` image.

    owner: (R,) int in [1, number]. start, end: (R,) int, column-major places x H + y, end not
    included. Sorted by owner, then start; runs of one owner that touch count as one.
    """
    height, width = size_hw
    new = np.ones(len(owner) + 1, bool)  # begins a run, or ends the last one
    new[1:-1] = (owner[1:] != owner[:-1]) | (start[1:] != end[:-1])
    owner, start, end = owner[new[:-1]], start[new[:-1]], end[new[1:]]
    runs_of = np.bincount(owner, minlength=number + 1)[1:]  # (N,)
    counts, counts_of = _counts(owner, start, end, runs_of, height * width)
    text, length = _write(counts, counts_of)
    place = np.concatenate(([0], np.cumsum(length)))  # of each count in the text
    last = np.cumsum(counts_of)
    spans = zip(place[last - counts_of].tolist(), place[last].tolist(), strict=True)
    return [{"size": [height, width], "counts": text[i:j].decode("ascii")} for i, j in spans]


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of equal label above 0 in column-major order: owner, start and end (R,), by owner."""
    flat = labels.ravel(order="F")
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = np.concatenate(([0], change)) if len(flat) else change
    end = np.concatenate((change, [len(flat)])) if len(flat) else change
    owner = flat[start]
    order = np.argsort(owner, kind="stable")
    order = order[owner[order] > 0]
    return owner[order], start[order], end[order]


def _counts(
    owner: np.ndarray, start: np.ndarray, end: np.ndarray, runs_of: np.ndarray, total: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of all instances end to end, and how many each has (N,).

    The counts of an instance are the gaps between its borders 0, start, end, start, ..., total.
    """
    borders_of = 2 * runs_of + 1
    last = np.cumsum(borders_of) - 1  # (N,) where the closing border of each instance stands
    place = 2 * np.arange(len(owner)) + owner - 1  # of each start; owner - 1 closings lie before
    borders = np.empty(int(borders_of.sum()), np.int64)
    borders[place], borders[place + 1], borders[last] = start, end, total
    before = np.concatenate(([0], borders[:-1]))
    before[last[:-1] + 1] = 0
    counts = borders - before
    # A mask that ends in its last pixel has no zeros after it, and COCO writes none.
    kept = np.ones(len(counts), bool)
    kept[last] = (counts[last] > 0) | (runs_of == 0)
    return counts[kept], borders_of - ~kept[last]


def _write(counts: np.ndarray, counts_of: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The counts as characters, all end to end, and the length of each (M,)."""
    rank = np.arange(len(counts)) - np.repeat(np.cumsum(counts_of) - counts_of, counts_of)
    value = counts.copy()
    late = np.flatnonzero(rank > 2)
    value[late] -= counts[late - 2]

    magnitude = np.where(value < 0, ~value, value)  # bits needed beside the sign
    length = np.ones(len(value), np.int64)
    while (long := magnitude >= 1 << (GROUP * length - 1)).any():
        length += long
    owner = np.repeat(np.arange(len(value)), length)
    group = np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length)
    bits = (value[owner] >> (GROUP * group)) & 0x1F
    more = group + 1 < length[owner]
    return (bits + 0x20 * more + FIRST).astype(np.uint8).tobytes(), length


def decode(rle: Rle) -> np.ndarray:
    """The mask (H, W) bool of an encoded one. Raises SpatialEmbedError ``bad_rle``."""
    height, width = rle["size"]
    mask = np.zeros(height * width, bool)
    for start, end in decode_runs(rle).tolist():
        mask[start:end] = True
    return mask.reshape((height, width), order="F")


def decode_runs(rle: Rle) -> np.ndarray:
    """(R, 2) int64: where the runs of an encoded mask start and end, in column-major order.

    Places are x H + y, the end is not included. It costs no more than its text is long.
    Raises SpatialEmbedError ``bad_rle``.
    """
    height, width = rle["size"]
    runs = runs_of_counts(_read(rle["counts"]), height * width)
    if runs is None:
        raise SpatialEmbedError(
            "bad_rle",
            f"mask of size {height} x {width}: counts {rle['counts'][:40]!r} are not its encoding",
            "write the file anew; counts are COCO's compressed string",
        )
    return runs


def runs_of_counts(counts: np.ndarray | None, area: int) -> np.ndarray | None:
    """(R, 2) int64 starts and ends of the runs of ones; None for counts that are not of this area.

    counts: (M,) float64 in column-major order, the first of zeros. Each is held to lie in the area
    before any are added: in floats, which do not wrap.
    """
    if counts is None or not ((counts >= 0) & (counts <= area) & (counts == np.rint(counts))).all():
        return None
    ends = counts.cumsum()  # exact below 2^53, and the area is far below
    if (ends[-1] if len(ends) else 0) != area:
        return None
    ends = ends.astype(np.int64)
    return np.stack((ends[: len(ends) // 2 * 2 : 2], ends[1::2]), axis=1)


def _read(text: str) -> np.ndarray | None:
    """Counts of a string, float64; None where it is not one."""
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - FIRST
    if not len(codes):
        return codes.astype(np.float64)
    if codes.min() < 0 or codes.max() > 0x3F or codes[-1] & 0x20:
        return None
    last = np.flatnonzero((codes & 0x20) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    group = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    if group.max() > 9:  # 50 bits: no image has so many pixels
        return None
    value = np.add.reduceat((codes & 0x1F) << (GROUP * group), first)
    value -= np.where(codes[last] & 0x10, 1 << (GROUP * (group[last] + 1)), 0)
    counts = value.astype(np.float64)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts
