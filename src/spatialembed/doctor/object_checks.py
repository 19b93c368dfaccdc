"""What a survey says about ids, objects and classes, held against what the method can do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from spatialembed.doctor.findings import Finding, Grade
from spatialembed.doctor.objects import ODD, Objects
from spatialembed.doctor.recommend import Advice
from spatialembed.doctor.survey import Survey
from spatialembed.method.networks.erfnet import STRIDE
from spatialembed.types import UNIT

SPECK_PX = 16
"""Objects of so few pixels, and a fiftieth of the median, are thought slips of the pen."""
BARE = 0.4
"""Share of a side along which no object lies, from which on a mask may be half finished."""
RARE = 0.01
"""Share of the most frequent class below which a class is rare."""
FEW_OBJECTS = 20


def object_findings(survey: Survey, advice: Advice | None) -> Iterator[Finding]:
    """Of ids, objects and classes; of sizes where there is an advice, so any object."""
    yield from _ids(survey)
    yield from _masks(survey)
    if advice is not None:
        yield from _shapes(survey)
        yield from _sizes(survey, advice)
    yield from _classes(survey)


def _flagged(
    survey: Survey,
    flags: Callable[[Objects], np.ndarray],
    words: Callable[[Objects, np.ndarray], str] = lambda objects, which: "",
) -> tuple[int, tuple[str, ...]]:
    """How many objects are flagged, and each image that has some, the most first."""
    cases = []
    for pair in survey.measured:
        assert pair.mask is not None
        which = np.flatnonzero(flags(pair.mask.objects))
        if len(which):
            ids = ", ".join(str(number) for number in pair.mask.objects.ids[which[:8]])
            more = ", ..." if len(which) > 8 else ""
            detail = words(pair.mask.objects, which)
            case = f"{pair.name}: {len(which)} (id {ids}{more}){'; ' * bool(detail)}{detail}"
            cases.append((len(which), case))
    cases.sort(key=lambda item: -item[0])
    return sum(count for count, _ in cases), tuple(case for _, case in cases)


def _objects(count: int) -> str:
    return "1 object" if count == 1 else f"{count} objects"


def _masks_said(count: int) -> str:
    return "1 mask" if count == 1 else f"{count} masks"


# ---------------------------------------------------------------- ids and masks


def _ids(survey: Survey) -> Iterator[Finding]:
    masks = [(pair.name, pair.mask) for pair in survey.measured if pair.mask]
    gaps = [
        f"{name}: {len(mask.objects)} ids up to {mask.objects.ids.max()}"
        for name, mask in masks
        if len(mask.objects) and mask.objects.ids.max() != len(mask.objects)
    ]
    if gaps:
        largest = max(int(mask.objects.ids.max(initial=0)) for _, mask in masks)
        text = f"{_masks_said(len(gaps))} whose ids have gaps; the largest id is {largest}"
        yield Finding("note", "id_gaps", len(gaps), text, "nothing to do: renumbered", tuple(gaps))
    full = [
        f"{name}: {len(mask.objects)} ids in {mask.bits} bits, "
        f"{_split_count(mask.objects)} of them in several parts"
        for name, mask in masks
        if mask.bits in (8, 16) and len(mask.objects) > 0.75 * (1 << mask.bits)
    ]
    if full:
        text = (
            f"{_masks_said(len(full))} with nearly every id that the type has: ids may have wrapped"
        )
        remedy = "export them with 16 or 32 bits; ids that lie in several parts are two objects"
        yield Finding("warning", "ids_near_limit", len(full), text, remedy, tuple(full))
    if _are_class_maps(survey):
        text = "few ids, most of them in several parts, in every mask: these look like class maps"
        remedy = "export instances; where no two touch, take each part as one and give classes.csv"
        yield Finding("warning", "class_maps", len(masks), text, remedy)


def _split_count(objects: Objects) -> int:
    return int((objects.parts > 1).sum())


def _are_class_maps(survey: Survey) -> bool:
    """The same few ids again and again, at least half of them in several parts."""
    ids, parts = survey.all("ids"), survey.all("parts")
    masks = [pair for pair in survey.measured if pair.mask and len(pair.mask.objects)]
    several = len(masks) > 1 and len(np.unique(ids)) <= min(40, len(ids) // 2)
    binary = len(np.unique(ids)) == 1  # said already
    return bool(several and not binary and (parts > 1).mean() >= 0.5)


def _masks(survey: Survey) -> Iterator[Finding]:
    masks = [(pair.name, pair.mask) for pair in survey.measured if pair.mask]
    empty = [name for name, mask in masks if not len(mask.objects)]
    if empty and len(empty) < len(masks):
        grade: Grade = "warning" if len(empty) > 0.2 * len(masks) else "note"
        text = f"{len(empty)} of {len(masks)} masks without an object"
        remedy = "right for pictures of background only; else they were left unlabelled"
        yield Finding(grade, "empty_masks", len(empty), text, remedy, tuple(empty))
    bare = [(mask.bare, name) for name, mask in masks if mask.bare > BARE]
    if bare:
        text = (
            f"{_masks_said(len(bare))} with many objects and a bare strip over {BARE:.0%} of a side"
        )
        cases = tuple(f"{name}: {share:.0%} of a side" for share, name in sorted(bare)[::-1])
        yield Finding("note", "bare_strip", len(bare), text, "was all of it labelled?", cases)
    grounds = []
    for name, mask in masks:
        height, width = mask.size_hw
        over = (mask.objects.box == (0, 0, width, height)).all(axis=1)
        over &= mask.objects.area > 0.5 * height * width
        grounds += [f"{name}: id {number}" for number in mask.objects.ids[over]]
    if grounds:
        text = f"{_objects(len(grounds))} over half of the image, to all its borders: background?"
        remedy = "background is 0 in a mask"
        yield Finding("warning", "background_object", len(grounds), text, remedy, tuple(grounds))


# ---------------------------------------------------------------- shapes


def _shapes(survey: Survey) -> Iterator[Finding]:
    total = len(survey.all("area"))

    def share(count: int) -> str:
        return f"{_objects(count)} ({count / total:.1%})"

    count, cases = _flagged(survey, lambda objects: objects.parts > 1, _worst_split)
    if count:
        text = f"{share(count)} in several parts; each counts as one object"
        remedy = "right for occluded ones; else two objects share an id, or a stray pixel has it"
        yield Finding("warning", "split_objects", count, text, remedy, cases)
    count, cases = _flagged(survey, lambda objects: objects.hollow)
    if count:
        text = f"{share(count)} without a pixel at their own centroid: rings, bent ones"
        remedy = "center: medoid puts the centre on the object; learnable lets it move"
        grade: Grade = "warning" if count >= ODD * total else "note"
        yield Finding(grade, "hollow_objects", count, text, remedy, cases)
    count, cases = _flagged(survey, lambda objects: objects.concentric)
    if count:
        pairs = sum(pair.mask.objects.concentric_pairs for pair in survey.measured if pair.mask)
        text = (
            f"{share(count)} whose centroid lies within half a radius of another one's "
            f"({pairs} pairs): a centroid cannot tell them apart"
        )
        remedy = "center: medoid, or learnable"
        grade = "warning" if count >= ODD * total else "note"
        yield Finding(grade, "concentric_objects", count, text, remedy, cases)
    count, cases = _flagged(survey, lambda objects: objects.touching)
    if count:
        pairs = sum(pair.mask.objects.touching_pairs for pair in survey.measured if pair.mask)
        text = f"{share(count)} touch another one ({pairs} pairs)"
        remedy = "nothing to do: this is what the method is for"
        yield Finding("note", "touching_objects", count, text, remedy, cases)
    count, cases = _flagged(survey, lambda objects: objects.at_border)
    if count:
        text = f"{share(count)} cut by the border of the image"
        yield Finding("note", "cut_objects", count, text, "nothing to do", cases)


def _worst_split(objects: Objects, which: np.ndarray) -> str:
    worst = which[np.argmax(objects.outside[which] / objects.area[which])]
    away = objects.outside[worst] / objects.area[worst]
    return (
        f"worst: id {objects.ids[worst]} in {objects.parts[worst]} parts, "
        f"{away:.0%} of it outside the largest"
    )


# ---------------------------------------------------------------- sizes


def _sizes(survey: Survey, advice: Advice) -> Iterator[Finding]:
    areas = survey.all("area")
    median = float(np.median(areas))
    count, cases = _flagged(survey, lambda objects: objects.area <= min(SPECK_PX, median / 50))
    if count:
        text = f"{_objects(count)} of at most {min(SPECK_PX, median / 50):.0f} px: specks?"
        remedy = f"erase them from the masks, if the median object has {median:.0f} px for a reason"
        yield Finding("warning", "specks", count, text, remedy, cases)
    cell = math.pi * (STRIDE / advice.scale / 2) ** 2
    count, cases = _flagged(survey, lambda objects: objects.area < cell)
    if count:
        share = count / len(areas)
        text = (
            f"{_objects(count)} ({share:.1%}) narrower than a cell of the network "
            f"({STRIDE} px) at scale {advice.scale:g}"
        )
        grade: Grade = "warning" if share > 0.01 else "note"
        remedy = "they will be found badly; raise --scale, at a cost that grows with its square"
        yield Finding(grade, "below_stride", count, text, remedy, cases)
    count, cases = _flagged(survey, lambda objects: objects.reach * advice.scale > UNIT)
    if count:
        text = (
            f"{_objects(count)} whose pixels lie over {UNIT} px from their centre at scale "
            f"{advice.scale:g}: an offset does not reach that far"
        )
        yield Finding("warning", "beyond_reach", count, text, "lower --scale", cases)
    count, cases = _flagged(survey, lambda objects: objects.area <= advice.min_pixels)
    if count:
        text = f"{_objects(count)} of at most the recommended min_pixels, {advice.min_pixels} px"
        remedy = "they will be taken for specks; lower min_pixels if they matter"
        yield Finding("note", "below_min_pixels", count, text, remedy, cases)
    count, cases = _flagged(survey, lambda objects: objects.extent * advice.scale > advice.crop)
    if count:
        text = f"{_objects(count)} wider than the recommended crop, {advice.crop} px"
        remedy = "they are seen in pieces only; raise stage1.crop if they are many"
        yield Finding("note", "wider_than_crop", count, text, remedy, cases)


# ---------------------------------------------------------------- classes


def _classes(survey: Survey) -> Iterator[Finding]:
    if not survey.class_names:
        return
    yield from _ids_and_table(survey)
    names = {part: set(own) for part, own in survey.class_names.items()}
    if "train" in names and "val" in names and names["train"] != names["val"]:
        odd = sorted(names["train"] ^ names["val"])
        text = f"{len(odd)} classes in training or in validation only"
        remedy = "use one classes.csv, beside train/ and val/, with the same names"
        yield Finding("error", "class_mismatch", len(odd), text, remedy, tuple(odd))
    counts = {name: objects for name, (objects, _) in survey.classes_area().items()}
    most = max(counts.values(), default=0)
    rare = [
        f"{name}: {_objects(count)}"
        for name, count in sorted(counts.items(), key=lambda item: item[1])
        if count < max(FEW_OBJECTS, RARE * most)
    ]
    if rare and len(counts) > 1:
        text = f"{len(rare)} of {len(counts)} classes are rare"
        remedy = "add images of them, or join classes; foreground_weight weighs them up"
        yield Finding("warning", "rare_classes", len(rare), text, remedy, tuple(rare))


def _ids_and_table(survey: Survey) -> Iterator[Finding]:
    """Ids of a mask without a class, and of the table without a pixel (as crops leave them)."""
    unnamed: list[tuple[str, int]] = []
    unseen: list[tuple[str, int]] = []
    for pair in survey.measured:
        if pair.mask is None or pair.classes is None:
            continue
        present = set(pair.mask.objects.ids.tolist())
        for ids, cases in (
            (present - pair.classes.keys(), unnamed),
            (pair.classes.keys() - present, unseen),
        ):
            cases += [(pair.name, number) for number in sorted(ids)]
    for cases, code, words in (
        (unnamed, "ids_without_class", "in a mask without a class in classes.csv"),
        (unseen, "ids_without_pixels", "with a class in classes.csv, but without a pixel"),
    ):
        if cases:
            text = f"{len(cases)} ids {words}"
            remedy = "let classes.csv name every id of every mask once"
            names = tuple(f"{name}: id {number}" for name, number in cases)
            yield Finding("error", code, len(cases), text, remedy, names)
