"""Findings about files, images and splits; ``object_checks`` has those about objects."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from spatialembed.doctor.findings import Finding
from spatialembed.doctor.near_duplicates import Twin
from spatialembed.doctor.probe import ImageFacts, Pair
from spatialembed.doctor.survey import Survey

FEW_IMAGES = 10
SATURATED = 0.05
"""Share of values at the largest of their type from which on it is said."""
DRIFT = 1.5
"""Ratio of median diameters of training and validation objects from which on it is said."""
MASK_ENDINGS = (
    "_mask", "_masks", "_label", "_labels", "_cp_masks", "_seg", "_gt", "-mask", "-label",
    "_segmentation", "_instances", "_annotation",
)  # fmt: skip
"""What other tools append to the name of a mask."""


def file_findings(survey: Survey) -> Iterator[Finding]:
    """Of files, images and splits."""
    yield from _faults(survey)
    yield from _missing(survey)
    yield from _parts(survey)
    yield from _images(survey)
    yield from _twins(survey)
    yield from _groups(survey)


def said(count: int, one: str, many: str = "") -> str:
    """ "1 image", "2 images"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def _short(survey: Survey, text: object) -> str:
    return str(text).replace(f"{survey.root}/", "")


# ---------------------------------------------------------------- files

_FAULTS = {
    "empty_file": "{} of zero bytes",
    "truncated": "{} cut short or damaged",
    "not_an_image": "{} that are no images, whatever their names",
    "size_mismatch": "{} of another size than the image",
    "oriented_image": "{} that viewers turn (EXIF), which the mask does not know",
    "label_scheme": "{} whose ids seem to hold the class too",
    "binary_mask": "{} with one id in several parts: foreground, not instances",
    "colour_labels": "{} of colours instead of ids",
    "label_format": "{} in a format that does not keep ids",
    "label_values": "{} with values that are not ids",
    "bad_channels": "{} of neither one nor three channels",
    "non_finite": "{} with NaN or infinite pixels",
    "duplicate_name": "{} whose name another one has too",
    "bad_table": "{} with wrong entries or columns",
}
"""What is said of a code; others are given by name."""
_OF_MASKS = {
    "size_mismatch",
    "label_scheme",
    "binary_mask",
    "colour_labels",
    "label_format",
    "label_values",
}


def _faults(survey: Survey) -> Iterator[Finding]:
    """What the readers refuse, by code."""
    by_code = defaultdict(list)
    for fault in survey.faults:
        by_code[fault.code].append(fault)
    for code, faults in by_code.items():
        what = "table" if code == "bad_table" else "mask" if code in _OF_MASKS else "file"
        text = _FAULTS.get(code, f"{{}} that cannot be used ({code.replace('_', ' ')})")
        yield Finding(
            "error",
            code,
            len(faults),
            text.format(said(len(faults), what)),
            faults[0].remedy,
            tuple(_short(survey, fault.message) for fault in faults),
        )


