"""Masks that hold no instances although every value is an integer: class maps, borders that are
void, soft edges, a background with an id, ids that wrapped at 255.

    facts = [label_facts(ids) for ids in masks]     # one mask at a time
    for fault in label_faults(facts):               # over the whole set, or a part of it
        warn(f"{fault.message} -> {fault.remedy}")

One mask proves little (two cells may share an id once), so that most faults need half of the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage import measure

from spatialembed.method.labels import relabel

MAJOR = 0.2
"""A part counts from this share of the largest part of its id on: slivers and specks do not."""
SOFT = 0.1
"""Share of edge pixels between the values of both sides from which on edges are interpolated.
The largest of 661 masks that people drew has 0.02; bilinear resizing leaves 0.3 and more."""
CLASSES = 40
"""More ids than this are no class map."""


@dataclass(frozen=True)
class LabelFacts:
    """Facts about one mask that ``label_faults`` goes by."""

    ids: np.ndarray  # (K,) int64 as stored, ascending
    parts: np.ndarray  # (K,) int64, connected parts of at least MAJOR of the largest one
    soft: float  # share of edge pixels whose value lies between those of two opposite neighbours
    ground: int | None  # id that reaches all four borders and lies around the others
    outlier: int | None  # highest id, far above the others: in pieces, or beside most of them


@dataclass(frozen=True)
class LabelFault:
    """Why masks hold no instances."""

    code: str  # class_maps, void_id, soft_labels, background_id or ids_wrapped
    message: str  # one sentence, with the count of masks
    remedy: str
    masks: tuple[int, ...]  # places in the sequence that was looked at


def label_facts(ids: np.ndarray) -> LabelFacts:
    """Measure one mask.

    ids: (H, W) integer ids as they are stored (not renumbered), 0 background; pixels to be ignored
    set to 0.

    Raises SpatialEmbedError ``bad_labels``.
    """
    dense, present = relabel(ids)
    parts = _major_parts(dense, len(present))
    ground, outlier = _ground(dense, present), _outlier(dense, present, parts)
    soft = _soft(ids.astype(np.int64))
    return LabelFacts(present, parts, soft, ground, None if outlier == ground else outlier)


def label_faults(facts: Iterable[LabelFacts]) -> list[LabelFault]:
    """Reasons why masks hold no instances, of a data set or a sample of it; [] where none is found.

    Masks without an object count for nothing.
    """
    masks = [(i, fact) for i, fact in enumerate(facts) if len(fact.ids)]
    found = [_soft_labels(masks)]
    if found == [None]:  # else their ids mean nothing
        found = [_background_id(masks), _ids_wrapped(masks), _void_id(masks), _class_maps(masks)]
    return [fault for fault in found if fault is not None]


# ---------------------------------------------------------------- one mask


def connected_parts(dense: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Connected parts of labels (H, W) of 1..count, diagonal neighbours connected.

    Returns:
        Label (M,) and pixels (M,) of each part, and the pixels (count,) of each label's largest.
    """
    pieces = measure.label(dense, background=0, connectivity=2).ravel()  # (H W,) 1..M
    sizes = np.bincount(pieces)
    owner = np.zeros(len(sizes), np.int64)
    owner[pieces] = dense.ravel()
    largest = np.zeros(count + 1, np.int64)
    np.maximum.at(largest, owner[1:], sizes[1:])
    return owner[1:], sizes[1:], largest[1:]


def _major_parts(dense: np.ndarray, count: int) -> np.ndarray:
    """(K,) connected parts of each id, slivers left out."""
    owner, sizes, largest = connected_parts(dense, count)
    major = owner[sizes >= MAJOR * largest[owner - 1]]
    return np.bincount(major, minlength=count + 1)[1:]


