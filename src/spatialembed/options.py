"""Settings that travel together: a verb's options inherit them, a function takes them as one.

Inherited, they are flags, keys of YAML and names in Python without a prefix. No torch here, so that
``--help`` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    """Take ids that look like class x 1000 + number, as in Cityscapes, as plain numbers."""
    ignore_id: int | None = None
    """Of masks: the id of void pixels, neither object nor background (255, say)."""
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
