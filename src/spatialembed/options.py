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
    """torch, compiled, onnxruntime or openvino; auto: the one that should end the job first."""
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
    """Take each connected part of a mask with one id only as an instance (masks of 0 and 255)."""
    plain_ids: bool = False
    """Take ids that look like class x 1000 + number, as Cityscapes has them, as mere numbers."""
    crowd_as_objects: bool = False
    """Of a COCO file: take annotations with iscrowd 1 as objects, not as crowds to be ignored."""
    max_pixels: int = 1 << 28
    """Refuse images of more pixels; nor may one take more bytes than 8-bit RGB of as many."""


@dataclass(frozen=True, kw_only=True)
class PartOptions(DataOptions):
    """Which images with truth are taken.

    See ``data.open.select``.
    """

    data: str
    """Folder of images/ and masks/, flat or under train/, val/ and test/; a file of COCO instances,
    .json, beside images/; or a Cityscapes root, of which the classes of the model are taken."""
    split: Literal["train", "val", "test", "all"] | None = None
    """Part of the folder. Of a flat one, train or val by the images that the model was trained on,
    or by the next three; null: all but those that it was trained on; all: those too."""
    val_fraction: float | None = None
    """Share that training held out of a flat folder; null: as the model says, or 0.2."""
    group_by: str | None = None
    """Column of index.csv whose groups training held out whole; alone it means --split val."""
    seed: int | None = None
    """Of that split; null: as the model says, or 0."""
