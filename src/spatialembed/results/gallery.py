"""What a run of prediction shows of itself: contact sheets, and the page of the run."""

from __future__ import annotations

from collections.abc import Sequence

from spatialembed.results.look import Look
from spatialembed.results.run_page import RunPage
from spatialembed.results.sheet import ContactSheet


class Gallery:
    """Hands the looks of images, in their order, to what was asked for."""

    def __init__(self, sheet: ContactSheet | None = None, page: RunPage | None = None) -> None:
        self.sheet, self.page = sheet, page

    def __bool__(self) -> bool:
        return self.sheet is not None or self.page is not None

    def add(self, look: Look) -> None:
        """Note an image. Raises SpatialEmbedError ``disk_full``."""
        if self.sheet is not None:
            self.sheet.add(look)
        if self.page is not None:
            self.page.add(look)

    def close(self, failed: Sequence[str], warnings: Sequence[str]) -> None:
        """Write what is not written yet, as ``RunPage.write``. Raises ``disk_full``."""
        if self.sheet is not None:
            self.sheet.close()
        if self.page is not None:
            self.page.write(failed, warnings)
