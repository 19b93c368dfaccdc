"""The doctor tells which channel carries the objects: known scenes, names, numbers, doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from drawn_labels import discs
from spatialembed.doctor.channel_contrast import brighter
from spatialembed.doctor.doctor import Diagnosis, doctor, examine
from spatialembed.images.write import write_png
from spatialembed.options import DataOptions

SIDE = 64


def data_set(root: Path, carrier: int | None, *, sign: int = 1, **how: Any) -> Path:
    """Twelve images of three channels, discs in one of them; noise of other ranges in the rest."""
    labels = discs(SIDE, [(16, 16), (16, 46), (46, 30)], 8).astype(np.uint16)
    (root / "images").mkdir(parents=True)
    for i in range(12):
        rng = np.random.default_rng(i)
        pixels = rng.normal(0, 1, (3, SIDE, SIDE)) * [[[9]], [[900]], [[40]]] + 5000
        if carrier is not None:
            pixels[carrier] += sign * 3 * [9, 900, 40][carrier] * (labels > 0)
        tifffile.imwrite(
            root / "images" / f"{i}.tif", pixels.astype(np.uint16), photometric="minisblack", **how
        )
        write_png(root / "masks" / f"{i}.png", labels)
    return root


def named(names: list[str]) -> dict[str, Any]:
    return {"ome": True, "metadata": {"axes": "CYX", "Channel": {"Name": names}}}


def finding(result: Diagnosis) -> Any:
    return next((f for f in result.findings if f.code == "several_channels"), None)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("carrier", [0, 1, 2])
def test_the_channel_of_the_objects_is_found(carrier: int, sign: int, tmp_path: Path) -> None:
    names = ["DAPI", "Cell mask", "x"]
    data = data_set(tmp_path / "d", carrier, sign=sign, **named(names))
    result = examine(data, progress=False)
    seen = result.survey.channels
    assert seen is not None
    assert (seen.channel, seen.best) == (names[carrier], carrier)
    # Two normal distributions 3 apart: P = Phi(3 / sqrt 2)
    assert seen.contrast[carrier] == pytest.approx(0.983, abs=0.01)
    assert max(c for i, c in enumerate(seen.contrast) if i != carrier) < 0.55
    found = finding(result)
    assert found.grade == "warning"
    assert f"most in channel {carrier + 1} {names[carrier]}, from 98%" in found.text
    assert "--channel" in found.remedy
    assert found.cases[0].startswith(f"channel {carrier + 1} {names[carrier]}: 98%")
    assert not [f for f in result.findings if f.code == "read_warning"]  # no first page is taken


def test_recommended_yaml_has_it(tmp_path: Path) -> None:
    data = data_set(tmp_path / "d", 1)  # pages without names
    doctor(data, tmp_path / "out", timing=False, progress=False)
    settings = yaml.safe_load((tmp_path / "out" / "recommended.yaml").read_text())
    assert settings["channel"] == 2
    assert "stand out most in it: channel 2: 98%" in (tmp_path / "out/recommended.yaml").read_text()


def test_no_channel_stands_out(tmp_path: Path) -> None:
    result = examine(data_set(tmp_path / "d", None), progress=False)
    assert "stand out in none" in finding(result).text
    assert result.survey.reading.channel is None


def test_a_channel_that_was_named_is_not_questioned(tmp_path: Path) -> None:
    data = data_set(tmp_path / "d", 1)
    result = examine(data, DataOptions(channel=3), progress=False)
    assert finding(result) is None
    assert result.survey.reading.channel == 3


def test_colours_and_grey_are_left_alone(tmp_path: Path) -> None:
    labels = discs(SIDE, [(16, 16), (46, 30)], 8).astype(np.uint16)
    for i in range(3):
        rng = np.random.default_rng(i)
        rgb = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
        write_png(tmp_path / "images" / f"{i}.png", rgb)
        tifffile.imwrite(tmp_path / "images" / f"t{i}.tif", rgb, photometric="rgb")
        for name in (f"{i}", f"t{i}"):
            write_png(tmp_path / "masks" / f"{name}.png", labels)
    assert examine(tmp_path, progress=False).survey.channels is None


def test_share_of_pairs() -> None:
    values = np.array([1, 5, 5, 2, 7])
    inside = np.array([False, True, False, False, True])
    pairs = [(a, b) for a in values[inside] for b in values[~inside]]
    share = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    assert brighter(values, inside) == pytest.approx(share)
