"""Look at a data set before training: what it is, what is wrong with it, and how to train on it.

survey -> advice -> findings -> trial -> index.html, report.json, recommended.yaml, quick.yaml
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from spatialembed.data.open import data_name
from spatialembed.doctor.checks import findings
from spatialembed.doctor.findings import Finding, graded, tally
from spatialembed.doctor.plots import pictures, plots
from spatialembed.doctor.probe import Pair
from spatialembed.doctor.recommend import Advice, recommend
from spatialembed.doctor.survey import Survey, check_layout, survey
from spatialembed.doctor.trial import Timing, nearest_model, quick, timed
from spatialembed.errors import INPUT
from spatialembed.files import atomic_write, check_writable
from spatialembed.options import DataOptions
from spatialembed.pictures.html import render

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
LISTED = 500
"""Cases of a finding that the page lists; report.json has all."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a data set."""

    survey: Survey
    advice: Advice | None  # None: no object to go by
    timing: Timing | None = None  # None: not measured

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Errors first."""
        return tuple(graded(list(findings(self.survey, self.advice))))

    @property
    def exit_code(self) -> int:
        """0, or 3 where an error is among the findings."""
        return INPUT if any(finding.grade == "error" for finding in self.findings) else 0

    @property
    def tally(self) -> str:
        """How many findings of each grade."""
        return tally(self.findings)

    @property
    def quick(self) -> Advice | None:
        """The advice, cut to some minutes."""
        return quick(self.advice, self.timing) if self.advice else None


def examine(
    data: str | Path, reading: DataOptions = DataOptions(), *, progress: bool = True
) -> Diagnosis:
    """Examine a data set as ``doctor`` does, without a trial and without writing anything."""
    found = survey(data, reading, progress=progress)
    return Diagnosis(found, recommend(found) if len(found.all("area")) else None)


def doctor(
    data: str | Path,
    out: str | Path,
    reading: DataOptions = DataOptions(),
    *,
    timing: bool = True,
    progress: bool = True,
) -> Diagnosis:
    """Examine a data set, choose a model to start from, time some steps, and write the results:
    ``index.html``, ``report.json``, ``recommended.yaml`` and ``quick.yaml``.

    A broken file is a finding; the others are read all the same.

    Args:
        data: A folder, as ``open_folder`` takes it.
        out: Folder of the four files.
        reading: How training will be told to read the data.
        timing: Whether to time training steps, 20 seconds or so.
        progress: Whether to draw a bar on stderr.

    Returns:
        The findings, errors first, and the advice.

    Raises:
        SpatialEmbedError: ``not_found``, ``no_layout``, ``no_images``; ``not_writable`` (exit 2);
            ``disk_full`` (exit 5).
    """
    check_layout(Path(data))  # before there is a folder, which a mistyped path would leave
    check_writable(Path(out))
    result = examine(data, reading, progress=progress)
    if (advice := result.advice) is not None:
        advice = advice.starting_from(nearest_model(result.survey, advice.scale))
        result = replace(result, advice=advice)
        if timing and not result.exit_code:
            result = replace(result, timing=timed(result.survey, advice))
    _write(result, Path(out), data_name(data))
    return result


def _write(result: Diagnosis, out: Path, name: str) -> None:
    found = result.survey
    head = f"For {name}: {len(found.pairs)} images, {len(found.all('area'))} objects.\n"
    settings, commands = [], []
    for file, advice in (("recommended.yaml", result.advice), ("quick.yaml", result.quick)):
        config, data = quote(str(out / file)), quote(str(found.root))
        command = f"spatialembed train --config {config} --data {data}"
        if advice is None:
            (out / file).unlink(missing_ok=True)  # of an earlier look
            continue
        lines = [head + command]
        if result.timing is not None:
            commands.append(f"# {result.timing.words(advice)}")
            lines.append(f"Takes {result.timing.words(advice)}.")
        if result.exit_code:
            lines.append("Correct the errors of the data first.")
        commands.append(command)
        settings.append(advice.yaml("\n".join(lines)))
        _save(out / file, settings[-1])
    page = {
        "title": name,
        "subtitle": found.layout,
        "facts": _facts(found),
        "table": _parts(found),
        "findings": result.findings,
        "tally": result.tally,
        "listed": LISTED,
        "charts": list(plots(found, result.advice)),
        "pictures": list(pictures(found)),
        "settings": settings[0] if settings else "",
        "command": "\n".join(commands),
    }
    _save(out / "report.json", json.dumps(_report(result), indent=1, allow_nan=False) + "\n")
    _save(out / "index.html", render("doctor.html", page))


def _save(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        # Names of files may hold bytes that are no text.
        temporary.write_text(text, "utf-8", errors="backslashreplace")


# ---------------------------------------------------------------- in numbers


def _facts(found: Survey) -> list[tuple[str, str]]:
    """Names and values for the head of the page."""
    images = [pair.image for pair in found.pairs if pair.image]
    kinds = Counter(f"{image.dtype}, {'grey' if image.grey else 'colour'}" for image in images)
    facts = [
        ("images with masks", f"{len(found.pairs):,}"),
        ("pixels", ", ".join(kind for kind, _ in kinds.most_common(3)) or "-"),
    ]
    if len(found.counts):
        middle = np.median(found.counts)
        around = f"{middle:.0f} ({found.counts.min()} to {found.counts.max()})"
        facts += [("objects", f"{found.counts.sum():,}"), ("objects an image, median", around)]
    if len(found.all("area")):
        low, middle, high = np.percentile(found.all("diameter"), (5, 50, 95))
        touching = f"{found.all('touching').mean():.0%} ({found.touching_pairs:,} pairs)"
        facts += [
            ("diameter, median", f"{middle:.0f} px (90 %: {low:.0f} to {high:.0f})"),
            ("area that objects cover", f"{found.covered.mean():.1%}"),
            ("touch another", touching),
        ]
    if classes := found.classes_area():
        facts.append(("classes", ", ".join(classes) if len(classes) < 6 else str(len(classes))))
    return facts


def _parts(found: Survey) -> list[list[str]]:
    """A row for each part of the data set; none for a flat one."""
    if found.splits == ("",):
        return []
    rows = [["", "images", "objects", "objects an image", "median diameter, px", "area covered"]]
    for part in found.splits:
        masks, diameters = found.masks(part).values(), found.all("diameter", part)
        row = [part, str(len(masks)), f"{len(diameters):,}", "-", "-", "-"]
        if len(diameters):
            row[3] = f"{np.median([len(mask.objects) for mask in masks]):.0f}"
            row[4] = f"{np.median(diameters):.1f}"
            row[5] = f"{np.mean([mask.covered for mask in masks]):.1%}"
        rows.append(row)
    return rows


def _report(result: Diagnosis) -> dict[str, Any]:
    """Everything as JSON types."""
    found, advice = result.survey, result.advice
    measures = {name: found.all(name) for name in ("area", "diameter", "extent")}
    measures |= {"objects_an_image": found.counts, "covered": found.covered}
    plans = {"recommended": advice, "quick": result.quick}
    return {
        "data": str(found.root),
        "layout": found.layout,
        "splits": [part for part in found.splits if part],
        "trainable": result.exit_code == 0,
        "images": len(found.pairs),
        "objects": int(found.counts.sum()),
        "touching": int(found.all("touching").sum()),
        "touching_pairs": found.touching_pairs,
        "split": int((found.all("parts") > 1).sum()),
        "hollow": int(found.all("ring_shaped").sum()),
        "concentric": int(found.all("concentric").sum()),
        "concentric_pairs": found.concentric_pairs,
        "classes": {
            name: {"objects": objects, "pixels": pixels}
            for name, (objects, pixels) in found.classes_area().items()
        },
        "percentiles": {name: _percentiles(values) for name, values in measures.items()},
        "findings": [finding.to_dict() for finding in result.findings],
        "recommended": {s.key: s.value for s in advice.settings} if advice else None,
        "reasons": {s.key: s.reason for s in advice.settings} if advice else None,
        "minutes": {
            name: round(result.timing.minutes(plan), 1)
            for name, plan in plans.items()
            if result.timing and plan
        },
        "twins": [
            {"kind": t.kind, "a": found.pairs[t.a].name, "b": found.pairs[t.b].name,
             "correlation": round(t.correlation, 4)} for t in found.near_duplicates
        ],
        "per_image": [_image(pair) for pair in found.pairs],
    }  # fmt: skip


def _percentiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    numbers = np.percentile(values, PERCENTILES).round(4).tolist()
    return {str(p): number for p, number in zip(PERCENTILES, numbers, strict=True)}


def _image(pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"name": pair.name, "faults": [fault.code for fault in pair.faults]}
    if image := pair.image:
        names = ("size_hw", "dtype", "channels", "low", "high")
        row |= {name: getattr(image, name) for name in names}
    if pair.mask:
        row |= {"objects": len(pair.mask.objects), "largest_id": pair.mask.largest_id}
    return row
