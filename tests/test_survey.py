"""Copies of images against wells of a plate; plots against their numbers; settings as YAML."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import ndimage

from spatialembed.console import printable
from spatialembed.doctor.findings import Finding, graded, tally
from spatialembed.doctor.near_duplicates import near_duplicates
from spatialembed.doctor.probe import Pair, image_facts, probe
from spatialembed.doctor.recommend import Advice, Setting
from spatialembed.options import DataOptions
from spatialembed.pictures.charts import HEIGHT, WIDTH, Mark, bars, histogram


def pair(pixels: np.ndarray) -> Pair:
    return Pair("a", "", Path("a"), Path("a"), image=image_facts(pixels))


def noise(seed: int, side: int = 64, grain: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (-(-side // grain),) * 2)
    return blocks.repeat(grain, 0).repeat(grain, 1)[:side, :side].astype(np.uint8)


# ---------------------------------------------------------------- near-duplicates


def of(pixels: np.ndarray) -> Pair:
    return pair(pixels.astype(np.uint8))


def copies(*images: np.ndarray) -> list[tuple[int, int]]:
    found = near_duplicates([of(image) for image in images])
    assert {copy.kind for copy in found} <= {"nearly"}
    return [(copy.a, copy.b) for copy in found]


def jpeg(pixels: np.ndarray) -> np.ndarray:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=50)
    return np.asarray(Image.open(stream))


def resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    height, width = pixels.shape
    return np.asarray(Image.fromarray(pixels).resize((int(width * factor), int(height * factor))))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG": jpeg,
    "half the size": lambda p: resized(p, 0.5),
    "twice the size": lambda p: resized(p, 2),
    "another shape": lambda p: np.asarray(Image.fromarray(p).resize((200, 200))),
    "gamma": lambda p: (255 * (p / 255.0) ** 1.5).astype(np.uint8),
    "brighter": lambda p: (0.8 * p + 30).astype(np.uint8),
    "noisier": lambda p: np.clip(p + np.random.default_rng(1).normal(0, 4, p.shape), 0, 255),
    "16 bits": lambda p: p.astype(np.uint16) * 200,
    "colour": lambda p: np.repeat(p[..., None], 3, axis=2),
    "mirrored": lambda p: p[:, ::-1],
    "upside down": lambda p: p[::-1],
    "turned": np.rot90,
    "turned and mirrored": np.transpose,
    "turned, halved, JPEG": lambda p: jpeg(np.ascontiguousarray(np.rot90(resized(p, 0.5), 3))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_picture_saved_otherwise(change: str) -> None:
    pixels = noise(3, side=256, grain=8)[:180]
    changed = CHANGES[change](pixels)
    found = near_duplicates([pair(noise(4, side=256)), pair(pixels), pair(changed)])
    assert [copy[:3] for copy in found] == [("nearly", 1, 2)]
    assert 0.7 < found[0].correlation <= 1


def test_kinds_of_copies() -> None:
    one, other = noise(1), noise(2)
    pairs = [
        pair(one),
        pair(other),
        pair(one.copy()),
        pair(one + 40),  # 240 at most: no wrap
        pair(np.full((64, 64), 7, np.uint8)),
        pair(np.full((64, 64), 9, np.uint8)),
        Pair("broken", "", Path("a"), Path("a")),
    ]
    assert [copy[:3] for copy in near_duplicates(pairs)] == [
        ("pixels", 0, 2),
        ("nearly", 0, 3),
    ]
    assert near_duplicates([]) == []


def test_images_are_counted_not_pairs() -> None:
    pixels = noise(5, side=128)
    many = [pixels + i for i in range(12)]  # all alike: 66 pairs
    assert copies(noise(6, side=128), *many) == [(1, i) for i in range(2, 13)]


def test_wells_of_a_plate_are_no_copies() -> None:
    """One light and one rim in all of them; each with other things in it."""
    y, x = np.mgrid[:200, :260]
    radius = np.hypot((y - 100) / 100, (x - 130) / 130)
    well = np.where(radius < 0.95, 190 - 60 * radius**2, 15)
    rng = np.random.default_rng(0)
    plate = []
    for _ in range(24):
        seeds = rng.uniform(0, 1, well.shape) > 0.998
        worms = ndimage.gaussian_filter(255.0 * seeds, (1, 4)) > 4
        plate.append(well - 70 * (worms & (radius < 0.9)) + rng.normal(0, 3, well.shape))
    assert copies(*plate) == []
    assert copies(*plate, plate[7][:, ::-1]) == [(7, 24)]


def of_folder(folder: Path) -> list[Pair]:
    paths = sorted((folder / "images").iterdir())
    if not paths:
        pytest.skip(f"no images in {folder}")
    return [probe(Pair(path.stem, "", path, folder / "masks" / path.name), DataOptions())
            for path in paths]  # fmt: skip


@pytest.mark.slow
def test_real_wells_and_real_copies(data_root: Path) -> None:
    wells = of_folder(data_root / "worms")
    assert near_duplicates(wells) == []
    pixels = np.asarray(Image.open(wells[20].image_path))
    changed = [pair(change(pixels)) for change in CHANGES.values()]
    found = near_duplicates([*wells, *changed])
    assert [(copy.a, copy.b) for copy in found] == [
        (20, len(wells) + i) for i in range(len(changed))
    ]


@pytest.mark.slow
def test_real_slices_of_one_embryo(data_root: Path) -> None:
    pairs = of_folder(data_root / "nuclei")
    names = [(pairs[copy.a].name[:8], pairs[copy.b].name[:8]) for copy in near_duplicates(pairs)]
    assert names == [("20b20ab0", "cb4df20a")]


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (31, 33), (500, 7)])
def test_thumbnail_of_any_size(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    thumb = image_facts(pixels).thumbnail
    if shape == (1, 1):
        assert thumb is None
    else:
        assert thumb is not None
        values = thumb.astype(np.float64)
        np.testing.assert_allclose((values.mean(), np.linalg.norm(values)), (0, 1), atol=1e-3)


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
    text = Advice(1.0, 64, 1, 1, 1, settings, 9.0).yaml("head\nof it: x")
    assert yaml.safe_load(text) == {"a": value, "stage1": {"b": value}}
    assert text.startswith("# head\n# of it: x\n")
