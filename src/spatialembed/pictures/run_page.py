"""report.html: one page of a prediction run. Its pictures are in it; they link to the overlays.

Bounded, however many images there are: ``THUMBNAILS`` pictures of images, ``LISTED`` further ones
by name, ``IMAGES`` and ``OBJECTS`` at each end, and the numbers of all. A picture takes some 10 kB.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from spatialembed.files import atomic_write
from spatialembed.images.write import jpeg_bytes
from spatialembed.pictures.charts import bars, histogram
from spatialembed.pictures.contact_sheet import ContactSheet
from spatialembed.pictures.html import chart, data_uri, facts, grid, header, page, text
from spatialembed.pictures.thumbnail import EXTREMES, Crop, Look

THUMBNAILS, LISTED = 300, 3000
IMAGES, OBJECTS = 8, EXTREMES
CLASSES = 24
"""Bars of classes at most."""
TOLD = 500
"""Warnings that are listed."""


class _Ranked:
    """The first few of many, by their rank; HTML is made of those only that come so far."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: list[tuple[tuple[float, ...], str]] = []

    def offer(self, rank: tuple[float, ...], make: Callable[[], str]) -> None:
        if len(self._held) < self.most or rank < self._held[-1][0]:
            bisect.insort(self._held, (rank, make()))
            del self._held[self.most :]

    def html(self) -> list[str]:
        return [shown for _, shown in self._held]


class _Numbers(NamedTuple):
    """Of all objects, in their order."""

    areas: np.ndarray  # (N,) px
    quality: np.ndarray  # (N,) in [0, 1]
    scores: np.ndarray  # (N,) in [0, 1]


class RunPage:
    """Collects the looks of images, in their order, and writes the page of the run."""

    def __init__(
        self, out: Path, class_names: Sequence[str], settings: Mapping[str, object]
    ) -> None:
        """settings: by which the run can be repeated, by name."""
        self.out, self.class_names, self.settings = out, tuple(class_names), dict(settings)
        self.calibrated = False
        self._counts: list[int] = []
        self._numbers: list[_Numbers] = []
        self._classes: Counter[int] = Counter()
        self._thumbnails: list[str] = []
        self._names: list[str] = []
        self._images = _Ranked(IMAGES), _Ranked(IMAGES)  # worst, best
        self._objects = _Ranked(OBJECTS), _Ranked(OBJECTS)

    def add(self, look: Look) -> None:
        """Note an image."""
        place = len(self._counts)
        self._counts.append(len(look.scores))
        self._numbers.append(_Numbers(look.areas, look.quality, look.scores))
        self._classes.update(look.classes.tolist())
        self.calibrated |= look.expected is not None
        if place < THUMBNAILS:
            self._thumbnails.append(_image(look))
        elif place < THUMBNAILS + LISTED:
            name = text(look.image)
            self._names.append(f"<li>{_linked(name, look.link)}: {_objects(len(look.scores))}</li>")
        mean = look.mean_quality
        for end, sign, crops in ((0, 1, look.worst), (1, -1, look.best)):
            if not math.isnan(mean):
                self._images[end].offer((sign * mean, place), lambda: _image(look))
            for crop in crops:
                rank = (sign * crop.quality, place, crop.number)
                self._objects[end].offer(rank, lambda crop=crop: _object(crop, self.class_names))  # type: ignore[misc]

    def write(self, failed: Sequence[str] = (), warnings: Sequence[str] = ()) -> Path:
        """Write ``report.html``; returns its path. Raises SpatialEmbedError ``disk_full``.

        failed: of each input without results, its name and why. warnings: whatever else was said.
        """
        path = self.out / "report.html"
        with atomic_write(path) as temporary:
            temporary.write_text(self.html(failed, warnings), "utf-8")
        return path

    def html(self, failed: Sequence[str], warnings: Sequence[str]) -> str:
        """The whole page."""
        rows = list(zip(*self._numbers, strict=True))
        numbers = _Numbers(*(np.concatenate(c) if c else np.zeros(0) for c in rows or [()] * 3))
        title = f"{_objects(len(numbers.areas))} in {_count(len(self._counts), 'image')}"
        return page(
            title,
            (
                header(title, f"spatialembed predict, model {self.settings.get('model', '')}"),
                _verdict(len(self._counts), failed, warnings),
                facts(self._facts(numbers, len(failed))),
                _faults(failed, warnings),
                f"<h2>Distributions</h2>{grid(self._plots(numbers), 'plots')}" if rows else "",
                self._extremes(numbers),
                self._all_images(),
                _settings(self.settings),
            ),
        )

    @property
    def _measure(self) -> str:
        return "expected IoU" if self.calibrated else "score"

    def _facts(self, numbers: _Numbers, failed: int) -> list[tuple[str, str]]:
        rows = [("images", f"{len(self._counts):,}"), ("objects", f"{len(numbers.areas):,}")]
        if self._counts:
            rows.append(("objects an image, median", f"{np.median(self._counts):,.4g}"))
            rows.append(("images without any", f"{self._counts.count(0):,}"))
        if len(numbers.areas):
            rows.append(("area, median", f"{np.median(numbers.areas):,.4g} px"))
            rows.append((f"{self._measure}, mean", f"{numbers.quality.mean():.3f}"))
        return [*rows, ("failed", f"{failed:,}")]

    def _plots(self, numbers: _Numbers) -> list[str]:
        counts = np.array(self._counts)
        plots = [
            ("Objects an image", histogram(counts, title="Objects an image", unit="objects"), "")
        ]
        if len(numbers.areas):
            low, middle, high = np.percentile(numbers.areas, (5, 50, 95))
            svg = histogram(numbers.areas, title="Area of an object", unit="px", log=True)
            note = f"Median {middle:,.4g} px; 90 % from {low:,.4g} to {high:,.4g}."
            plots.append(("Area of an object", svg, note))
            if self.calibrated:
                svg = histogram(numbers.quality, title="Expected IoU", unit="")
                note = "With the true object, as the model's calibration says."
                plots.append(("Expected IoU", svg, note))
            svg = histogram(numbers.scores, title="Score", unit="")
            plots.append(("Score", svg, "The value of the seed that an object grew from."))
        if len(self.class_names) > 1:
            rows = [(self.class_names[c], n) for c, n in self._classes.most_common(CLASSES)]
            plots.append(("Objects of a class", bars(rows, title="Objects of a class"), ""))
        return [chart(*plot) for plot in plots]

    def _extremes(self, numbers: _Numbers) -> str:
        """The worst and the best, objects first; the best are left out where all are shown."""
        ranked = f"Ranked by {self._measure}" + (
            "." if self.calibrated else ": this model is not calibrated."
        )
        parts = []
        with_objects = len(self._counts) - self._counts.count(0)
        kinds = (
            ("objects", self._objects, len(numbers.areas), OBJECTS),
            ("images", self._images, with_objects, IMAGES),
        )
        for kind, ends, total, most in kinds:
            if kind == "images" and total <= 2 * most:
                continue  # all images stand below with their figures
            for word, end in zip(("Worst", "Best"), ends, strict=True):
                if end.html() and (word == "Worst" or total > most):
                    note = ranked if kind == "objects" else f"{ranked[:-1]}, mean of an image."
                    parts.append(f'<h2>{word} {kind}</h2><p class="quiet">{text(note)}</p>')
                    parts.append(grid(end.html(), "thumbs"))
        return "\n".join(parts)

    def _all_images(self) -> str:
        if not self._counts:
            return ""
        left = len(self._counts) - len(self._thumbnails) - len(self._names)
        more = f"<p>And {left:,} more, which objects.csv has.</p>" if left else ""
        names = (
            f"<details><summary>{len(self._names):,} more by name</summary>"
            f"<ul>{''.join(self._names)}</ul>{more}</details>"
            if self._names
            else ""
        )
        return f"<h2>Images</h2>{grid(self._thumbnails, 'thumbs')}{names}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _objects(number: int) -> str:
    return _count(number, "object")


