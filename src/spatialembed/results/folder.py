"""The results of many images in one folder: pictures of each, and the two files that all share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from spatialembed.results.coco import CocoFile
from spatialembed.results.labels import write_labels
from spatialembed.results.overlay import write_overlay
from spatialembed.results.table import ObjectTable
from spatialembed.types import Instances

WRITE_EVERY_S = 30
"""A kill loses no more of the shared files than this, in seconds."""


class ResultFolder:
    """Each image's label image and overlay, and ``objects.csv`` and ``instances.json`` of all.

    As a context it writes the shared files on the way out, after an error or Ctrl-C too: nothing
    that was added is lost.
    """

    def __init__(self, out: Path, class_names: Sequence[str]) -> None:
        self.out = out
        self._table = ObjectTable(out / "objects.csv")
        self._coco = CocoFile(out / "instances.json", class_names)
        self._written = time.monotonic()

    def add(
        self, image: str, pixels: Any, instances: Instances, *, stem: str | None = None
    ) -> Path:
        """Write what was found in one image; returns the path of its overlay.

        image: its name in the shared files. pixels: (H, W) or (H, W, 3), any dtype. stem: path of
        its own files below the folder, without suffix; by default ``image``.
        Raises SpatialEmbedError ``disk_full``.
        """
        place = self.out / (stem or image)
        write_labels(place, instances.labels)
        overlay = write_overlay(place, pixels, instances)
        self._table.add(image, instances)
        self._coco.add(image, instances)
        if time.monotonic() - self._written > WRITE_EVERY_S:
            self.write()
        return overlay

    def write(self) -> None:
        """Write the shared files as they stand. Raises SpatialEmbedError ``disk_full``."""
        try:
            self._table.write()
        finally:  # what keeps one from being written may not keep the other
            self._coco.write()
        self._written = time.monotonic()

    def __enter__(self) -> ResultFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.write()
