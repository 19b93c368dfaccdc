"""Contact sheets and the page of a run: what they show is what the other files say."""

from __future__ import annotations

import csv
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from drawn_labels import cells, discs
from spatialembed.pictures import contact_sheet, drawing, run_page
from spatialembed.pictures.contact_sheet import PER_SHEET, ContactSheet, short
from spatialembed.pictures.run_page import RunPage
from spatialembed.pictures.thumbnail import (
    CROP,
    EXTREMES,
    MARKED,
    SIDE,
    Thumbnail,
    small_overlay,
    thumbnail,
)
from spatialembed.results.folder import ResultFolder
from spatialembed.types import Instances

HOSTILE = [
    "plain.png",
    '<script>alert("x")</script>.png',
    "a&b #1 100%.png",
    "deep/with: colon?.png",
    "new\nline.png",
    "bytes\udcff.png",
]


def found_in(labels: np.ndarray, *, calibrated: bool = False, classes: int = 1) -> Instances:
    count = int(labels.max(initial=0))
    scores = np.linspace(0.9, 0.3, count).astype(np.float32)
    names = ("nucleus", "<b>cell</b>", "debris")[:classes]
    expected = scores[::-1].copy() if calibrated else None
    return Instances(labels, scores, np.arange(count) % classes, names, False, expected)


def thumbnail_of(name: str, labels: np.ndarray, **kinds: bool | int) -> Thumbnail:
    found = found_in(labels, **kinds)  # type: ignore[arg-type]
    image = np.full(labels.shape, 90, np.uint8)
    link = f"{name}_overlay.png"
    return thumbnail(name, link, image, labels, found, found.areas, found.boxes)


class Parsed(HTMLParser):
    """Tags of a page, their attributes, and the text between them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str, attribute: str) -> list[str]:
        return [str(a[attribute]) for t, a in self.tags if t == tag and attribute in a]

    def fact(self, name: str) -> str:
        return re.findall(rf"{re.escape(name)}([\d.,]+)", self.text)[0]


# --- a run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results of images with hostile names, with its sheet and its page."""
    out = tmp_path_factory.mktemp("run")
    names = ("nucleus", "<b>cell</b>", "debris")
    pages = [ContactSheet(out), RunPage(out, names, {"model": "<i>m</i>", "scale": 1.0})]
    with ResultFolder(out, names, pages=pages) as results:
        for i, name in enumerate(HOSTILE):
            labels = cells(3 + i, 40) if i else np.zeros((40, 30), np.int32)
            found = found_in(labels, calibrated=True, classes=3)
            stem = name.removesuffix(".png").replace("/script", "")
            results.add(name, np.full(labels.shape, 60 + i, np.uint8), found, stem=stem)
    for page in pages:
        page.close(["not_an_image: <img src=x>.png: no picture"], ["a.png: & more"])
    return out