def _linked(inner: str, link: str) -> str:
    """HTML as a link to a file of the folder, if there is one."""
    if not link:
        return inner
    # Names that are no UTF-8 keep their bytes; a colon would make a scheme of what is before it.
    return f'<a href="./{quote(link, safe="/", errors="surrogateescape")}">{inner}</a>'


def _picture(picture: np.ndarray, alt: str, caption: str, link: str) -> str:
    inner = (
        f'<img alt="{text(alt)}" width="{picture.shape[1]}" height="{picture.shape[0]}" '
        f'src="{data_uri(jpeg_bytes(picture), "jpeg")}"><figcaption>{caption}</figcaption>'
    )
    return f"<figure>{_linked(inner, link)}</figure>"


def _image(look: Look) -> str:
    words = _objects(len(look.scores))
    mean = look.mean_quality
    measure = "score" if look.expected is None else "expected IoU"
    said = "" if math.isnan(mean) else f", {measure} {mean:.2f}"
    caption = f"{text(look.image)}<br><b>{words}</b>{said}"
    return _picture(look.thumbnail, f"{look.image}: {words}", caption, look.link)


def _object(crop: Crop, class_names: Sequence[str]) -> str:
    name = f"{text(class_names[crop.of_class])}, " if len(class_names) > 1 else ""
    caption = (
        f"<b>{crop.quality:.2f}</b> {name}{crop.area:,} px<br>"
        f"{text(crop.image)}, object {crop.number}"
    )
    return _picture(crop.picture, f"{crop.image}, object {crop.number}", caption, crop.link)


def _verdict(images: int, failed: Sequence[str], warnings: Sequence[str]) -> str:
    if failed:
        said = f"<b>{_count(len(failed), 'input')} failed</b>, {images:,} fine."
        return f'<p class="verdict error">{said}</p>'
    if warnings:
        said = f"<b>All inputs were read.</b> {_count(len(warnings), 'warning')}."
        return f'<p class="verdict warning">{said}</p>'
    return '<p class="verdict fine"><b>All inputs were read.</b> No warnings.</p>'


def _faults(failed: Sequence[str], warnings: Sequence[str]) -> str:
    cards = []
    for grade, title, lines in (("error", "failed", failed), ("warning", "warnings", warnings)):
        if lines:
            items = "".join(f"<li>{text(line)}</li>" for line in lines[:TOLD])
            rest = f"<p>And {len(lines) - TOLD:,} more.</p>" if len(lines) > TOLD else ""
            cards.append(
                f'<article class="{grade}"><h3><span>{title}</span> {len(lines):,}</h3>'
                f"<ul>{items}</ul>{rest}</article>"
            )
    return f"<h2>Failures and warnings</h2>{grid(cards, 'cards')}" if cards else ""


def _settings(settings: Mapping[str, object]) -> str:
    lines = "\n".join(f"{name}: {value}" for name, value in settings.items())
    return f"<h2>Settings</h2><pre>{text(lines)}</pre>"


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
