"""Settings of a training that suit the data, each with the measure that it comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml

from spatialembed.doctor.objects import ODD
from spatialembed.doctor.survey import Survey
from spatialembed.method.networks.erfnet import STRIDE
from spatialembed.training.options import TrainOptions
from spatialembed.types import UNIT

SMALL_PX = 2 * STRIDE
"""Diameter that small objects (the 5th percentile) shall have before the network."""
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
    """What a training is recommended to be."""

    scale: float
    crop: int
    min_pixels: int
    steps: int
    epochs: int
    settings: tuple[Setting, ...]
    median_px: float  # area of an object

    @property
    def cell_px(self) -> float:
        """Area of a disc as wide as a cell of the network, in px of the image."""
        return math.pi * (STRIDE / self.scale / 2) ** 2

    @property
    def speck_px(self) -> float:
        """Objects of so few pixels are thought slips of the pen."""
        return min(SPECK_PX, self.median_px / 50)

    def starting_from(self, init: Sequence[Setting]) -> Advice:
        """The same, with a model to start from."""
        return replace(self, settings=(*init, *self.settings))

    def yaml(self, head: str) -> str:
        """The settings as YAML that ``spatialembed train --config`` takes, reasons as comments."""
        lines, section = [f"# {_line(line)}".rstrip() for line in head.splitlines()], ""
        rows = []
        for setting in self.settings:
            group, _, name = setting.key.rpartition(".")
            if group != section:
                rows.append((f"{group}:", ""))
                section = group
            rows.append((f"{'  ' * bool(group)}{name}: {_plain(setting.value)}", setting.reason))
        width = max(len(left) for left, _ in rows)
        lines += [f"{left:<{width}}  # {_line(why)}" if why else left for left, why in rows]
        return "\n".join(lines) + "\n"


def recommend(survey: Survey) -> Advice:
    """Settings for a data set with at least one object."""
    scale = _scale(survey)
    crop = _crop(survey, scale.value)
    min_pixels = int(np.percentile(survey.all("area"), 1) / 2)  # as training takes it by itself
    batch = max(2, round(PIXELS_A_STEP / crop.value**2))
    crops, per_image = _crops(survey, scale.value, crop.value, batch)
    steps_an_epoch = max(1, crops // batch)
    epochs = _rounded(min(400, max(10, STEPS / steps_an_epoch)))
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
            f"{epochs * steps_an_epoch} steps; the published training took 37500: more is better",
        ),
    ]
    if per_image != 1:
        few = crops == STEPS_AN_EPOCH * batch
        why = "one an image would be few steps" if few else "an image is larger than one crop"
        settings.append(Setting("stage1.crops", crops, f"an epoch: {why}"))
    return Advice(
        scale.value,
        crop.value,
        min_pixels,
        epochs * steps_an_epoch,
        epochs,
        tuple(settings),
        float(np.median(survey.all("area"))),
    )


def _rounded(epochs: float) -> int:
    """To tens, so that the last epoch is one of those that are validated."""
    return max(10, 10 * round(epochs / 10))


def _of_files(survey: Survey) -> Iterator[Setting]:
    alone = len(survey.images_alone) + len(survey.masks_alone)
    if survey.reading.allow_missing and alone:
        yield Setting("allow_missing", True, f"{alone} files without partner are left out")
    if survey.reading.split_components:
        yield Setting("split_components", True, "masks of one id are taken apart, as it was asked")
    if survey.reading.plain_ids:
        yield Setting("plain_ids", True, "ids are taken as mere numbers, as it was asked")
    if survey.reading.ignore_id is not None:
        yield Setting("ignore_id", survey.reading.ignore_id, "void, as it was asked")
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
        f"5 % of the objects are under {small:.0f} px wide, "
        f"{small * scale:.0f} px so; a cell of the network is {STRIDE}"
    )
    if scale == within[-1] and within[-1] < min(wanted, SCALES[-1]):
        reason = f"an offset of the largest object ({largest:.0f} px) must stay below {UNIT} px"
    return Setting("scale", scale, reason)


def _crop(survey: Survey, scale: float) -> Setting:
    """Three times as wide as large objects, no larger than the images."""
    extent = float(np.percentile(survey.all("extent"), 95)) * scale
    sides = [max(pair.mask.size_hw) for pair in survey.measured if pair.mask]
    room = float(np.median(sides)) * scale
    low, high = CROP_RANGE
    wanted = min(max(3 * extent, low), room, high)
    crop = max(low, CROP_STEP * math.ceil(wanted / CROP_STEP - 0.25))
    limit = ", the size of the images" if room < 3 * extent else ""
    reason = f"95 % of the objects are under {extent:.0f} px wide at this scale{limit}"
    return Setting("stage1.crop", crop, reason)


def _crops(survey: Survey, scale: float, crop: int, batch: int) -> tuple[int, float]:
    """Crops an epoch, and how many that is an image."""
    pairs = [pair for pair in survey.measured if pair.split in ("", "train")] or survey.measured
    images = len(pairs) if survey.splits != ("",) else max(1, round(0.8 * len(pairs)))
    area = float(np.mean([math.prod(pair.mask.size_hw) for pair in pairs if pair.mask]))
    windows = area * scale**2 / crop**2
    each = min(8, max(1, round(windows / 4)))
    crops = max(images * each, STEPS_AN_EPOCH * batch)
    return crops, crops / images


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
    total = sum(math.prod(pair.mask.size_hw) for pair in survey.measured if pair.mask)
    weights = [round(1 / math.log(1.02 + pixels / total), 1) for _, pixels in classes.values()]
    names = ", ".join(classes)
    yield Setting("foreground_weight", weights, f"1 / ln(1.02 + share of the pixels): {names}")


def _line(text: str) -> str:
    """Text that stays within a comment, whatever a class is called."""
    return "".join(c if c.isprintable() else " " for c in text)


def _plain(value: Any) -> str:
    """A value as YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(yaml.safe_dump(value)).splitlines()[0]
    if isinstance(value, str):
        plain = value.isidentifier() and yaml.safe_load(value) == value  # neither yes nor null
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)
