"""Look at a data set before training: what it is, what is wrong with it, and how to train on it.

survey -> advice -> findings -> trial -> index.html, report.json, recommended.yaml, quick.yaml
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from spatialembed.data.open import data_name
from spatialembed.doctor.checks import findings
from spatialembed.doctor.findings import Finding, graded, tally
from spatialembed.doctor.page import SurveyPage
from spatialembed.doctor.plots import covered, pictures, plots
from spatialembed.doctor.probe import Reading
from spatialembed.doctor.recommend import Advice, recommend
from spatialembed.doctor.survey import Survey, survey
from spatialembed.doctor.trial import Timing, nearest_model, quick, timed
from spatialembed.errors import INPUT
from spatialembed.files import atomic_write

READING = Reading()
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a data set."""

    survey: Survey
    advice: Advice | None  # None: no object to go by
    findings: tuple[Finding, ...]  # errors first
    timing: Timing | None = None  # None: not measured

    @property
    def exit_code(self) -> int:
        """0, or 3 where training refuses the data."""
        return INPUT if any(finding.grade == "error" for finding in self.findings) else 0

    @property
    def tally(self) -> str:
        """How many findings of each grade."""
        return tally(self.findings)

    @property
    def quick(self) -> Advice | None:
        """The advice, cut to some minutes."""
        return quick(self.advice, self.timing) if self.advice else None


def examine(data: str | Path, reading: Reading = READING, *, progress: bool = True) -> Diagnosis:
    """Examine a data set as ``doctor`` does, without a trial and without writing anything."""
    found = survey(data, reading, progress=progress)
    advice = recommend(found) if len(found.all("area")) else None
    return Diagnosis(found, advice, tuple(graded(list(findings(found, advice)))))


def doctor(
    data: str | Path,
    out: str | Path,
    reading: Reading = READING,
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
        SpatialEmbedError: ``not_found``, ``no_layout``, ``no_images``, ``disk_full`` (exit 5).
    """
    result = examine(data, reading, progress=progress)
    if result.advice is not None:
        advice = result.advice.starting_from(nearest_model(result.survey, result.advice.scale))
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
        command = (
            f"spatialembed train --config {quote(str(out / file))} --data {quote(str(found.root))}"
        )
        if advice is None:
            (out / file).unlink(missing_ok=True)  # of an earlier look
            continue
        lines = [head + command]
        if result.timing is not None:
            commands.append(f"# {result.timing.words(advice)}")
            lines.append(f"Takes {result.timing.words(advice)}.")
        if result.exit_code:
            lines.append("Training refuses the data as it is: correct the errors first.")
        commands.append(command)
        settings.append(advice.yaml("\n".join(lines)))
        _save(out / file, settings[-1])
    page = SurveyPage(
        title=name,
        subtitle=found.layout,
        facts=_facts(found),
        table=_parts(found),
        findings=result.findings,
        charts=list(plots(found, result.advice)),
        pictures=list(pictures(found)),
        settings=settings[0] if settings else "",
        command="\n".join(commands),
    )
    _save(out / "report.json", json.dumps(_report(result), indent=1, allow_nan=False) + "\n")
    _save(out / "index.html", page.html())


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
        spread = f"{middle:.0f} ({found.counts.min()} to {found.counts.max()})"
        facts += [("objects", f"{found.counts.sum():,}"), ("objects an image, median", spread)]
    if len(found.all("area")):
        low, middle, high = np.percentile(found.all("diameter"), (5, 50, 95))
        facts += [
            ("diameter, median", f"{middle:.0f} px (90 %: {low:.0f} to {high:.0f})"),
            ("area that objects cover", f"{covered(found).mean():.1%}"),
            (
                "touch another",
                f"{found.all('touching').mean():.0%} ({found.touching_pairs:,} pairs)",
            ),
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
        masks = [pair.mask for pair in found.measured if pair.split == part and pair.mask]
        counts = [len(mask.objects) for mask in masks]
        if not sum(counts):
            rows.append([part, str(len(masks)), "0", "-", "-", "-"])
            continue
        diameters = np.concatenate([mask.objects.diameter for mask in masks])
        area = np.mean([m.objects.area.sum() / math.prod(m.size_hw) for m in masks])
        rows.append(
            [part, str(len(masks)), f"{sum(counts):,}", f"{np.median(counts):.0f}",
             f"{np.median(diameters):.1f}", f"{area:.1%}"]
        )  # fmt: skip
    return rows


def _report(result: Diagnosis) -> dict[str, Any]:
    """Everything as JSON types."""
    found, advice = result.survey, result.advice
    measures = {name: _percentiles(found.all(name)) for name in ("area", "diameter", "extent")}
    return {
        "data": str(found.root),
        "layout": found.layout,
        "splits": [part for part in found.splits if part],
        "trainable": result.exit_code == 0,
        "images": len(found.pairs),
        "objects": int(found.counts.sum()),
        "touching": _total(found, "touching"),
        "touching_pairs": found.touching_pairs,
        "split": int((found.all("parts") > 1).sum()),
        "hollow": _total(found, "ring_shaped"),
        "concentric": _total(found, "concentric"),
        "concentric_pairs": found.concentric_pairs,
        "classes": {
            name: {"objects": objects, "pixels": pixels}
            for name, (objects, pixels) in found.classes_area().items()
        },
        "percentiles": {
            **measures,
            "objects_an_image": _percentiles(found.counts),
            "covered": _percentiles(covered(found)),
        },
        "findings": [finding.to_dict() for finding in result.findings],
        "recommended": {s.key: s.value for s in advice.settings} if advice else None,
        "reasons": {s.key: s.reason for s in advice.settings} if advice else None,
        "minutes": {
            name: round(result.timing.minutes(plan), 1)
            for name, plan in (("recommended", advice), ("quick", result.quick))
            if result.timing and plan
        },
        "twins": [
            {"kind": t.kind, "a": found.pairs[t.a].name, "b": found.pairs[t.b].name,
             "correlation": round(t.correlation, 4)} for t in found.near_duplicates
        ],
        "per_image": _per_image(found),
    }  # fmt: skip


def _total(found: Survey, flag: str) -> int:
    return int(found.all(flag).sum())


def _percentiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    numbers = np.percentile(values, PERCENTILES).round(4).tolist()
    return {str(p): number for p, number in zip(PERCENTILES, numbers, strict=True)}


def _per_image(found: Survey) -> Sequence[dict[str, Any]]:
    rows = []
    for pair in found.pairs:
        row: dict[str, Any] = {"name": pair.name, "faults": [fault.code for fault in pair.faults]}
        if pair.image:
            row |= {
                "size_hw": list(pair.image.size_hw),
                "dtype": pair.image.dtype,
                "channels": pair.image.channels,
                "low": pair.image.low,
                "high": pair.image.high,
            }
        if pair.mask:
            objects = pair.mask.objects
            row |= {"objects": len(objects), "largest_id": int(objects.ids.max(initial=0))}
        rows.append(row)
    return rows
