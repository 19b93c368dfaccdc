"""Twins against all pairs of images, plots against their numbers, settings as YAML."""

from __future__ import annotations

import html
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from spatialembed.doctor.findings import Finding, graded, printable, tally
from spatialembed.doctor.near_duplicates import ALIKE, Twin, find_twins
from spatialembed.doctor.probe import ImageFacts, Pair, _hash, _thumbnail
from spatialembed.doctor.recommend import Advice, Setting
from spatialembed.pictures.charts import HEIGHT, WIDTH, Mark, bars, histogram


def pair(pixels: np.ndarray, file: bytes = b"") -> Pair:
    facts = ImageFacts(
        size_hw=pixels.shape[:2],
        dtype=str(pixels.dtype),
        grey=True,
        channels=1,
        low=float(pixels.min()),
        high=float(pixels.max()),
        saturated=0.0,
        file_hash=file or pixels.tobytes() + b"file",
        pixel_hash=_hash(pixels),
        thumbnail=_thumbnail(pixels),
    )
    return Pair("a", "", Path("a"), Path("a"), image=facts)


def noise(seed: int, side: int = 64, grain: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (-(-side // grain),) * 2)
    return blocks.repeat(grain, 0).repeat(grain, 1)[:side, :side].astype(np.uint8)


# ---------------------------------------------------------------- twins


def test_twins_are_all_pairs_that_are_alike() -> None:
    """Against every pair, among mixtures from unlike to nearly equal."""
    rng = np.random.default_rng(0)
    images = [noise(i) for i in range(30)]
    for i in range(30):
        share = rng.uniform(0, 0.5)
        images.append(((1 - share) * images[i] + share * noise(100 + i)).astype(np.uint8))
    pairs = [pair(image) for image in images]
    thumbs = [p.image.thumbnail for p in pairs if p.image is not None]
    expected = {
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if float((thumbs[i] * thumbs[j]).sum()) >= ALIKE  # type: ignore[operator]
    }
    assert 5 < len(expected) < 30
    found = find_twins(pairs)
    assert {(twin.a, twin.b) for twin in found} == expected
    assert {twin.kind for twin in found} == {"nearly"}


def test_kinds_of_twins() -> None:
    one, other = noise(1), noise(2)
    pairs = [
        pair(one, b"file"),
        pair(other),
        pair(one, b"file"),
        pair(one, b"another file"),
        pair(one + 40),  # 240 at most: no wrap
        pair(np.full((64, 64), 7, np.uint8)),
        pair(np.full((64, 64), 9, np.uint8)),
        Pair("broken", "", Path("a"), Path("a")),
    ]
    assert [(twin.kind, twin.a, twin.b) for twin in find_twins(pairs)] == [
        ("bytes", 0, 2),
        ("pixels", 0, 3),
        ("nearly", 0, 4),
    ]
    assert find_twins([]) == []


def jpeg(pixels: np.ndarray) -> np.ndarray:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=50)
    return np.asarray(Image.open(stream))


CHANGES = {
    "JPEG": jpeg,
    "half the size": lambda p: np.asarray(Image.fromarray(p).resize((p.shape[1] // 2,) * 2)),
    "gamma": lambda p: (255 * (p / 255.0) ** 1.5).astype(np.uint8),
    "16 bits": lambda p: p.astype(np.uint16) * 200,
    "colour": lambda p: np.repeat(p[..., None], 3, axis=2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_picture_saved_otherwise(change: str) -> None:
    pixels = noise(3, side=256, grain=16)
    found = find_twins([pair(pixels), pair(CHANGES[change](pixels))])
    assert found == [Twin("nearly", 0, 1, pytest.approx(1, abs=1 - ALIKE))]


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (31, 33), (500, 7)])
def test_thumbnail_of_any_size(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    thumb = _thumbnail(pixels)
    if shape == (1, 1):
        assert thumb is None
    else:
        assert thumb is not None
        np.testing.assert_allclose((thumb.mean(), np.linalg.norm(thumb)), (0, 1), atol=1e-5)


# ---------------------------------------------------------------- plots


def heights(svg: str) -> np.ndarray:
    return np.array([float(h) for h in re.findall(r'class="bar"[^>]* height="([\d.]+)"', svg)])


def test_bars_are_in_proportion() -> None:
    svg = histogram(np.repeat([1, 2, 3], [10, 20, 5]), title="t", unit="objects").svg
    tall = heights(svg)
    np.testing.assert_allclose(tall / tall.max(), [0.5, 1, 0.25], atol=0.01)
    assert "35 values in objects; smallest, median, largest 1, 2, 3" in svg


def test_log_axis_and_marks() -> None:
    marks = [Mark(10, "ten"), Mark(1000, "thousand")]
    svg = histogram(np.array([10.0, 100, 1000]), title="t", unit="px", log=True, marks=marks).svg
    left, right = (float(x) for x in re.findall(r'class="mark" d="M([\d.]+)', svg))
    places = [float(x) for x in re.findall(r'class="bar" x="([\d.]+)"', svg)]
    assert len(places) == 3
    np.testing.assert_allclose(places[1], (places[0] + places[2]) / 2, atol=5)  # equal factors
    assert abs(left - places[0]) < 12
    assert abs(right - places[2]) < 12
    assert "marked: ten at 10; thousand at 1000" in svg


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[], [5], [5, 5, 5], [1, 10**7], [0.25, 0.5]])
def test_everything_lies_inside(values: list[float], log: bool) -> None:
    svg = histogram(np.array(values), title="t", unit="px", log=log, marks=[Mark(3, "m")]).svg
    for x, y in re.findall(r' x="([-\d.]+)" y="([-\d.]+)"', svg):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT
    assert heights(svg).sum() > 0 or not values


def test_names_are_escaped() -> None:
    svg = bars([("<b>&'\"" + 40 * "x", 3), ("b", 0)], title="t").svg
    assert "<b>" not in svg
    assert "<b>&'\"" in html.unescape(svg)
    assert heights(svg).size == 0 or len(re.findall('class="bar"', svg)) == 2


# ---------------------------------------------------------------- words


def test_findings_in_order() -> None:
    found = graded([Finding(g, g, 1, g) for g in ("note", "error", "warning", "note")])
    assert [f.grade for f in found] == ["error", "warning", "note", "note"]
    assert tally(found) == "1 error, 1 warning, 2 notes"
    many = Finding("note", "c", 9, "t", cases=tuple("abcdefghi"))
    assert many.to_dict()["examples"] == list("abcde")
    assert many.to_dict()["cases"] == list("abcdefghi")
    assert printable("a\n\x1b[0m\udcffö") == "a\\n\\x1b[0m\\udcffö"


@pytest.mark.parametrize(
    "value", [True, 3, 0.5, 2.0, 1e-7, "no", "null", "a b: #", "ä'\"", "1e3", [10.0, 3.5], ["no"]]
)
def test_yaml_gives_back_every_value(value: object) -> None:
    settings = (Setting("a", value, "why\nnot"), Setting("stage1.b", value, "so"))
    text = Advice(1.0, 64, 1, 1, settings).yaml("head\nof it: x")
    assert yaml.safe_load(text) == {"a": value, "stage1": {"b": value}}
    assert text.startswith("# head\n# of it: x\n")
