"""Objects of other sizes than a model was trained on: the scale at which it sees an image.

    native   as the model says: its ``scale`` times the image
    PX       objects of that diameter are shown as large as those that it was trained on
    auto     an image is also tried at 1/2, 1/4 and 1/8 of that, as long as each is better than the
             one before; all of them where what was found first is doubtful

What is found is judged by how much of it is expected to be right: the sum over the objects of
area (expected IoU - 1/2), which pieces of an object lower and objects that were missed too. Maps
come back at the image's own pixels, whatever the scale, so results need no enlarging.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from torch import Tensor

from spatialembed.errors import USAGE, SpatialEmbedError, check
from spatialembed.inference.engine import Engine
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.test_time_augmentation import average_over_turns
from spatialembed.method.calibration import with_expected_iou
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.types import Embeddings, Instances

Diameter = float | Literal["auto", "native"]
FACTORS = (0.5, 0.25, 0.125)
"""Of the model's scale, tried in turn."""
GAIN = 1.05
"""By which a smaller scale must be better: of two alike the larger shows outlines finer."""
DOUBTFUL = 0.6
"""Mean expected IoU, by area, below which all scales are tried, not only while each is better."""
LEAST_SIDE = 64
"""px of the shorter side of an image at a scale that is tried."""
MOST_PARTS = 16
"""Denominator of a scale that follows from a diameter in px, at most."""
DIAMETERS = "diameter_px"
"""Fact of a model: percentiles 5, 50 and 95 of the diameters, px, that it was trained on."""


class Seen(NamedTuple):
    """The instances of one image, and the maps that they were found in."""

    instances: Instances
    maps: Embeddings  # (1, ., H, W)
    factor: float = 1.0  # of the model's scale, at which the network saw the image


def parse_diameter(text: str | float) -> Diameter:
    """``auto``, ``native`` or a number of px.

    Raises SpatialEmbedError ``bad_setting`` (exit 2).
    """
    if text in {"auto", "native"}:
        return text  # type: ignore[return-value]
    try:
        diameter = float(text)
    except ValueError:
        diameter = 0.0
    remedy = "give auto, native or the px that objects are wide"
    check(0 < diameter < math.inf, f"diameter is {text}", remedy)
    return diameter


def factor_for(info: ModelInfo, diameter_px: float) -> float:
    """By which the model's scale is changed so that objects of ``diameter_px`` look as trained.

    1 for all within the 5th and the 95th percentile of the training objects: 0.5 for 100 px where
    that is 50.

    Raises SpatialEmbedError ``no_diameter`` (exit 2) for a model that does not say them.
    """
    known: dict[str, Any] = info.training.get(DIAMETERS) or {}
    if not {"p5", "p50", "p95"} <= set(known):
        raise SpatialEmbedError(
            "no_diameter",
            "the model does not say which diameters it was trained on",
            "give native, or auto",
            USAGE,
        )
    if known["p5"] <= diameter_px <= known["p95"]:
        return 1.0
    return float(known["p50"]) / diameter_px


def at_factor(engine: Engine, factor: float) -> Engine:
    """The same engine, which sees images at ``factor`` times its scale; shares its network."""
    scaled = copy.copy(engine)
    scaled.scale = engine.scale * factor
    return scaled


def rescaled_options(options: ClusterOptions, factor: float) -> ClusterOptions:
    """Thresholds for objects that are as large in the image as ``factor`` makes them small."""
    return replace(options, min_pixels=round(options.min_pixels / factor**2))


def suited(
    engine: Engine, info: ModelInfo, options: ClusterOptions, diameter_px: float
) -> tuple[Engine, ClusterOptions]:
    """Engine and thresholds for objects of that diameter. Raises as ``factor_for`` does."""
    factor = factor_for(info, diameter_px)
    if factor != 1:
        factor = _in_small_numbers(engine.scale * factor) / engine.scale
    return at_factor(engine, factor), rescaled_options(options, factor)


def _in_small_numbers(scale: float) -> float:
    """The scale, at most 6 % off, by which few px become whole cells of a network.

    At 7/4 those are 64 px of 16 px cells, at 1.7341 over a thousand: too many for a tile.
    """
    if scale < 1 / MOST_PARTS:
        return 1 / round(1 / scale)
    return float(Fraction(scale).limit_denominator(math.ceil(MOST_PARTS / max(1.0, scale))))


def worth(found: Instances) -> float:
    """How much of what was found, in px, is expected to be right."""
    return float((found.areas * (found.expected_iou - 0.5)).sum())


def is_doubtful(found: Instances) -> bool:
    """Whether nothing was found, or mostly what is not expected to be right."""
    return not len(found) or bool((found.areas * (found.expected_iou - DOUBTFUL)).sum() < 0)


def is_light(found: Instances, native: Instances) -> bool:
    """Whether most of an image was found where the model's own scale shows nothing at all.

    A blank field under uneven light looks like one large nucleus once it is reduced enough.
    """
    return not len(native) and 2 * int(found.areas.sum()) > found.labels.size


def best_scale(
    engine: Engine,
    info: ModelInfo,
    image: Tensor,
    native: Seen,
    options: ClusterOptions,
    augment: bool,
) -> Seen:
    """What was found in ``image`` (3, H, W), normalised, at the best scale.

    native: what was found at the model's own. augment: average over turns. A model that is not
    calibrated cannot judge: what was found stays. The model's own min_pixels is of objects as it
    was trained on and grows with them; another one counts pixels of the image at every scale.
    """
    best = native
    if info.calibration is None:
        return best
    most, doubtful = worth(best.instances), is_doubtful(best.instances)
    own = options.min_pixels == info.thresholds.min_pixels
    for factor in FACTORS:
        if min(image.shape[-2:]) * engine.scale * factor < LEAST_SIDE:
            break
        scaled = at_factor(engine, factor)
        maps = average_over_turns(scaled, image[None]) if augment else scaled(image[None])
        thresholds = rescaled_options(options, factor) if own else options
        found = cluster(maps, thresholds, info.class_names)[0].numpy()
        found = with_expected_iou(found, maps.seed[0], info.calibration)
        if is_light(found, native.instances):
            continue
        value = worth(found)
        if value > GAIN * max(most, 0.0):
            best, most = Seen(found, maps, factor), value
        elif not doubtful:
            break
    return best
