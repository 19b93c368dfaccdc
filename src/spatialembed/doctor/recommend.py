"""Settings of a training that suit the data, each with the measure that it comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import yaml

from spatialembed.doctor.objects import ODD
from spatialembed.doctor.survey import Survey
from spatialembed.method.model import parts_of
from spatialembed.options import DataOptions
from spatialembed.training.options import TrainOptions
from spatialembed.types import UNIT, Network

SMALL_PX = 16
"""Diameter that small objects (the 5th percentile) shall have before the network. The bundled
models have 11 to 31, in networks with cells of 8 and of 16 px."""
LARGE_PX = 64
"""Diameter of small objects from which on the images can be shrunk."""
SPECK_PX = 16
"""Largest speck, and at most a fiftieth of the median object."""
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
CROP_STEP, CROP_RANGE = 64, (128, 1024)
PIXELS_A_STEP = 8 * 256**2
"""The default: eight crops of 256."""
STEPS = 5000
"""Of a whole training."""
STEPS_AN_EPOCH = 40
"""At least, so that validation takes the smaller part of the time."""


@dataclass(frozen=True)
class Setting:
    """One line of the recommended settings."""

    key: str  # as a flag: stage1.crop
    value: Any
    reason: str


@dataclass(frozen=True)
class Advice:
    """A recommended training."""

    scale: float
    crop: int
    min_pixels: int
    steps: int
    epochs: int
    settings: tuple[Setting, ...]
    median_px: float  # area of an object
    network: Network = "erfnet"

    @property
    def stride(self) -> int:
        """Side of a cell of the network, px of its input."""
        return parts_of(self.network).stride

    @property
    def cell_px(self) -> float:
        """Area of a disc as wide as a cell of the network, in px of the image."""
        return math.pi * (self.stride / self.scale / 2) ** 2

    @property
    def poor_px(self) -> float:
        """Area of a disc half as wide as small objects shall be, in px of the image."""
        return math.pi * (SMALL_PX / 2 / self.scale / 2) ** 2

    @property
    def speck_px(self) -> float:
        """Objects of so few pixels are thought slips of the pen."""
        return min(SPECK_PX, self.median_px / 50)

    def starting_from(self, init: Sequence[Setting]) -> Advice:
        """The same with the settings of a model to start from; () for none."""
        network = next((s.value for s in init if s.key == "network"), self.network)
        taken = {s.key for s in init}
        own = (s for s in self.settings if s.key not in taken)
        return replace(self, settings=(*init, *own), network=network)

    def yaml(self, head: str) -> str:
        """The settings as YAML that ``spatialembed train --config`` takes, reasons as comments."""
        sections: dict[str, list[Setting]] = {"": []}
        for setting in self.settings:
            sections.setdefault(setting.key.rpartition(".")[0], []).append(setting)
        rows = []
        for section, settings in sections.items():
            rows += [(f"{section}:", "")] * bool(section)
            for s in settings:
                name = "  " * bool(section) + s.key.rpartition(".")[2]
                rows.append((f"{name}: {_plain(s.value)}", s.reason))
        width = max(len(left) for left, _ in rows)
        lines = [f"# {_line(line)}".rstrip() for line in head.splitlines()]
        lines += [f"{left:<{width}}  # {_line(why)}" if why else left for left, why in rows]
        return "\n".join(lines) + "\n"


def recommend(survey: Survey) -> Advice:
    """Settings for a data set with at least one object."""
    areas = survey.all("area")
    scale = _scale(survey)
    crop = _crop(survey, scale.value)
    min_pixels = int(np.percentile(areas, 1) / 2)  # as training takes it by itself
    batch = max(2, round(PIXELS_A_STEP / crop.value**2))
    images, windows = _windows(survey, scale.value, crop.value)
    by_windows = images * min(8, max(1, round(windows / 4)))
    crops = max(by_windows, STEPS_AN_EPOCH * batch)
    epochs = min(400, max(10, STEPS * batch / crops))
    epochs = max(10, 10 * round(epochs / 10))  # the last one is validated then
    steps = epochs * (crops // batch)
    settings = [
        *_of_files(survey),
        scale,
        _center(survey),
        *_weights(survey),
        Setting("min_pixels", min_pixels, "half the area that 99 % of the objects exceed"),
        crop,
        Setting("stage1.batch", batch, "about as many pixels a step as eight crops of 256"),
        Setting(
            "stage1.epochs",
            epochs,
            f"{steps} steps; the published training took 37500: more is better",
        ),
    ]
    if crops != images:
        few = "one an image would be few steps"
        why = few if crops > by_windows else "an image is larger than one crop"
        settings.append(Setting("stage1.crops", crops, f"an epoch: {why}"))
    return Advice(
        scale.value, crop.value, min_pixels, steps, epochs, tuple(settings), float(np.median(areas))
    )


def _of_files(survey: Survey) -> Iterator[Setting]:
    for option in fields(DataOptions):
        if (value := getattr(survey.reading, option.name)) != option.default:
            reason = "as the doctor was told"
            if option.name == "channel" and survey.channels is not None:
                reason = f"objects stand out most in it: {', '.join(survey.channels.lines()[:4])}"
            yield Setting(option.name, value, reason)
    columns = survey.group_columns()
    if survey.splits == ("",) and columns:
        groups = len({pair.row[columns[0]] for pair in survey.pairs})
        others = f"; other columns: {', '.join(columns[1:4])}" if columns[1:] else ""
        reason = f"holds out whole groups ({groups} in {len(survey.pairs)} images){others}"
        yield Setting("group_by", columns[0], reason)


def _scale(survey: Survey) -> Setting:
    """Magnification that brings small objects to ``SMALL_PX``, large ones within reach."""
    small = float(np.percentile(survey.all("diameter"), 5))
    largest = float(survey.all("reach").max())
    wanted = SMALL_PX / small if small < SMALL_PX else min(1.0, LARGE_PX / small)
    within = [scale for scale in SCALES if scale * largest <= UNIT] or [SCALES[0]]
    scale = min(within, key=lambda scale: abs(math.log(scale / wanted)))
    reason = (
        f"5 % of the objects are under {small:.0f} px wide, {small * scale:.0f} px so; "
        f"{SMALL_PX} to {LARGE_PX} are good"
    )
    if scale == within[-1] and within[-1] < min(wanted, SCALES[-1]):
        reason = f"an offset of the largest object ({largest:.0f} px) must stay below {UNIT} px"
    return Setting("scale", scale, reason)


def _crop(survey: Survey, scale: float) -> Setting:
    """Three times as wide as large objects, no larger than the images."""
    extent = float(np.percentile(survey.all("extent"), 95)) * scale
    sides = [max(mask.size_hw) for mask in survey.masks().values()]
    room = float(np.median(sides)) * scale
    low, high = CROP_RANGE
    wanted = min(max(3 * extent, low), room, high)
    crop = max(low, CROP_STEP * math.ceil(wanted / CROP_STEP - 0.25))
    limit = ", the size of the images" if room < 3 * extent else ""
    reason = f"95 % of the objects are under {extent:.0f} px wide at this scale{limit}"
    return Setting("stage1.crop", crop, reason)


def _windows(survey: Survey, scale: float, crop: int) -> tuple[int, float]:
    """Training images, and how many crops side by side an image is."""
    flat = survey.splits == ("",)
    masks = survey.masks(None if flat else "train") or survey.masks()
    images = max(1, round(0.8 * len(masks))) if flat else len(masks)
    area = float(np.mean([math.prod(mask.size_hw) for mask in masks.values()]))
    return images, area * scale**2 / crop**2


def _center(survey: Survey) -> Setting:
    odd = survey.all("ring_shaped").astype(bool) | survey.all("concentric").astype(bool)
    if odd.mean() >= ODD:
        reason = f"{odd.mean():.0%} of the objects are ring-shaped or around another"
        return Setting("center", "medoid", reason)
    return Setting("center", TrainOptions(data="-").center, "the better one of the published table")


def _weights(survey: Survey) -> Iterator[Setting]:
    """Weight of each class in the seed term by the ENet rule, 1 / ln(1.02 + its share)."""
    classes = survey.classes_area()
    if len(classes) < 2:
        return
    total = sum(math.prod(mask.size_hw) for mask in survey.masks().values())
    weights = [round(1 / math.log(1.02 + pixels / total), 1) for _, pixels in classes.values()]
    names = ", ".join(classes)
    yield Setting("foreground_weight", weights, f"1 / ln(1.02 + share of the pixels): {names}")


def _line(text: str) -> str:
    """Text that stays within a comment, whatever a class is called."""
    return "".join(c if c.isprintable() else " " for c in text)


def _plain(value: Any) -> str:
    """A value as YAML."""
    if isinstance(value, float):
        return str(yaml.safe_dump(value)).split()[0]
    if isinstance(value, str) and value.isidentifier() and yaml.safe_load(value) == value:
        return value  # neither yes nor null
    return json.dumps(value, ensure_ascii=False)