@pytest.fixture(scope="module")
def parsed(run: Path) -> Parsed:
    return Parsed((run / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def objects(run: Path) -> list[dict[str, str]]:
    with open(run / "objects.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_numbers_are_those_of_the_table(parsed: Parsed, objects: list[dict[str, str]]) -> None:
    assert f"{len(objects)} objects in {len(HOSTILE)} images" in parsed.text
    assert int(parsed.fact("objects")) == len(objects)
    assert int(parsed.fact("images without any")) == 1
    areas = [int(row["area"]) for row in objects]
    assert float(parsed.fact("area, median")) == pytest.approx(np.median(areas), abs=0.1)
    expected = [float(row["expected_iou"]) for row in objects]
    assert float(parsed.fact("expected IoU, mean")) == pytest.approx(np.mean(expected), abs=1e-3)
    classes = Counter(row["class"] for row in objects)
    label = next(a for a in parsed.of("svg", "aria-label") if a.startswith("Objects of a class"))
    assert all(f"{name} {count}" in label for name, count in classes.items())


def test_the_worst_object_is_that_of_the_table(
    parsed: Parsed, objects: list[dict[str, str]]
) -> None:
    ranked = sorted(float(row["expected_iou"]) for row in objects)
    shown = parsed.text.partition("Worst objects")[2].partition("Best objects")[0]
    said = [float(number) for number in re.findall(r"(0\.\d\d) ", shown)]
    assert said == pytest.approx(ranked[:EXTREMES], abs=0.005)
    assert "expected IoU" in shown


def test_links_lead_to_overlays_in_the_folder(run: Path, parsed: Parsed) -> None:
    links = parsed.of("a", "href")
    assert len(links) >= len(HOSTILE)
    for link in links:
        assert link.startswith("./")
        assert (run / unquote(link, errors="surrogateescape")).is_file()


def test_nothing_is_asked_of_a_server(run: Path, parsed: Parsed) -> None:
    page = (run / "report.html").read_text("utf-8")
    assert not re.search(r"(https?:)?//\w", re.sub(r"base64,[\w+/=]*", "", page))
    assert all(source.startswith("data:image/jpeg;base64,") for source in parsed.of("img", "src"))
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe", "object", "base"}


def test_names_are_text(parsed: Parsed) -> None:
    assert "i" not in {tag for tag, _ in parsed.tags}  # of the model's name
    for words in ('<script>alert("x")</script>', "<img src=x>", "a.png: & more", r"bytes\udcff"):
        assert words in parsed.text
    assert not parsed.of("img", "onerror")


def test_the_sheet_of_a_run_has_a_place_for_each_image(run: Path) -> None:
    with Image.open(run / "sheet.jpg") as picture:
        assert picture.size == (6 + 3 * (SIDE + 6), 6 + 2 * (SIDE + 26 + 6))


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in "ab":
        out = tmp_path / name
        for page in (ContactSheet(out), RunPage(out, ("nucleus",), {"model": "m"})):
            for i in range(4):
                page.add(thumbnail_of(f"{i}.png", cells(5, 32)))
            page.close([], [])
        written.append([(out / file).read_bytes() for file in ("report.html", "sheet.jpg")])
    assert written[0] == written[1]


# --- the page -------------------------------------------------------------------------------


def test_a_model_without_calibration_is_ranked_by_score(tmp_path: Path) -> None:
    page = RunPage(tmp_path, ("nucleus",), {})
    page.add(thumbnail_of("a.png", cells(EXTREMES + 4, 48)))
    shown = Parsed(page.html([], [])).text
    assert "Ranked by score: this model is not calibrated." in shown
    worst = re.findall(r"(0\.\d\d) ", shown.partition("Worst objects")[2])
    assert worst[0] == "0.30"
    assert re.findall(r"(0\.\d\d) ", shown.partition("Best objects")[2])[0] == "0.90"


def test_few_objects_are_shown_once(tmp_path: Path) -> None:
    page = RunPage(tmp_path, ("nucleus",), {})
    page.add(thumbnail_of("a.png", cells(3, 48)))
    shown = Parsed(page.html([], [])).text
    assert "Worst objects" in shown
    assert "Best objects" not in shown


@pytest.mark.parametrize("images", [0, 1])
def test_nothing_found(tmp_path: Path, images: int) -> None:
    page = RunPage(tmp_path, ("nucleus",), {})
    for _ in range(images):
        page.add(thumbnail_of("a.png", np.zeros((9, 7), np.int32)))
    shown = Parsed(page.html(["b.png: broken"], [])).text
    assert f"0 objects in {images} image" in shown
    assert "1 input failed" in shown
    assert "Worst objects" not in shown


def test_the_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "THUMBNAILS", 5)
    monkeypatch.setattr(run_page, "LISTED", 7)
    page = RunPage(tmp_path, ("nucleus",), {})
    small = thumbnail_of("a.png", cells(2, 16))
    sizes = []
    for i in range(60):
        page.add(small._replace(image=f"{i:02}.png"))
        sizes.append(len(page.html([], [])))
    parsed = Parsed(page.html([], []))
    assert "120 objects in 60 images" in parsed.text
    assert len(parsed.of("img", "src")) == 5 + 4 * run_page.IMAGES
    assert "7 more by name" in parsed.text
    assert "And 48 more" in parsed.text
    assert sizes[-1] < sizes[30] * 1.02


# --- sheets ---------------------------------------------------------------------------------


def test_many_images_go_on_several_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "PER_SHEET", 3)
    small = thumbnail_of("a.png", cells(2, 16))
    for count, pages in ((7, 3), (3, 1)):  # a shorter run leaves none of the longer one
        sheet = ContactSheet(tmp_path)
        for _ in range(count):
            sheet.add(small)
        sheet.close()
        names = ["sheet.jpg", *(f"sheet_{i}.jpg" for i in range(2, pages + 1))]
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert PER_SHEET % contact_sheet.COLUMNS == 0


def test_thumbnails_stand_in_their_order(tmp_path: Path) -> None:
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)]
    small, contact = thumbnail_of("a.png", cells(2, 16)), ContactSheet(tmp_path)
    for i, colour in enumerate(colours):
        shape = (SIDE, SIDE // 2) if i % 2 else (SIDE // 2, SIDE)
        contact.add(small._replace(picture=np.full((*shape, 3), colour, np.uint8)))
    contact.close()
    picture = np.asarray(Image.open(tmp_path / "sheet.jpg").convert("RGB")).astype(int)
    for i, colour in enumerate(colours):
        y, x = 6 + 26 + i // 3 * (SIDE + 32) + SIDE // 2, 6 + i % 3 * (SIDE + 6) + SIDE // 2
        assert np.abs(picture[y, x] - colour).max() < 8
        beside = picture[y, x - SIDE * 3 // 8] if i % 2 else picture[y - SIDE * 3 // 8, x]
        assert np.abs(beside - drawing.PAPER).max() < 8


@pytest.mark.parametrize("name", ["a.png", "x" * 80 + "_end.png", "\udcff\n.png"])
def test_short_names_keep_their_end(name: str) -> None:
    shown = short(name)
    assert len(shown) <= contact_sheet.NAME
    assert shown.endswith(".png")
    shown.encode("utf-8")


# --- thumbnails ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 1), (8, 8)), ((30, 60), (120, 240)), ((2400, 600), (240, 60)), ((3, 4000), (1, 240))],
)
def test_thumbnails_fit(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    labels = np.ones(shape, np.int32)
    picture = small_overlay(np.zeros((*shape, 3), np.uint16), labels)
    assert picture.shape == (*expected, 3)
    assert picture.max() > 0


def test_crops_show_the_object_where_it_is() -> None:
    labels = discs(200, [(20, 20), (120, 100), (199, 0)], 15)
    small = thumbnail_of("a.png", labels)
    assert [crop.number for crop in small.worst] == [3, 2, 1]
    assert [crop.number for crop in small.best] == [1, 2, 3]
    for crop in small.worst:
        assert crop.picture.shape == (CROP, CROP, 3)
        assert crop.area == (labels == crop.number).sum()
    ys, xs = np.nonzero((small.worst[1].picture == MARKED[0]).all(axis=2))
    assert ys.mean() == pytest.approx(CROP / 2, abs=3)  # a whole disc, in the middle
    assert xs.mean() == pytest.approx(CROP / 2, abs=3)
    assert np.ptp(ys) == pytest.approx(CROP / 1.7, abs=6)


def test_a_reduced_picture_has_a_thumbnail_without_crops() -> None:
    found = found_in(cells(4, 64))
    image = np.zeros((16, 16), np.uint8)
    small = thumbnail("a.tif", "", image, found.labels[::4, ::4], found, found.areas)
    assert small.worst == small.best == ()
    assert len(small.scores) == 4
