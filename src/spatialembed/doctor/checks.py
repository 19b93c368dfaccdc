"""All that the doctor looks for: a table with a row for each finding, and one loop over it.

A measure looks at the survey and returns what it has ``Seen``: cases, and words for the title.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import Any, NamedTuple

import numpy as np

from spatialembed.doctor.findings import Finding, Grade
from spatialembed.doctor.near_duplicates import Duplicate
from spatialembed.doctor.objects import ODD, Objects
from spatialembed.doctor.probe import ImageFacts
from spatialembed.doctor.recommend import SMALL_PX, Advice
from spatialembed.doctor.survey import Survey
from spatialembed.types import UNIT

FEW_IMAGES, FEW_OBJECTS = 10, 20
SATURATED = 0.05
"""Share of values at the largest of their type from which on it is a finding."""
DRIFT = 1.5
"""Ratio of median diameters of training and validation objects from which on it is a finding."""
BARE = 0.4
"""Share of a side along which no object lies, from which on a mask may be half finished."""
RARE = 0.01
"""Share of the most frequent class below which a class is rare."""
MASK_ENDINGS = (
    "_mask", "_masks", "_label", "_labels", "_cp_masks", "_seg", "_gt", "-mask", "-label",
    "_segmentation", "_instances", "_annotation",
)  # fmt: skip
"""Endings that other tools append to the name of a mask."""


class Count(int):
    """A number that ``format`` gives its noun: f"{Count(2):image}" is "2 images"."""

    def __format__(self, noun: str) -> str:
        return f"{int(self)} {noun}{'s' * (self != 1)}" if noun else str(int(self))


@dataclass(frozen=True)
class Seen:
    """What a measure found; nothing where the count is 0."""

    cases: Sequence[str] = ()
    count: int | None = None  # None: as many as there are cases
    of: int = 0  # the whole that the count is a share of
    words: Mapping[str, Any] = field(default_factory=dict)  # for title and remedy
    grade: Grade | None = None  # None: that of the table


Measure = Callable[[Survey], Seen]


class ObjectTest(NamedTuple):
    """A measure of objects: flags (K,) of those that count, and a word more about them."""

    flags: Callable[[Objects, Advice], np.ndarray]
    detail: Callable[[Objects, np.ndarray], str] = lambda objects, which: ""


class Check(NamedTuple):
    """A row of the table; title and remedy are formatted with n, share, a (advice), s (survey)."""

    code: str
    grade: Grade
    measure: Measure | ObjectTest
    title: str
    remedy: str
    warn_from: float = math.inf  # share from which on a note is a warning


def findings(survey: Survey, advice: Advice | None) -> Iterator[Finding]:
    """All findings, in the order of the table; advice None: there is no object."""
    yield from _refused(survey)
    for code, grade, measure, title, remedy, warn_from in CHECKS:
        if isinstance(measure, ObjectTest):
            seen = _objects(survey, advice, measure) if advice else Seen()
        else:
            seen = measure(survey)
        n = Count(len(seen.cases) if seen.count is None else seen.count)
        if not n:
            continue
        share = n / max(1, seen.of)
        words = {"n": n, "share": share, "s": survey, "a": advice, **seen.words}
        own = seen.grade or ("warning" if share >= warn_from else grade)
        yield Finding(
            own, code, n, title.format(**words), remedy.format(**words), tuple(seen.cases)
        )


# ---------------------------------------------------------------- what readers refuse

FAULTS = {
    "empty_file": "{:file} of zero bytes",
    "truncated": "{:file} cut short or damaged",
    "not_an_image": "{:file} not an image, whatever the name",
    "size_mismatch": "{:mask} of another size than the image",
    "oriented_image": "{:file} that viewers turn (EXIF), which the mask does not know",
    "label_scheme": "{:mask} whose ids seem to hold the class too",
    "binary_mask": "{:mask} with one id in several parts: foreground, not instances",
    "several_masks": "{:mask} of several pages",
    "colour_labels": "{:mask} of colours instead of ids",
    "label_format": "{:mask} in a format that does not keep ids",
    "label_values": "{:mask} with values that are not ids",
    "bad_channels": "{:file} of neither one nor three channels",
    "non_finite": "{:file} with NaN or infinite pixels",
    "duplicate_name": "{:file} whose name another one has too",
    "bad_table": "{:table} with wrong entries or columns",
}
"""The title for a code of the readers; others are given by name."""


def _refused(survey: Survey) -> Iterator[Finding]:
    """Faults of the readers by code, and masks that hold no instances."""
    by_code = defaultdict(list)
    for fault in survey.faults:
        by_code[fault.code].append(fault)
    for code, faults in by_code.items():
        title = FAULTS.get(code, f"{{:file}} that cannot be used ({code.replace('_', ' ')})")
        cases = tuple(survey.short(fault.message) for fault in faults)
        n = Count(len(faults))
        yield Finding("error", code, n, title.format(n), faults[0].remedy, cases)
    for kind in survey.label_faults:
        names = tuple(survey.labelled[i][0].name for i in kind.masks)
        mild = survey.reading.plain_ids or kind.certainty == "doubtful"
        grade: Grade = "warning" if mild else "error"
        yield Finding(grade, kind.code, len(names), kind.message, kind.remedy, names)


# ---------------------------------------------------------------- measures: files


def _missing(survey: Survey) -> Seen:
    """Files without partner; only a warning where training will be told to leave them out."""
    images, masks = survey.images_alone, survey.masks_alone
    remedy = "add them, or leave these out with --allow-missing"
    if survey.reading.allow_missing:
        remedy = "left out, by --allow-missing"
    elif ending := _ending(survey):
        remedy = f"drop {ending!r} from the names of the masks: image and mask share a name"
    return Seen(
        [f"no mask for {survey.short(path)}" for path in images]
        + [f"no image for {survey.short(path)}" for path in masks],
        words={"images": Count(len(images)), "masks": Count(len(masks)), "remedy": remedy},
        grade="warning" if survey.reading.allow_missing else None,
    )


def _ending(survey: Survey) -> str | None:
    """The ending of mask names that keeps most of them from their images, if there is one."""
    images = {path.stem for path in survey.images_alone}
    hits = Counter(
        ending
        for path in survey.masks_alone
        for ending in MASK_ENDINGS
        if path.stem.endswith(ending) and path.stem.removesuffix(ending) in images
    )
    return hits.most_common(1)[0][0] if hits else None


def _no_validation(survey: Survey) -> Seen:
    return Seen(count=int(not survey.has_validation), words={"parts": ", ".join(survey.splits)})


def _images_between(low: int, high: int) -> Measure:
    """Too few images of a flat data set or, from two on, of any that can be validated on."""

    def measure(survey: Survey) -> Seen:
        images = len(survey.pairs)
        counts = survey.has_validation and (low > 1 or survey.splits == ("",))
        return Seen(count=images if counts and low <= images < high else 0)

    return measure


def _no_objects(survey: Survey) -> Seen:
    parts = [part for part in survey.splits if part != "test"]
    empty = [part for part in parts if not len(survey.all("area", part))]
    where = " and ".join(empty)
    return Seen(count=len(empty), words={"where": f" in {where}" if where else ""})


def _parts_differ(survey: Survey) -> Seen:
    diameters = {part: survey.all("diameter", part) for part in ("train", "val")}
    medians = {part: float(np.median(values)) for part, values in diameters.items() if len(values)}
    differ = len(medians) == 2 and max(medians.values()) > DRIFT * min(medians.values())
    told = ", ".join(f"{value:.0f} px in {part}" for part, value in medians.items())
    return Seen(count=int(differ), words={"told": told})


def _read_with_warning(survey: Survey) -> Seen:
    return Seen([survey.short(note) for pair in survey.pairs for note in pair.warnings])


def _images(words: Callable[[ImageFacts], str]) -> Measure:
    """Images about which there is a word to say."""

    def measure(survey: Survey) -> Seen:
        told = ((pair.name, words(pair.image)) for pair in survey.pairs if pair.image is not None)
        return Seen([f"{name}: {word}" for name, word in told if word])

    return measure


def _mixed_kinds(survey: Survey) -> Seen:
    images = [pair.image for pair in survey.pairs if pair.image is not None]
    kinds = Counter(f"{i.dtype}, {Count(i.channels):channel}" for i in images)
    cases = [f"{name}: {Count(count):image}" for name, count in kinds.most_common()]
    return Seen(cases if len(cases) > 1 else ())


def _channels(survey: Survey) -> Seen:
    """Contrast of the objects in each channel, where none was chosen."""
    if (seen := survey.channels) is None:
        return Seen()
    most, clear = seen.contrast[seen.best], seen.clear
    name = f"channel {seen.best + 1} {seen.names[seen.best]}".strip()
    how = f"most in {name}, from {most:.0%} of the background"
    remedy = (
        f"train and predict with --channel {quote(str(seen.channel))}, as recommended.yaml does"
    )
    words = {
        "channels": len(seen.names),
        "how": how if clear else "in none",
        "remedy": remedy if clear else "choose one with --channel; max takes all together",
    }
    return Seen(seen.lines(), seen.images, words=words)


def _copies(test: Callable[[Survey, Duplicate], bool]) -> Measure:
    """Images that are copies of an earlier one: of three copies two are counted."""

    def measure(survey: Survey) -> Seen:
        cases = []
        for copy in (d for d in survey.near_duplicates if test(survey, d)):
            how = f"nearly the same ({copy.correlation:.3f})"
            how = how if copy.kind == "nearly" else "the same pixels"
            cases.append(f"{survey.pairs[copy.a].name} = {survey.pairs[copy.b].name}: {how}")
        flat = survey.splits == ("",)
        parting = ", or a split puts them into training and validation" * flat
        return Seen(cases, words={"parting": parting}, grade="warning" if flat else None)

    return measure


def _across(survey: Survey, copy: Duplicate) -> bool:
    return survey.pairs[copy.a].split != survey.pairs[copy.b].split


def _disagree(survey: Survey, copy: Duplicate) -> bool:
    a, b = survey.pairs[copy.a].mask, survey.pairs[copy.b].mask
    if copy.kind == "nearly" or a is None or b is None:
        return False
    return not np.array_equal(np.sort(a.objects.area), np.sort(b.objects.area))


def _group_columns(survey: Survey) -> Seen:
    columns = survey.group_columns() if survey.splits == ("",) else ()
    words = {"columns": ", ".join(columns), "first": columns[0] if columns else ""}
    return Seen(count=len(columns), words=words)


def _group_across(survey: Survey) -> Seen:
    """Values of a column of index.csv that stand in several parts; of the likeliest such column."""
    for column in survey.group_columns() if survey.splits != ("",) else ():
        parts = defaultdict(set)
        for pair in survey.pairs:
            parts[pair.row[column]].add(pair.split)
        cases = [f"{value}: {', '.join(sorted(p))}" for value, p in parts.items() if len(p) > 1]
        if cases and len(parts) > len(survey.splits):
            return Seen(sorted(cases), words={"column": column})
    return Seen()


# ---------------------------------------------------------------- measures: masks and objects


def _no_such_id(survey: Survey) -> Seen:
    number, masks = survey.reading.ignore_id, survey.masks().values()
    absent = number is not None and masks and not any(mask.void for mask in masks)
    return Seen(count=int(bool(absent)), words={"id": number})


def _empty_masks(survey: Survey) -> Seen:
    masks = survey.masks()
    empty = [name for name, mask in masks.items() if not len(mask.objects)]
    return Seen(empty if len(empty) < len(masks) else (), of=len(masks), words={"of": len(masks)})


def _unlabelled_margin(survey: Survey) -> Seen:
    bare = [(m.unlabelled_margin, n) for n, m in survey.masks().items()]
    bare = sorted((share, name) for share, name in bare if share > BARE)[::-1]
    return Seen([f"{name}: {share:.0%} of a side" for share, name in bare])


def _background(survey: Survey) -> Seen:
    """Objects over half of an image, to all its borders, in masks that are not refused for it."""
    refused = {survey.labelled[i][0].name for fault in survey.label_faults
               if fault.code == "background_id" for i in fault.masks}  # fmt: skip
    cases = []
    for name, mask in survey.masks().items():
        height, width = mask.size_hw
        over = (mask.objects.box == (0, 0, width, height)).all(axis=1)
        over &= mask.objects.area > 0.5 * height * width
        cases += [f"{name}: id {i}" for i in mask.objects.ids[over] if name not in refused]
    return Seen(cases)


def _objects(survey: Survey, advice: Advice, test: ObjectTest) -> Seen:
    """Objects with a flag, by image, the image with the most first."""
    cases = []
    for name, mask in survey.masks().items():
        which = np.flatnonzero(test.flags(mask.objects, advice))
        if len(which):
            ids = ", ".join(map(str, mask.objects.ids[which[:8]])) + ", ..." * (len(which) > 8)
            more = test.detail(mask.objects, which)
            cases.append((len(which), f"{name}: {len(which)} (id {ids}){more}"))
    cases.sort(key=lambda case: -case[0])
    total = len(survey.all("area"))
    return Seen([case for _, case in cases], sum(count for count, _ in cases), total)


def _worst_split(objects: Objects, which: np.ndarray) -> str:
    away = objects.outside[which] / objects.area[which]
    worst = which[np.argmax(away)]
    parts = f"id {objects.ids[worst]} in {objects.parts[worst]} parts"
    return f"; worst: {parts}, {away.max():.0%} of it outside the largest"


# ---------------------------------------------------------------- measures: classes


def _ids_and_table(wrong: Callable[[set[int], set[int]], set[int]]) -> Measure:
    """Ids that only the mask has, or only classes.csv (as crops leave them)."""

    def measure(survey: Survey) -> Seen:
        cases = []
        for pair, mask in survey.measured:
            if pair.classes is not None:
                ids = wrong(set(mask.objects.ids.tolist()), set(pair.classes))
                cases += [f"{pair.name}: id {number}" for number in sorted(ids)]
        return Seen(cases)

    return measure


def _class_mismatch(survey: Survey) -> Seen:
    names = {part: set(own) for part, own in survey.class_names.items()}
    return Seen(sorted(names["train"] ^ names["val"]) if {"train", "val"} <= set(names) else ())


def _rare_classes(survey: Survey) -> Seen:
    counts = Counter({name: objects for name, (objects, _) in survey.classes_area().items()})
    enough = max(FEW_OBJECTS, RARE * max(counts.values(), default=0))
    rare = [f"{name}: {Count(n):object}" for name, n in counts.most_common()[::-1] if n < enough]
    return Seen(rare if len(counts) > 1 else (), words={"of": len(counts)})


# ---------------------------------------------------------------- the table

IN_TABLE = "let classes.csv name every id of every mask once"
CHECKS = (
    Check("missing_pairs", "error", _missing,
          "{images:image} without mask, {masks:mask} without image", "{remedy}"),
    Check("no_validation", "error", _no_validation,
          "only {parts} in it: training needs train/ and val/",
          "make both, or put all into one images/ and masks/, which training splits"),
    Check("too_few_images", "error", _images_between(1, 2),
          "{n:image} with a mask: none is left for validation", "add images"),
    Check("few_images", "warning", _images_between(2, FEW_IMAGES),
          "{n:image}: so few that a figure on them means little", "add images"),
    Check("no_objects", "error", _no_objects,
          "no object{where}: there is nothing to learn", "do the masks hold ids above 0?"),
    Check("parts_differ", "warning", _parts_differ,
          "objects of training and validation differ in size: median diameter {told}",
          "mix them before splitting them"),
    # Images
    Check("mixed_kinds", "warning", _mixed_kinds,
          "{n} kinds of pixels are mixed",
          "convert them alike if they show one thing; percentiles level out the ranges"),
    Check("several_channels", "warning", _channels,
          "images of {channels} channels: the objects stand out {how}", "{remedy}"),
    Check("constant_image", "warning",
          _images(lambda i: f"every value is {i.low:g}" if i.low == i.high else ""),
          "{n:image} of one value only", "leave them out"),
    Check("saturated", "note",
          _images(lambda i: f"{i.saturated:.0%}" if i.saturated > SATURATED and i.low < i.high
                  else ""),
          "{n:image} with over 5 % of the values at the limit of their type",
          "over-exposed objects have no structure left; expose shorter if you can"),
    Check("read_warning", "note", _read_with_warning,
          "{n:file} read with a warning", "see each"),
    Check("twins_across_splits", "warning", _copies(_across),
          "{n:image} of one part again in another: the figure flatters", "keep each in one part"),
    Check("twins", "note", _copies(lambda survey, copy: not _across(survey, copy)),
          "{n:image} stored twice, or nearly so", "keep one{parting}"),
    Check("twins_disagree", "warning", _copies(_disagree),
          "{n:image} stored twice with different masks",
          "one of the masks is wrong: keep the right one"),
    Check("group_columns", "note", _group_columns,
          "index.csv may show which images belong together: {columns}",
          "hold out whole groups with --group-by {first}, if it does"),
    Check("group_across_splits", "warning", _group_across,
          "{n:value} of {column} in more than one part",
          "if images of one {column} are alike, keep each {column} in one part"),
    # Masks
    Check("no_such_id", "error", _no_such_id,
          "no mask has the id {id}, which is to be ignored", "leave out --ignore-id"),
    Check("empty_masks", "note", _empty_masks,
          "{n} of {of} masks without an object",
          "right for pictures of background only; else they were left unlabelled", 0.2),
    Check("bare_strip", "note", _unlabelled_margin,
          f"{{n:mask}} with many objects and an unlabelled margin over {BARE:.0%} of a side",
          "was all of it labelled?"),
    Check("background_object", "warning", _background,
          "{n:object} over half of the image, to all its borders: background?",
          "background is 0 in a mask"),
    # Objects
    Check("split_objects", "warning", ObjectTest(lambda o, _: o.parts > 1, _worst_split),
          "{n:object} ({share:.1%}) in several parts; each counts as one object",
          "right for occluded ones; else two objects share an id, or a stray pixel has it"),
    Check("hollow_objects", "note", ObjectTest(lambda objects, _: objects.ring_shaped),
          "{n:object} ({share:.1%}) without a pixel at their own centroid: ring-shaped or bent",
          "center: medoid puts the centre on the object; learnable lets it move", ODD),
    Check("concentric_objects", "note", ObjectTest(lambda objects, _: objects.concentric),
          "{n:object} ({share:.1%}) whose centroid lies within half a radius of another one's "
          "({s.concentric_pairs} pairs): a centroid cannot separate them",
          "center: medoid, or learnable", ODD),
    Check("specks", "warning", ObjectTest(lambda objects, a: objects.area <= a.speck_px),
          "{n:object} of at most {a.speck_px:.0f} px: specks?",
          "erase them from the masks, if the median object has {a.median_px:.0f} px for a reason"),
    Check("below_stride", "note", ObjectTest(lambda objects, a: objects.area < a.poor_px),
          f"{{n:object}} ({{share:.1%}}) narrower than {SMALL_PX // 2} px at scale {{a.scale:g}}",
          "they are detected poorly; raise --scale, at a cost that grows with its square", 0.01),
    Check("beyond_reach", "warning", ObjectTest(lambda objects, a: objects.reach * a.scale > UNIT),
          f"{{n:object}} whose pixels lie over {UNIT} px from their centre at scale {{a.scale:g}}: "
          "an offset does not reach that far",
          "lower --scale"),
    Check("below_min_pixels", "note", ObjectTest(lambda objects, a: objects.area <= a.min_pixels),
          "{n:object} of at most the recommended min_pixels, {a.min_pixels} px",
          "they will be dropped as specks; lower min_pixels if they matter"),
    Check("wider_than_crop", "note",
          ObjectTest(lambda objects, a: objects.extent * a.scale > a.crop),
          "{n:object} wider than the recommended crop, {a.crop} px",
          "they are seen in pieces only; raise stage1.crop if they are many"),
    # Classes
    Check("ids_without_class", "error", _ids_and_table(lambda mask, table: mask - table),
          "{n:id} in a mask without a class in classes.csv", IN_TABLE),
    Check("ids_without_pixels", "error", _ids_and_table(lambda mask, table: table - mask),
          "{n:id} with a class in classes.csv, but without a pixel", IN_TABLE),
    Check("class_mismatch", "error", _class_mismatch,
          "{n} classes in training or in validation only",
          "use one classes.csv, beside train/ and val/, with the same names"),
    Check("rare_classes", "warning", _rare_classes,
          "{n} of {of} classes are rare",
          "add images of them, or join classes; foreground_weight weighs them up"),
)  # fmt: skip
"""Codes are stable."""
