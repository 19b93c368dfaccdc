"""Masks that hold no instances although every value is an integer: class maps, borders that are
void, soft edges, a background with an id, ids that wrapped at 255.

    facts = [label_facts(ids) for ids in masks]     # one mask at a time
    for fault in label_faults(facts):               # over the whole set, or a part of it
        warn(f"{fault.message} -> {fault.remedy}")

One mask proves little (two cells may share an id once), so that most faults need half of the set.
``check_labels`` refuses the certain ones before training or scoring, and warns of the others.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from skimage import measure

from spatialembed.data.dataset import FileDataset
from spatialembed.data.folder import FolderDataset, Pair, instances_of, read_ids
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.method.labels import relabel
from spatialembed.options import DataOptions

logger = logging.getLogger("spatialembed")

MAJOR = 0.2
"""A part counts from this share of the largest part of its id on: slivers and specks do not."""
SOFT = 0.1
"""Share of edge pixels between the values of both sides from which on edges are interpolated.
The largest of 661 masks that people drew has 0.02; bilinear resizing leaves 0.3 and more."""
CLASSES = 40
"""More ids than this are no class map."""
FEW_CLASSES = 5
"""Up to so many ids in all masks, each in several places, are classes for certain."""
SHADES, SHADE = 3, 2
"""Ids of at most so many shades of grey, 128 and 255 say, are classes; how exact they must be."""
SEVERAL = 4
"""Masks at least, of which the same ids in each say something."""
NUMBERED = "export instances; where no two touch, number the parts and give classes.csv"
Certainty = Literal["certain", "likely", "doubtful"]
LOOKED_AT = 32
"""Masks that are looked at, evenly over the data set: most faults are of half of them or none."""
SIDE = 1024
"""Of a larger mask its corner of this side is looked at, px."""


@dataclass(frozen=True)
class LabelFacts:
    """Facts about one mask that ``label_faults`` goes by."""

    ids: np.ndarray  # (K,) int64 as stored, ascending
    parts: np.ndarray  # (K,) int64, connected parts of at least MAJOR of the largest one
    covered: float  # share of the pixels that have an id
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
    certainty: Certainty  # certain: most masks hold no instances, or one of the background


def label_facts(ids: np.ndarray) -> LabelFacts:
    """Measure one mask.

    ids: (H, W) integer ids as they are stored (not renumbered), 0 background; pixels to be ignored
    set to 0.

    Raises SpatialEmbedError ``bad_labels``.
    """
    dense, present = relabel(ids)
    parts = _major_parts(dense, len(present))
    ground, outlier = _ground(dense, present), _outlier(dense, present, parts)
    soft, covered = _soft(ids.astype(np.int64)), float((dense > 0).mean()) if dense.size else 0.0
    outlier = None if outlier == ground else outlier
    return LabelFacts(present, parts, covered, soft, ground, outlier)


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


def label_faults(facts: Iterable[LabelFacts]) -> list[LabelFault]:
    """Reasons why masks hold no instances, of a data set or a sample of it; [] where none is found.

    Masks without an object count for nothing.
    """
    masks = {i: mask for i, mask in enumerate(facts) if len(mask.ids)}
    soft = [i for i, mask in masks.items() if mask.soft > SOFT]
    if soft:  # their ids mean nothing
        words = "with soft edges: values between those of both sides, all taken for ids"
        remedy = "resize masks by nearest neighbour; cut soft edges at half, then number the parts"
        certainty: Certainty = "certain" if 2 * len(soft) >= len(masks) else "likely"
        return [_fault("soft_labels", soft, words, remedy, certainty)]
    return [*_shades(masks)] or [*_odd_ids(masks), *_wrapped(masks), *_class_maps(masks)]


def _fault(
    code: str, masks: Iterable[int], words: str, remedy: str, certainty: Certainty = "likely"
) -> LabelFault:
    those = tuple(masks)
    if len(those) == 1:
        return LabelFault(code, f"1 mask {words}", remedy, those, "likely")
    return LabelFault(code, f"{len(those)} masks {words}", remedy, those, certainty)


def _shades(masks: Mapping[int, LabelFacts]) -> Iterator[LabelFault]:
    """Two or three ids at even distances up to 255, each in most masks."""
    found = Counter(number for mask in masks.values() for number in mask.ids.tolist())
    levels = sorted(found)
    if not 2 <= len(levels) <= SHADES or len(masks) < 2:
        return
    even = 255 * np.arange(1, len(levels) + 1) / len(levels)
    if np.abs(levels - even).max() <= SHADE and 2 * min(found.values()) >= len(masks):
        words = f"with the ids {', '.join(map(str, levels))}, shades of grey: class maps, "
        yield _fault("class_maps", masks, words + "not instances", NUMBERED, "certain")


def _odd_ids(masks: Mapping[int, LabelFacts]) -> Iterator[LabelFault]:
    """An id that is no object in at least half of the masks."""
    number, those = _most({i: mask.ground for i, mask in masks.items()})
    if those:
        words = f"whose background has the id {number}: it counts as an object"
        yield _fault("background_id", those, words, "set the background to 0", "certain")
    number, those = _most({i: mask.outlier for i, mask in masks.items() if len(mask.ids) > 1})
    if those:
        words = f"in which the id {number} lies around or between objects: void, no object"
        yield _fault("void_id", those, words, f"ignore it with --ignore-id {number}")


def _most(odd: Mapping[int, int | None]) -> tuple[int | None, list[int]]:
    """The id of at least half of the masks, and the masks; [] where there is none."""
    number, hits = Counter(odd.values()).most_common(1)[0] if odd else (None, 0)
    if number is None or 2 * hits < len(odd):
        return None, []
    return number, [i for i, own in odd.items() if own == number]


def _wrapped(masks: Mapping[int, LabelFacts]) -> Iterator[LabelFault]:
    """Nearly all of 1..255 are there, and some of them twice, since 256 + k became k."""
    full = {i: m for i, m in masks.items() if 250 <= m.ids[-1] <= 255 and len(m.ids) > 0.75 * 255}
    if wrapped := [i for i, mask in full.items() if (mask.parts > 1).sum() >= 5]:
        words = "whose ids end at 255 and lie in several places: more objects than 8 bits"
        yield _fault("ids_wrapped", wrapped, words, "export masks with 16 or 32 bits")


def _class_maps(masks: Mapping[int, LabelFacts]) -> Iterator[LabelFault]:
    """The same few ids again and again: most of them in several places, or over most pixels."""
    if not masks:
        return
    several = [i for i, mask in masks.items() if (mask.parts > 1).mean() >= 0.5]
    ids = np.concatenate([mask.ids for mask in masks.values()])
    parts = np.concatenate([mask.parts for mask in masks.values()])
    unique, counts = np.unique(ids, return_counts=True)
    again = len(masks) == 1 or 2 * len(unique) <= len(ids)
    apart = (parts > 1).mean() >= 0.5 and parts.sum() >= 6
    if 2 * len(several) >= max(2, len(masks)) and len(unique) <= CLASSES and again and apart:
        words = f"with the same few ids ({len(unique)}), {parts.mean():.0f} parts each: class maps"
        certainty: Certainty = "certain" if len(unique) <= FEW_CLASSES else "likely"
        yield _fault("class_maps", masks, f"{words}, not instances", NUMBERED, certainty)
    elif 2 <= len(unique) <= FEW_CLASSES and len(masks) >= SEVERAL:
        covered = np.mean([mask.covered for mask in masks.values()])
        if counts.min() >= 0.9 * len(masks) and covered >= 0.5:
            words = (
                f"with the same {len(unique)} ids, over {covered:.0%} of the pixels: class maps?"
            )
            yield _fault("class_maps", masks, words, NUMBERED, "doubtful")


def _instances(pair: Pair, reading: DataOptions) -> np.ndarray:
    """Ids (H, W) of a mask as training takes them."""
    ids, _ = read_ids(pair.mask, reading)
    return ids if pair.classes is not None else instances_of(pair.mask, ids, reading)


def check_labels(*parts: FileDataset, refuse: bool = True) -> None:
    """Hold the masks of a folder, before training or scoring, to be instances.

    Certain faults are refused, but for ``plain_ids``; others are logged as warnings. Layouts other
    than folders of masks say themselves what is an instance. A mask that cannot be read is left to
    whoever needs it.

    parts: of one data set. refuse: otherwise certain faults are warnings too.

    Raises SpatialEmbedError: ``class_maps``, ``soft_labels``, ``background_id``; ``no_such_id``
    (exit 2) where no mask has the id that is to be ignored.
    """
    folders = [part for part in parts if isinstance(part, FolderDataset) and len(part)]
    if not folders:
        return
    reading, pairs = folders[0].reading, [pair for part in folders for pair in part.pairs]
    seen = pairs[:: -(-len(pairs) // LOOKED_AT)]
    try:
        facts = [label_facts(_instances(pair, reading)[:SIDE, :SIDE]) for pair in seen]
        known = reading.ignore_id is None or any(
            read_ids(pair.mask, reading)[1].any() for pair in pairs
        )
    except SpatialEmbedError:
        return
    if not known:
        what = f"no mask has the id {reading.ignore_id}, which is to be ignored"
        remedy = "leave out --ignore-id, or give it the id of void pixels"
        raise SpatialEmbedError("no_such_id", what, remedy, USAGE)
    for fault in label_faults(facts):
        first = seen[fault.masks[0]].name
        what = f"{fault.message} (of {len(seen)} looked at, the first: {first})"
        if refuse and fault.certainty == "certain" and not reading.plain_ids:
            remedy = f"{fault.remedy}; or take ids as they are with --plain-ids"
            raise SpatialEmbedError(fault.code, what, remedy)
        logger.warning("%s: %s; %s", fault.code, what, fault.remedy)
