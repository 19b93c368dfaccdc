"""The bookkeeping of the ablations: a run of a few steps, its score, the page made of such runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from spatialembed.training.options import StageOptions
from spatialembed.types import Embeddings, Target

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_on_path() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def ablation() -> ModuleType:
    import ablation

    return ablation


@pytest.fixture
def page() -> ModuleType:
    import ablation_page

    return ablation_page


@pytest.mark.slow
def test_a_run_from_streets_to_score(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "VALIDATION", 1)
    plan = ablation.Plan(
        size_hw=(64, 128),
        images=3,
        held_out=2,
        classes="car",
        stage1=StageOptions(crop=32, epochs=1, batch=2, crops=2),
        stage2=StageOptions(crop=32, epochs=1, batch=2, crops=2, freeze_batchnorm=True),
        margin=8,
        min_pixels=8,
    )
    name = "fixed + centroid"
    ablation.make_streets(plan, tmp_path)
    ablation.one_run(plan, tmp_path, name, 0, "cpu")
    (run,) = ablation.collected(tmp_path)
    assert (run["configuration"], run["seed"], run["classes"]) == (name, 0, ["car"])
    for stage in ("stage1", "stage2"):
        assert np.array(run[stage]["truth"], float).shape == (1, 10)
        assert np.array(run[stage]["seed"], float).shape == (1, 10)
    areas, margins = np.array(run["objects"])[:, 0], np.array(run["objects"])[:, 3:]
    assert areas.min() >= 100
    assert margins == pytest.approx(np.full((len(areas), 1), 8), rel=0.02)  # bfloat16, maybe


def test_margins_are_those_of_the_mean_over_the_object(ablation: ModuleType) -> None:
    raw = torch.full((1, 2, 20, 30), 0.3)
    raw[:, 0, 2:12, 5:17] = 0.9
    raw[:, 1, 2:12, 5:11] = 0.7
    raw[:, 1, 2:12, 11:17] = 0.8
    labels = torch.zeros(20, 30, dtype=torch.int32)
    labels[2:12, 5:17] = 1
    labels[15, :9] = 2  # too small to count
    nothing = torch.zeros(1, 2, 20, 30)
    maps = Embeddings(nothing, raw, nothing)
    target = Target(labels, torch.tensor([0, 0]), torch.zeros(20, 30, dtype=torch.bool))
    (row,) = ablation.margins(maps, target)
    expected = [1024 * np.sqrt(np.log(2) / np.exp(10 * r)) for r in (0.9, 0.75)]
    assert row[:3] == [120, 12, 10]
    assert row[3:] == pytest.approx(expected, rel=1e-3)


def test_runs_come_seed_by_seed(ablation: ModuleType) -> None:
    assert ablation.wanted(["a", "b"], [0, 1]) == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    folders = {ablation.run_folder(Path(), *run) for run in ablation.wanted(["a", "b + c"], [0, 1])}
    assert len(folders) == 4


def fake_run(name: str, seed: int, ap: float) -> dict[str, Any]:
    """A run whose AP is ``ap`` at each IoU, in its one class that occurs."""
    table = [[ap] * 10, [None] * 10]
    stages = {stage: {"truth": table, "seed": table} for stage in ("stage1", "stage2")}
    margins = [5.0, 6.0] if name.startswith("elliptical") else [5.0]
    objects = [[100.0 + k, 10.0 + k, 10.0, *margins] for k in range(12)]
    return {
        "configuration": name,
        "seed": seed,
        "classes": ["car", "bus"],
        "objects": objects,
        "minutes": 1.0,
    } | stages


def test_the_page_says_what_the_runs_say(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "DOCS", tmp_path)
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "ablation.md").write_text("before\n<!-- small -->\nold\n<!-- /small -->\nafter\n")
    figures = {
        "fixed + centroid": (0.2, 0.1, 0.3),
        "circular + centroid": (0.3, 0.2, 0.4),
        "circular + learnable": (0.2, 0.1, 0.3),
        "elliptical + centroid": (0.4, 0.1, 0.5),
    }
    runs = [fake_run(n, s, ap) for n, three in figures.items() for s, ap in enumerate(three)]
    page.renew("small", {"margin": 16}, runs)
    text = (tmp_path / "ablation.md").read_text()
    assert text.startswith("before\n<!-- small -->\n")
    assert text.endswith("<!-- /small -->\nafter\n")
    assert "old" not in text
    assert "| fixed + centroid | 20.0 ± 10.0 | 20.0 ± 10.0 |" in text
    yes, mixed, no = "+10.0, +10.0, +10.0", "+10.0, -10.0, +10.0", "-10.0, -10.0, -10.0"
    assert f"circular + centroid over fixed + centroid | +10.7 | {yes} | yes, by each" in text
    assert (
        f"elliptical + centroid over circular + centroid | +0.4 | {mixed} | no: the seeds" in text
    )
    assert f"circular + learnable over circular + centroid | +0.8 | {no} | no: the opposite" in text
    assert "elliptical + learnable over" not in text  # not run
    written = json.loads((tmp_path / "ablation_small.json").read_text())
    assert len(written["runs"]) == 12
    assert not any("objects" in run for run in written["runs"])
    for name in ("ap", "margin"):
        assert (tmp_path / "images" / f"ablation_small_{name}.png").stat().st_size > 10_000


def test_a_finished_run_is_not_repeated(ablation: ModuleType, tmp_path: Path) -> None:
    runs = ablation.wanted(["circular + centroid", "circular + learnable"], [0, 1])
    done = ablation.run_folder(tmp_path, *runs[2])
    done.mkdir()
    (done / "score.json").write_text("{}")
    assert ablation.unfinished(tmp_path, runs) == [runs[0], runs[1], runs[3]]


def test_a_page_of_no_run_is_left_as_it_is(
    page: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page.renew("small", {}, [])
    assert "no run is finished" in capsys.readouterr().out
