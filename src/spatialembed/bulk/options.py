"""The settings of ``spatialembed bulk``; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from spatialembed.options import DeviceOptions


@dataclass(frozen=True)
class BulkOptions(DeviceOptions):
    """Settings of ``spatialembed bulk``; a threshold that is null is the model's own."""

    sources: list[str]
    """Folders, globs in quotes, lists (.txt, .csv, .parquet), and URLs s3://, gs://, az:// and
    file://."""
    out: str
    """Folder of the results, or such a URL."""
    model: str
    """Bundled name, model folder, or a file inside one; of a cluster: a path on each machine."""
    on: str = "local"
    """local: processes of this machine; ray: a Ray of its own here; else the address of a Ray
    cluster."""
    workers: int | None = None
    """Processes that predict; null: one a usable core, on a GPU one, of a cluster as many as it
    has cores or GPUs."""
    shard: int = 256
    """Images that are finished together; a kill loses no more than these for each process."""
    append: bool = False
    """Add the inputs that are new to what is there."""
    labels: Literal["tar", "loose", "none"] = "tar"
    """Label images: one tar file a shard, a file each in labels/, or none."""
    no_progress: float = 10.0
    """Minutes without a finished shard after which the run ends with an error."""
    threads: int | None = field(default=1, kw_only=True)
    """Processor threads of each process."""
    diameter: str | None = None
    """As in predict."""
    channel: int | str | None = None
    """As in predict."""
    max_pixels: int = 1 << 28
    """Images of more pixels are refused: all go through the network whole."""
    foreground: float | None = None
    """A pixel takes part if its seed is above this."""
    start: float | None = None
    """A pixel can start an instance if its seed is at least this."""
    membership: float | None = None
    """A pixel belongs to a seed if its phi is above this."""
    min_pixels: int | None = None
    """An instance has more pixels of the image than this."""
    min_free: float | None = None
    """More than this share of an instance's pixels must not belong to a better one."""
    max_instances: int | None = None
    """Stop after this many instances in an image."""


THRESHOLDS = (
    "foreground", "start", "membership", "min_pixels", "min_free", "max_instances",
)  # fmt: skip
