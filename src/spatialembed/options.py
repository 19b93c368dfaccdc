"""Settings that travel together: a verb's options inherit them, a function takes them as one.

Inherited, they are flags, keys of YAML and names in Python without a prefix. No torch here, so that
``--help`` is quick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np

from spatialembed.errors import USAGE, SpatialEmbedError


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """How the network runs.

    See ``inference.engine.build``.
    """

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    engine: str = "auto"
    """torch, compiled, onnxruntime or openvino; auto: the one expected to finish the job first."""
    precision: str = "auto"
    """auto, float32 or bfloat16 (of the network)."""
    threads: int | None = None
    """Processor threads; null leaves it to torch."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How images with truth are read.

    See ``data.open.open_data``.
    """

    allow_missing: bool = False
    """Leave out images without mask and masks without image."""
    split_components: bool = False
    """In masks with a single id (0 and 255), take each connected part as an instance."""
    plain_ids: bool = False
    """Of masks: take ids as instances though they look like classes, or like class x 1000 + number
    as in Cityscapes."""
    ignore_id: int | None = None
    """Of masks: the id of void pixels, neither object nor background (255, say)."""
    channel: int | str | None = None
    """Channel of the images that is read: its number from 1, its name (OME, ImageJ), max or sum of
    all; all: colours as they are. null: as the model was trained, else all."""
    crowd_as_objects: bool = False
    """COCO only: take annotations with iscrowd 1 as objects, instead of ignoring them as crowds."""
    max_pixels: int = 1 << 28
    """Refuse images of more pixels, or of more bytes than 8-bit RGB of that many pixels."""


@dataclass(frozen=True, kw_only=True)
class PartOptions(DataOptions):
    """Which images with truth are taken.

    See ``data.open.select``.
    """

    data: str
    """Folder of images/ and masks/, flat or under train/, val/ and test/; a file of COCO
    instances, .json, beside images/; or a Cityscapes root, in which the classes of the model
    count."""
    split: Literal["train", "val", "test", "all"] | None = None
    """Part of the folder. In a flat one, train and val follow from the images that the model was
    trained on, or from the next three settings; null: all but those that it was trained on; all:
    those too."""
    val_fraction: float | None = None
    """Share that training held out of a flat folder; null: as recorded in the model, or 0.2."""
    group_by: str | None = None
    """Column of index.csv whose groups training held out whole; alone it means --split val."""
    seed: int | None = None
    """Seed of that split; null: as recorded in the model, or 0."""


@dataclass(frozen=True)
class ClusterOptions:
    """Thresholds of the clustering; they belong to a model and travel in its file."""

    foreground: float = 0.5
    """A pixel takes part if its seed is above this, in [0, 1)."""
    start: float = 0.9
    """A pixel can start an instance if its seed is at least this, in [0, 1]."""
    membership: float = 0.5
    """A pixel belongs to a seed if its phi is above this, in (0, 1); 0.5 is the margin."""
    min_pixels: int = 128
    """An instance has more members than this, overlaps included; 128 at Cityscapes size."""
    min_free: float = 0.5
    """More than this share of the members must be free, in [0, 1)."""
    max_instances: int | None = None
    """Stop after so many instances, the best ones, and report it as truncated; null: no limit."""

    def __post_init__(self) -> None:
        below_one = "at least 0 and below 1"
        limited = self.max_instances is None or _is_count(self.max_instances, 1)
        for name, wanted, fine in (
            ("foreground", below_one, 0 <= _number(self.foreground) < 1),
            ("start", "from 0 to 1", 0 <= _number(self.start) <= 1),
            ("membership", "above 0 and below 1", 0 < _number(self.membership) < 1),
            ("min_pixels", "a whole number, 0 to 2^31 - 1", _is_count(self.min_pixels, 0)),
            ("min_free", below_one, 0 <= _number(self.min_free) < 1),
            ("max_instances", "a whole number, 1 to 2^31 - 1, or none", limited),
        ):
            if not fine:
                what = f"{name}: {getattr(self, name)!r} is not {wanted}"
                raise SpatialEmbedError("bad_setting", what, f"set {name} {wanted}", USAGE)

    @property
    def reach(self) -> float:
        """The exponent below which phi > membership, rounded to float32."""
        return float(np.float32(-math.log(self.membership)))


def _number(value: object) -> float:
    """The value of a number; NaN, which is in no range, of anything else."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def _is_count(value: object, least: int) -> bool:
    """A whole number that fits the kernels, which count in 32 bits."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and least <= int(value) < 1 << 31  # type: ignore[call-overload]
