"""Timing: jobs take turns, ratios are those of the seconds, and every stage is there."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from spatialembed.command import bench, main
from spatialembed.command.bench import Ratio, in_turns, machine, ratio, timed
from spatialembed.errors import SpatialEmbedError, missing_extra
from spatialembed.images.write import write_png
from spatialembed.inference.model_file import ModelInfo, save
from spatialembed.inference.predict_folder import predict_folder
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import Normalization

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    info = ModelInfo(("thing",), True, Normalization(), ClusterOptions())
    return save(tmp_path_factory.mktemp("models") / "m", SpatialEmbeddingNet(1), info)


def test_jobs_take_turns_after_one_run_each(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    seconds = in_turns({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, 3)
    assert "".join(ran) == "ab" * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_seconds_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((10.0, 12.5))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert timed(lambda: "done") == (2.5, "done")


def test_ratio_pairs_the_rounds() -> None:
    assert ratio([8, 2, 9], [2, 1, 3]) == Ratio(3, 2, 4)
    assert str(ratio([1.0, 2.0], [2.0, 2.0])) == "0.75 (0.50 to 1.00)"
    with pytest.raises(ValueError, match="zip"):
        ratio([1, 2], [1])


def test_machine_is_described() -> None:
    said = machine()
    assert said["processor"]
    assert said["cores"] >= 1
    assert said["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "openvino-of-another-name" not in said["packages"]
    assert json.loads(json.dumps(said)) == said


@pytest.mark.slow
def test_every_stage_at_every_size(model: Path, tmp_path: Path) -> None:
    report = bench.bench(
        model,
        sizes=[(16, 24), (8, 8)],
        engines=["torch:float32", "torch:bfloat16"],
        rounds=2,
        device="cpu",
    )
    stages = ["read", "normalise", "network torch:float32", "network torch:bfloat16", "cluster"]
    expected = [(size, stage) for size in ("16x24", "8x8") for stage in (*stages, "write")]
    assert [(row.size, row.stage) for row in report.rows] == expected
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in report.rows)
    assert {row.stage for row in report.rows if row.faster} == {"network torch:bfloat16"}
    assert set(report.starts) == {"torch:float32", "torch:bfloat16"}
    assert report.table().row_count == len(report.rows)
    stored = json.loads(report.write(tmp_path / "new").read_text())
    assert [row["seconds"] for row in stored["rows"]] == [row.seconds for row in report.rows]


def test_engines_that_are_not_installed_are_left_out(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = bench.load

    def without(path: Path, *, engine: str, **settings: object) -> object:
        if engine == "openvino":
            raise missing_extra("openvino", "openvino", "this engine")
        return load(path, engine=engine, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "load", without)
    report = bench.bench(model, sizes=[(8, 8)], engines=["torch", "openvino"], rounds=1)
    assert not any("openvino" in row.stage for row in report.rows)
    assert "openvino is left out" in caplog.text
    with pytest.raises(SpatialEmbedError, match="no_engine"):
        bench.bench(model, sizes=[(8, 8)], engines=["openvino"], rounds=1)


def test_bad_settings(model: Path) -> None:
    with pytest.raises(SpatialEmbedError, match="bad_setting") as caught:
        bench.bench(model, rounds=0)
    assert caught.value.exit_code == 2
    with pytest.raises(SpatialEmbedError, match="unknown_engine"):
        bench.bench(model, engines=["abacus"])


def test_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--model", str(model), "--sizes", "8,8x16", "--engines", "torch:float32"]
    words += ["--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main.main(words) == 0
    assert "normalise" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 2 * 5
    assert main.main([*words, "--sizes", "8xq"]) == 2


# ---------------------------------------------------------------- the scripts of benchmarks/


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_loss_of_the_benchmark_is_ours(
    benchmark: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    """Written there as the equations stand, it gives the value and the gradient of the package."""
    script = benchmark("loss")
    script.agree(*script.training_scene(96, 6))
    assert "gradients agree" in capsys.readouterr().out
    disks = script.disks(128, 10, 0.2)
    assert disks.labels.unique().tolist() == list(range(11))
    assert float((disks.labels > 0).float().mean()) == pytest.approx(0.2, abs=0.02)


def test_pixels_that_differ_do_not_depend_on_numbers(
    benchmark: Callable[[str], ModuleType],
) -> None:
    differing = benchmark("end_to_end").differing
    truth = np.array([[1, 1, 0, 2, 2, 2, 0, 0, 3, 3]], np.int32)
    other = np.array([[2, 2, 0, 1, 1, 0, 0, 0, 3, 3]], np.int32)
    assert differing(truth, truth) == 0
    assert differing(other, truth) == pytest.approx(0.1)
    assert differing(np.zeros_like(truth), truth) == pytest.approx(0.7)


def test_page_is_renewed_between_its_markers(
    benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report, run = benchmark("report"), benchmark("run")
    for module in (report, run):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["loss.py"])  # the command stands on the page
    page = "before\n<!-- loss -->\nold\n<!-- /loss -->\nafter\n"
    assert run.renewed(page) == page
    report.finish("loss", [report.Table("T", ["a", "b"], [["x", "1.0"]])])
    renewed = run.renewed(page)
    assert "old" not in renewed
    assert "| x | 1.0 |\n" in renewed
    assert renewed.startswith("before\n")
    assert renewed.endswith("after\n")
    assert run.renewed(renewed) == renewed


@pytest.mark.parametrize(
    ("name", "device"),
    [("gpu", "G100"), ("folder_cuda", "G100"), ("folder_cpu", "P5"), ("sizes", "P5")],
)
def test_page_names_the_device_that_was_timed(
    benchmark: Callable[[str], ModuleType], name: str, device: str
) -> None:
    where = {"gpu": "G100", "processor": "P5", "threads": 2, "flags": []}
    one = {"name": name, "command": "python x.py", "machine": where, "tables": []}
    assert f"on {device}, 2 threads" in "".join(benchmark("run").markdown(one))


def test_parts_of_a_folder_are_those_of_the_command(
    benchmark: Callable[[str], ModuleType], model: Path, tmp_path: Path
) -> None:
    """Done one after another they write what the command writes, the shared files once."""
    rng = np.random.default_rng(0)
    paths = [
        write_png(tmp_path / "in" / f"{i}.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
        for i in range(3)
    ]
    predictor = bench.load(model, device="cpu", engine="torch")
    parts = benchmark("folder").parts_of(predictor, paths, tmp_path / "parts", 2)
    for part in parts.values():
        part()
    predict_folder(predictor, [tmp_path / "in"], tmp_path / "whole", batch=2, progress=False)
    written = [
        {p.name: p.read_bytes() for p in (tmp_path / side).iterdir()} for side in ("parts", "whole")
    ]
    assert len(written[1]) == 2 * 3 + 3  # the mark of a folder of results too
    assert written[0] == written[1]


def test_every_benchmark_has_its_place_on_the_page(
    benchmark: Callable[[str], ModuleType],
) -> None:
    page = (BENCHMARKS.parent / "docs" / "speed.md").read_text()
    for name in benchmark("run").SCRIPTS:
        assert (BENCHMARKS / f"{name}.py").exists()
        by_device = name in ("training_step", "folder", "loader")
        markers = [f"{name}_cpu", f"{name}_cuda"] if by_device else [name]
        for marker in markers:
            assert page.count(f"<!-- {marker} -->") == page.count(f"<!-- /{marker} -->") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu_is_said_plainly(
    benchmark: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    benchmark("gpu").main()
    assert capsys.readouterr().out == "no CUDA device\n"