def _missing(survey: Survey) -> Iterator[Finding]:
    """Files without partner; only a warning where training will be told to leave them out."""
    allow_missing = survey.reading.allow_missing
    images, masks = survey.images_alone, survey.masks_alone
    if not images and not masks:
        return
    remedy = "left out, as --allow-missing says"
    if not allow_missing:
        remedy = "add them, or leave these out with --allow-missing"
        if ending := _ending(survey):
            remedy = f"drop {ending!r} from the names of the masks: image and mask share a name"
    yield Finding(
        "warning" if allow_missing else "error",
        "missing_pairs",
        len(images) + len(masks),
        f"{said(len(images), 'image')} without mask, {said(len(masks), 'mask')} without image",
        remedy,
        tuple(f"no mask for {_short(survey, path)}" for path in images)
        + tuple(f"no image for {_short(survey, path)}" for path in masks),
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


def _parts(survey: Survey) -> Iterator[Finding]:
    """Training and validation: are there both, and are they of one kind?"""
    sizes = Counter(pair.split for pair in survey.pairs)
    if survey.splits != ("",) and not {"train", "val"} <= set(survey.splits):
        text = f"only {', '.join(survey.splits)} in it: training needs train/ and val/"
        remedy = "make both, or put all into one images/ and masks/, which training splits"
        yield Finding("error", "no_validation", 1, text, remedy)
    elif survey.splits == ("",) and len(survey.pairs) < 2:
        text = f"{said(len(survey.pairs), 'image')} with a mask: none is left for validation"
        yield Finding("error", "too_few_images", len(survey.pairs), text, "add images")
    elif len(survey.pairs) < FEW_IMAGES:
        text = f"{len(survey.pairs)} images are few: the figure on them will tell little"
        yield Finding("warning", "few_images", len(survey.pairs), text, "add images")
    for part in survey.splits:
        mine = [len(p.mask.objects) for p in survey.measured if p.split == part and p.mask]
        if part != "test" and not sum(mine):
            where = f" in {part}" if part else ""
            text = f"no object{where} ({sizes[part]} images): there is nothing to learn"
            yield Finding("error", "no_objects", 1, text, "do the masks hold ids above 0?")
    medians = {
        part: float(np.median(np.concatenate(values)))
        for part in ("train", "val")
        if (values := [p.mask.objects.diameter for p in survey.measured
                       if p.split == part and p.mask and len(p.mask.objects)])
    }  # fmt: skip
    if len(medians) == 2:
        low, high = sorted(medians.values())
        if high > DRIFT * low:
            text = "objects of training and validation differ in size: median diameter " + (
                ", ".join(f"{value:.0f} px in {part}" for part, value in medians.items())
            )
            yield Finding("warning", "parts_differ", 1, text, "mix them before parting them")


# ---------------------------------------------------------------- images


def _images(survey: Survey) -> Iterator[Finding]:
    seen = [(pair, pair.image) for pair in survey.pairs if pair.image is not None]

    def those(test: Callable[[ImageFacts], bool], words: Callable[[ImageFacts], str]) -> list[str]:
        return [f"{pair.name}: {words(image)}" for pair, image in seen if test(image)]

    yield from _kinds(seen)
    if cases := those(lambda i: i.low == i.high, lambda i: f"every value is {i.low:g}"):
        text = f"{said(len(cases), 'image')} of one value only"
        yield Finding("warning", "constant_image", len(cases), text, "leave them out", tuple(cases))
    if cases := those(
        lambda i: i.dtype == "uint16" and i.low < i.high < 4096, lambda i: f"up to {i.high:g}"
    ):
        text = f"{said(len(cases), 'image')} of 16 bits that use 12 of them or fewer"
        remedy = "nothing to do: percentiles (the default normalization) stretch them"
        yield Finding("note", "unused_range", len(cases), text, remedy, tuple(cases))
    if cases := those(
        lambda i: i.saturated > SATURATED and i.low < i.high, lambda i: f"{i.saturated:.0%}"
    ):
        text = f"{said(len(cases), 'image')} with over 5 % of the values at the limit of their type"
        remedy = "over-exposed objects have no structure left; expose shorter if you can"
        yield Finding("note", "saturated", len(cases), text, remedy, tuple(cases))
    if cases := those(lambda i: i.channels == 3 and i.grey, lambda i: "three equal channels"):
        text = f"{said(len(cases), 'image')} in colour that are grey"
        yield Finding("note", "grey_as_colour", len(cases), text, "", tuple(cases))
    notes = [_short(survey, note) for pair in survey.pairs for note in pair.warnings]
    if notes:
        text = f"{said(len(notes), 'file')} read with a warning"
        yield Finding("note", "read_warning", len(notes), text, "see each", tuple(notes))


def _kinds(seen: Sequence[tuple[Pair, ImageFacts]]) -> Iterator[Finding]:
    """Sizes and types that are mixed."""
    kinds = Counter(f"{image.dtype}, {said(image.channels, 'channel')}" for _, image in seen)
    sizes = Counter(f"{image.size_hw[1]}x{image.size_hw[0]}" for _, image in seen)
    if len(kinds) > 1:
        text = f"{len(kinds)} kinds of pixels are mixed"
        remedy = "convert them alike if they show one thing; percentiles level out the ranges"
        cases = tuple(f"{kind}: {said(count, 'image')}" for kind, count in kinds.most_common())
        yield Finding("warning", "mixed_kinds", len(kinds), text, remedy, cases)
    if len(sizes) > 1:
        cases = tuple(f"{size}: {said(count, 'image')}" for size, count in sizes.most_common())
        text = f"{len(sizes)} sizes of images"
        yield Finding("note", "mixed_sizes", len(sizes), text, "nothing to do", cases)


# ---------------------------------------------------------------- the same image twice


def _twins(survey: Survey) -> Iterator[Finding]:
    """Twins across splits, within one, and with unlike masks."""
    kinds = {"bytes": "the same bytes", "pixels": "the same pixels", "nearly": "nearly the same"}
    across: list[str] = []
    within: list[str] = []
    unlike: list[str] = []
    for twin in survey.twins:
        a, b = survey.pairs[twin.a], survey.pairs[twin.b]
        how = kinds[twin.kind] + (f" ({twin.correlation:.3f})" if twin.kind == "nearly" else "")
        (across if a.split != b.split else within).append(f"{a.name} = {b.name}: {how}")
        if _masks_differ(twin, a, b):
            unlike.append(f"{a.name} = {b.name}")
    if across:
        text = f"{said(len(across), 'image')} of one part again in another: the figure flatters"
        remedy = "keep each in one part"
        yield Finding("warning", "twins_across_splits", len(across), text, remedy, tuple(across))
    if within:
        flat = survey.splits == ("",)
        text = f"{said(len(within), 'image')} stored twice, or nearly so"
        remedy = "keep one" + (", or a split parts them into training and validation" * flat)
        yield Finding(
            "warning" if flat else "note", "twins", len(within), text, remedy, tuple(within)
        )
    if unlike:
        text = f"{said(len(unlike), 'image')} stored twice with different masks"
        remedy = "one of the masks is wrong: keep the right one"
        yield Finding("warning", "twins_disagree", len(unlike), text, remedy, tuple(unlike))


def _masks_differ(twin: Twin, a: Pair, b: Pair) -> bool:
    if twin.kind == "nearly" or a.mask is None or b.mask is None:
        return False
    return not np.array_equal(np.sort(a.mask.objects.area), np.sort(b.mask.objects.area))


def _groups(survey: Survey) -> Iterator[Finding]:
    """Columns of index.csv that tell which images belong together."""
    columns = survey.group_columns()
    if not columns:
        return
    if survey.splits == ("",):
        text = f"index.csv may tell which images belong together: {', '.join(columns)}"
        remedy = f"hold out whole groups with --group-by {columns[0]}, if it does"
        yield Finding("note", "group_columns", len(columns), text, remedy)
        return
    for column in columns:
        parts = defaultdict(set)
        for pair in survey.pairs:
            parts[pair.row[column]].add(pair.split)
        cases = [f"{value}: {', '.join(sorted(p))}" for value, p in parts.items() if len(p) > 1]
        if cases and len(parts) > len(survey.splits):
            text = f"{said(len(cases), 'value')} of {column} in more than one part"
            remedy = f"if images of one {column} are alike, keep each {column} in one part"
            yield Finding(
                "warning", "group_across_splits", len(cases), text, remedy, tuple(sorted(cases))
            )