def _soft(ids: np.ndarray) -> float:
    """Share of the pixels at an edge that lie strictly between their left and right neighbours, or
    between those above and below. Between two objects, or an object and 0, no pixel does."""
    if not ids.size:
        return 0.0
    padded = np.pad(ids, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    edge = np.zeros(ids.shape, bool)
    between = np.zeros(ids.shape, bool)
    for before, after in (
        (padded[1:-1, :-2], padded[1:-1, 2:]),
        (padded[:-2, 1:-1], padded[2:, 1:-1]),
    ):
        edge |= (before != middle) | (after != middle)
        between |= ((before < middle) & (middle < after)) | ((before > middle) & (middle > after))
    return float(between.sum() / max(1, (edge & (ids > 0)).sum()))


def _beside(dense: np.ndarray, k: int, count: int) -> float:
    """Share of the other objects that touch object k of 1..count."""
    near = dense[ndimage.binary_dilation(dense == k, np.ones((3, 3)))]
    return (len(np.setdiff1d(near, (0, k)))) / max(1, count - 1)


def _ground(dense: np.ndarray, present: np.ndarray) -> int | None:
    """The id that reaches all four borders and lies around most others, hardly a 0 beside it."""
    if not len(present):
        return None
    borders = [set(side.tolist()) for side in (dense[0], dense[-1], dense[:, 0], dense[:, -1])]
    around = sorted(set.intersection(*borders) - {0})
    if len(present) == 1 and around:  # objects that are 0
        holes = measure.label(dense == 0, connectivity=2, return_num=True)[1]
        return int(present[0]) if holes > 1 else None
    if len(present) == 1 or (dense == 0).mean() > 0.05:
        return None
    found = (k for k in around if _beside(dense, k, len(present)) > 0.5)
    return next((int(present[k - 1]) for k in found), None)


def _outlier(dense: np.ndarray, present: np.ndarray, parts: np.ndarray) -> int | None:
    """The highest id where it stands apart from the others: by number, and by place or pieces."""
    count = len(present)
    if count < 2 or present[-1] < max(100, 2 * present[-2]):
        return None
    last_of_type = present[-1] in (255, 65535) and present[-2] < 2 * count  # 1, 2, 3, 255
    odd = last_of_type or parts[-1] > 2 or _beside(dense, count, count) > 0.5
    return int(present[-1]) if odd else None


# ---------------------------------------------------------------- all of them

Masks = Sequence[tuple[int, LabelFacts]]


def _of(masks: Masks) -> str:
    return "1 mask" if len(masks) == 1 else f"{len(masks)} masks"


def _fault(code: str, masks: Masks, message: str, remedy: str) -> LabelFault:
    return LabelFault(code, message, remedy, tuple(i for i, _ in masks))


def _soft_labels(masks: Masks) -> LabelFault | None:
    soft = [(i, mask) for i, mask in masks if mask.soft > SOFT]
    if not soft:
        return None
    return _fault(
        "soft_labels",
        soft,
        f"{_of(soft)} with soft edges: values between those of both sides, all taken for ids",
        "resize masks by nearest neighbour; cut soft edges at half, then number the parts",
    )


def _most(values: Sequence[int | None]) -> int | None:
    """The value of at least half of the masks, if there is one."""
    number, hits = Counter(values).most_common(1)[0] if values else (None, 0)
    return number if 2 * hits >= len(values) else None


def _background_id(masks: Masks) -> LabelFault | None:
    number = _most([mask.ground for _, mask in masks])
    if number is None:
        return None
    those = [(i, mask) for i, mask in masks if mask.ground == number]
    return _fault(
        "background_id",
        those,
        f"{_of(those)} whose background has the id {number}: it counts as an object",
        "set the background to 0",
    )


def _ids_wrapped(masks: Masks) -> LabelFault | None:
    wrapped = [(i, mask) for i, mask in masks if _wraps(mask)]
    if not wrapped:
        return None
    return _fault(
        "ids_wrapped",
        wrapped,
        f"{_of(wrapped)} whose ids end at 255 and lie in several places: more objects than 8 bits",
        "export masks with 16 or 32 bits",
    )


def _wraps(mask: LabelFacts) -> bool:
    """Nearly all of 1..255 are there, and some of them twice, since 256 + k became k."""
    full = 250 <= mask.ids[-1] <= 255 and len(mask.ids) > 0.75 * 255
    return bool(full and (mask.parts > 1).sum() >= 5)


def _void_id(masks: Masks) -> LabelFault | None:
    number = _most([mask.outlier for _, mask in masks if len(mask.ids) > 1])
    if number is None:
        return None
    those = [(i, mask) for i, mask in masks if mask.outlier == number]
    return _fault(
        "void_id",
        those,
        f"{_of(those)} in which the id {number} lies around or between objects: void, no object",
        f"ignore it with --ignore-id {number}",
    )


def _class_maps(masks: Masks) -> LabelFault | None:
    """The same few ids again and again, most of them in several places."""
    several = [(i, mask) for i, mask in masks if (mask.parts > 1).mean() >= 0.5]
    if 2 * len(several) < max(2, len(masks)):
        return None
    ids = np.concatenate([mask.ids for _, mask in masks])
    parts = np.concatenate([mask.parts for _, mask in masks])
    unique = np.unique(ids)
    again = len(masks) == 1 or 2 * len(unique) <= len(ids)
    if len(unique) > CLASSES or not again or (parts > 1).mean() < 0.5 or parts.sum() < 6:
        return None
    return _fault(
        "class_maps",
        masks,
        f"{_of(masks)} with the same few ids ({len(unique)}), {parts.mean():.0f} parts each: "
        "class maps, not instances",
        "export instances; where no two touch, number the parts and give classes.csv",
    )
