"""Contact sheets: the thumbnails of a folder side by side, a bounded number on each page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spatialembed.console import printable
from spatialembed.files import atomic_write
from spatialembed.images.write import jpeg_bytes
from spatialembed.pictures.drawing import panel
from spatialembed.pictures.thumbnail import SIDE, Thumbnail

PER_SHEET, COLUMNS = 48, 6
"""Thumbnails of a page, and in a row of a full one."""
NAME = 24
"""Characters of a name that are shown; a longer one loses its middle."""


class ContactSheet:
    """``sheet.jpg``, and ``sheet_2.jpg`` and so on where there are more images than on one page."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.pages = 0
        self._tiles: list[tuple[str, np.ndarray]] = []

    def add(self, image: Thumbnail) -> None:
        """Set an image on the sheet. Raises SpatialEmbedError ``disk_full``."""
        self._tiles.append((f"{short(image.image)}: {len(image.scores):,}", image.picture))
        if len(self._tiles) == PER_SHEET:
            self._write()

    def _write(self) -> None:
        """Write the unfinished page, if any."""
        if not self._tiles:
            return
        self.pages += 1
        columns = min(COLUMNS, math.ceil(math.sqrt(len(self._tiles) * 1.2)))
        picture = panel(self._tiles, columns, cell=SIDE)
        with atomic_write(self._path(self.pages)) as temporary:
            temporary.write_bytes(jpeg_bytes(picture, 88))
        self._tiles = []

    def close(self, failed: Sequence[str] = (), warnings: Sequence[str] = ()) -> None:
        """Write the last page, and remove those that a longer run before this one left.

        A sheet shows neither failures nor warnings; ``RunPage`` does.
        """
        self._write()
        number = self.pages + 1
        while self._path(number).is_file():
            self._path(number).unlink()
            number += 1

    def _path(self, number: int) -> Path:
        return self.out / ("sheet.jpg" if number == 1 else f"sheet_{number}.jpg")


def short(name: str) -> str:
    """A name that fits below a thumbnail; its end matters most, so the middle goes."""
    name = printable(name)
    return name if len(name) <= NAME else f"{name[: NAME // 3]}…{name[-(NAME - NAME // 3 - 1) :]}"
