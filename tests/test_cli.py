"""The command line: every verb from end to end, every fault one line and its exit code."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import numpy as np
import pytest
import tifffile
import torch
import yaml
from docstring_parser import parse_from_object
from PIL import Image

import spatialembed
from spatialembed.command import arguments, main
from spatialembed.command.options import EvaluateOptions
from spatialembed.data.folder import open_folder
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import model_file, predict_folder, predictor
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.options import DataOptions, DeviceOptions
from spatialembed.training.options import TrainOptions

TINY = [
    "--stage1.crop=64",
    "--stage1.epochs=1",
    "--stage1.batch=2",
    "--workers=0",
    "--device=cpu",
    "--precision=float32",
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes of 64 x 72 px in three groups."""
    out = tmp_path_factory.mktemp("data") / "few"
    words = [
        "data",
        "scenes",
        "--kind",
        "shapes",
        "--images",
        "6",
        "--size",
        "64x72",
        "--seed",
        "1",
        "--out",
    ]
    assert main.main([*words, str(out)]) == 0
    rows = "\n".join(f"shapes_{i:05d},{'abc'[i // 2]}" for i in range(6))
    (out / "index.csv").write_text(f"image,mosaic\n{rows}\n")
    return out


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of one epoch."""
    out = tmp_path_factory.mktemp("runs")
    words = ["train", "--data", str(scenes), "--out", str(out), "--group-by", "mosaic", *TINY]
    assert main.main(words) == 0
    return out / "few"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, which finds nothing."""
    torch.manual_seed(0)
    silent = model_file.ClusterOptions(start=1.0)
    info = model_file.ModelInfo(("object",), True, model_file.Normalization(), silent)
    return model_file.save(tmp_path_factory.mktemp("m") / "model", SpatialEmbeddingNet(1), info)


def failed(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> str:
    """What a command that fails with this exit code says: one line on standard error, but news."""
    capsys.readouterr()
    assert main.main(words) == code
    said = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in said if not line.startswith("info ")]
    assert len(lines) == 1, lines
    return lines[0]


# ---------------------------------------------------------------- verbs


def test_scenes(scenes: Path) -> None:
    dataset = open_folder(scenes)
    assert len(dataset) == 6
    assert dataset[0].image.shape == (64, 72)
    assert all(len(dataset[i].target.classes) for i in range(6))


def test_a_foreign_launcher_silences_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main.main(["data", "scenes", "--images=1", "--size=32", "--out", str(tmp_path)]) == 0
    assert "1 images and masks" in capsys.readouterr().out


def test_train(run: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["group_by"] == "mosaic"
    assert settings["stage1"]["crop"] == 64
    _, info = model_file.load(run / "model")
    assert info.class_names == ("object",)
    assert (run / "curves.png").is_file()


@pytest.mark.slow
def test_a_run_says_where_it_lies_and_gets_a_new_name(
    scenes: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(scenes), "--out", str(run.parent), *TINY]
    assert main.main(words) == 0
    assert str(run.parent / "few-2" / "model") in capsys.readouterr().out
    assert (run.parent / "few-2" / "model" / "model.json").is_file()


def test_evaluate(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--model", str(run / "model"), "--data", str(scenes), "--device", "cpu"]
    assert main.main([*words, "--split", "all", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "AP, image mean" in said
    assert "0.50" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["images"], report["sampling"]) == (6, "seed")
    assert (tmp_path / "worst.html").is_file()


@pytest.mark.parametrize("verb", ["evaluate", "tune"])
def test_an_engine_is_chosen_by_the_length_of_the_job(
    model: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def stop(model: str, options: object, pixels: float, *_: object) -> NoReturn:
        raise SpatialEmbedError("stopped", f"{pixels:.0f} px", "go on")

    monkeypatch.setattr(predictor, "load_for", stop)
    options = {
        "evaluate": main.EvaluateOptions(model=str(model), data=str(scenes)),
        "tune": main.TuneOptions(model=str(model), data=str(scenes), out=str(tmp_path / "m")),
    }[verb]
    with pytest.raises(SpatialEmbedError, match=f"{6 * 64 * 72} px"):
        main.VERBS[verb].run(options)


def test_evaluate_with_true_centres(model: Path, scenes: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--model", str(model), "--data", str(scenes), "--sampling", "truth"]
    assert main.main([*words, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["sampling"] == "truth"


def evaluated(scenes: Path, **settings: Any) -> list[str]:
    return main._dataset(EvaluateOptions(model="m", data=str(scenes), **settings)).names


def test_evaluate_on_what_training_held_out(scenes: Path) -> None:
    from spatialembed.training.train import open_split

    options = TrainOptions(data=str(scenes), group_by="mosaic", val_fraction=0.3, seed=4)
    train_set, val_set = open_split(options)
    same: Any = {"group_by": "mosaic", "val_fraction": 0.3, "seed": 4}
    assert evaluated(scenes, **same) == list(val_set.names)
    assert evaluated(scenes, split="val", **same) == list(val_set.names)
    assert evaluated(scenes, split="train", **same) == list(train_set.names)
    assert len(evaluated(scenes)) == 6


def test_evaluate_on_a_named_part(scenes: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for folder in ("images", "masks"):
            (tmp_path / part / folder).symlink_to(scenes / folder)
    assert len(evaluated(tmp_path, split="test")) == 6
    with pytest.raises(SpatialEmbedError, match=r"in parts, and none is named .*train, test"):
        evaluated(tmp_path)
    with pytest.raises(SpatialEmbedError, match="no_split"):
        evaluated(scenes, split="test")


def test_predict(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(scenes / "images"), "--model", str(run / "model"), "--device", "cpu"]
    assert main.main([*words, "--out", str(tmp_path), "--start", "0.3", "--min-pixels=4"]) == 0
    with (tmp_path / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert f"{len(rows)} objects in 6 images" in capsys.readouterr().out
    labels = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*_labels.png"))]
    assert len(labels) == 6
    assert sum(int(array.max()) for array in labels) == len(rows)


def test_predict_goes_on_after_a_bad_input(
    model: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = scenes / "images" / "shapes_00000.png"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    words = ["predict", str(bad), str(good), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main.main(words) == 6
    said = capsys.readouterr()
    assert re.search(r"^error empty_file: .*bad\.png", said.err, re.MULTILINE)
    assert "0 objects in 1 image, 1 failed" in said.out
    assert (tmp_path / "out" / "shapes_00000_labels.png").is_file()
    assert main.main([*words[:2], *words[3:]]) == 3  # nothing but the bad one


def test_predict_takes_every_page_up_to_the_limit(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--pages and --max-pixels reach the reader; tifffile's own words on a broken file do not."""
    pages = np.zeros((3, 30, 40), np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    (tmp_path / "broken.tif").write_bytes((tmp_path / "stack.tif").read_bytes()[:150])
    words = ["predict", str(tmp_path), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main.main([*words, "--pages", "all", "--max-pixels=1200"]) == 6
    said = capsys.readouterr()
    assert "0 objects in 3 images, 1 failed" in said.out
    assert [line.split(":")[0] for line in said.err.splitlines() if "broken" in line] == [
        "error truncated"
    ]
    assert main.main([*words, "--pages", "all", "--max-pixels=1199"]) != 0
    assert capsys.readouterr().err.count("too_large") == 3


def test_a_warning_is_one_line(
    model: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "named.tif"
    wrong.write_bytes((scenes / "images" / "shapes_00000.png").read_bytes())
    assert main.main(["predict", str(wrong), "--model", str(model), "--out", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "named.tif" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning ")


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = SpatialEmbeddingNet(1, elliptical=False)
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 1, "model_state_dict": state}, tmp_path / "car.pth")
    assert main.main(["convert", str(tmp_path / "car.pth"), str(tmp_path / "car")]) == 0
    assert "NC" in capsys.readouterr().out
    loaded, _ = model_file.load(tmp_path / "car")
    name = "encoder.initial_block.conv.weight"
    assert torch.equal(loaded.state_dict()[name], net.state_dict()[name])


def test_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[Any] = []
    monkeypatch.setattr(
        "spatialembed.command.demo.demo", lambda out, seed: called.append((out, seed))
    )
    monkeypatch.setattr(
        "spatialembed.command.demo.train_demo",
        lambda out, name, seed: called.append((out, name, seed)),
    )
    assert main.main(["demo", "--out", str(tmp_path)]) == 0
    assert main.main(["demo", "--train", "--seed", "4", "--out", str(tmp_path)]) == 0
    assert called == [(tmp_path, 0), (tmp_path, "shapes", 4)]


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("train --data d --stage1.epoch 3", "nearest is --stage1.epochs", id="TRN-18"),
        pytest.param("train --data d --epochs 3", "nearest is --stage1.epochs", id="last part"),
        pytest.param("train --data d --max-tim 3", "nearest is --max-time", id="dashes"),
        pytest.param("predict a --augmnt --out o --model m", "nearest is --augment", id="bare"),
        pytest.param("trian --data d", "nearest is spatialembed train", id="verb"),
        pytest.param("pedict a/images", "nearest is spatialembed predict", id="verb and path"),
        pytest.param("foo", "see spatialembed --help", id="no verb like it"),
        pytest.param(
            "bench --image a.png", "see spatialembed bench --help", id="no setting like it"
        ),
        pytest.param("data scene --out o", "nearest is spatialembed data scenes", id="two words"),
        pytest.param("train --data d --stage1.epochs few", "few", id="type"),
        pytest.param("train --data d --center middle", "learnable", id="choice"),
        pytest.param("train --data d --stage1.crop 3", "crop is 3", id="range"),
        pytest.param("train --data d --stage1.batch 3 --devices 2", "batch is 3", id="TRN-04"),
        pytest.param("train --data d --augment.blur 90", "blur is 90", id="blur"),
        pytest.param("train --data d --normalization.low 99.9", "percentiles 99.9", id="percents"),
        pytest.param("train --data d --normalization.std [1,0,1]", "std is (1", id="std"),
        pytest.param("train", "--data", id="no data"),
        pytest.param("train --data", "--data: expected one argument", id="no value"),
        pytest.param("train --data d more", "more", id="too many words"),
        pytest.param("evaluate --model m", "data", id="missing"),
        pytest.param("predict --model m --out o", "required: sources", id="no source"),
        pytest.param("predict --model m a.png", "required: --out", id="no out"),
        pytest.param("train --stage1.epochs many", "stage1.epochs", id="type and key"),
        pytest.param("train --center middle", "centroid", id="choices"),
        pytest.param("data scenes --out o --size big", "size is big", id="size"),
        pytest.param("data scenes --out o --size 0x9", "size is 0x9", id="no size"),
        pytest.param("train --data d --config nowhere", "error bad_config: ", id="no config"),
    ],
)
def test_usage_faults(words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = failed(capsys, words.split(), 2)
    assert line.startswith("error ")
    assert expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("stage1: {epoch: 3}", "nearest is stage1.epochs", id="TRN-18"),
        pytest.param("centre: learnable", "nearest is center", id="top"),
        pytest.param("stage1: {epochs: few}", "few", id="type"),
        pytest.param("- a\n- b", "error bad_config: ", id="list"),
        pytest.param("a: [", "error bad_config: ", id="no YAML"),
        pytest.param("", "error bad_config: ", id="empty"),
    ],
)
def test_faults_in_yaml(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    line = failed(capsys, ["train", "--data", "d", "--config", str(path)], 2)
    assert expected in line


def test_other_faults_have_their_codes(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_model = ["evaluate", "--model", str(tmp_path / "none"), "--data", str(scenes)]
    assert failed(capsys, no_model, 4).startswith("error no_model: ")
    no_data = ["train", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "runs"), *TINY]
    assert failed(capsys, no_data, 3).startswith("error not_found: ")
    no_file = ["convert", str(tmp_path / "none"), str(tmp_path / "out")]
    assert failed(capsys, no_file, 3).startswith("error not_found: ")


@pytest.mark.parametrize(
    ("fault", "code", "expected"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 5, "error out_of_memory: "),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 5, "error disk_full: f: No space"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 3, "error system: f: Perm"),
        (SpatialEmbedError("odd", "a\nb\x1b[2J", "do"), 3, "error odd: a\\nb\\x1b[2J (do)"),
    ],
)
def test_faults_of_the_machine(
    fault: BaseException,
    code: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise fault

    monkeypatch.setattr(predict_folder, "job_pixels", fail)
    assert failed(capsys, ["predict", "a", "--model", "m", "--out", "o"], code).startswith(expected)


def test_a_missing_input_is_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(predictor, "load_for", lambda *_: pytest.fail("loaded"))
    command = ["predict", str(tmp_path / "gone"), "--model", "nuclei", "--out", str(tmp_path / "o")]
    assert "not_found" in failed(capsys, command, 3)


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(predict_folder, "job_pixels", fail)
    with pytest.raises(ZeroDivisionError):
        main.main(["predict", "a", "--model", "m", "--out", "o"])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_in_a_finaliser_is_not_lost(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Falling:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def wait(*_: Any, **__: Any) -> None:
        Falling()
        time.sleep(20)
        pytest.fail("the signal was lost")

    monkeypatch.setattr(predict_folder, "job_pixels", wait)
    assert main.main(["predict", "a", "--model", "m", "--out", "o"]) == code


def test_sigterm_unwinds(monkeypatch: pytest.MonkeyPatch) -> None:
    unwound = []

    def wait(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            unwound.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(predict_folder, "job_pixels", wait)
    assert main.main(["predict", "a", "--model", "m", "--out", "o"]) == 143
    assert unwound
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_says_how_to_go_on(
    number: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from spatialembed.training import train

    def stop(_: TrainOptions) -> NoReturn:
        raise train.Interrupted(number)

    monkeypatch.setattr(train, "train", stop)
    line = failed(capsys, ["train", "--data", "d/cells", "--out", str(tmp_path)], code)
    assert f"spatialembed train --resume {tmp_path / 'cells'}" in line
    line = failed(capsys, ["train", "--resume", str(tmp_path / "old")], code)
    assert f"spatialembed train --resume {tmp_path / 'old'}" in line


def test_a_missing_extra_is_named() -> None:
    """In a process of its own: modules taken out here would come back as other objects."""
    code = (
        "import sys\n"
        "sys.modules['lightning'] = None\n"
        "from spatialembed.command.main import main\n"
        "sys.exit(main(['train', '--data', 'd']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "missing_extra" in run.stderr
    assert "spatialembed[train]" in run.stderr


# ---------------------------------------------------------------- settings


def test_print_config_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "train",
        "--data",
        "d",
        "--stage1.epochs",
        "7",
        "--augment.zoom",
        "[0.5,2]",
        "--group-by=mosaic",
    ]
    assert main.main([*words, "--max_time", "3", "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(printed)
    assert main.main(["train", "--config", str(tmp_path / "mine.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    settings = yaml.safe_load(printed)
    assert settings["stage1"]["epochs"] == 7
    assert settings["augment"]["zoom"] == [0.5, 2]
    assert (settings["group_by"], settings["max_time"]) == ("mosaic", 3)


def parsed(kind: type, *words: str, positional: str = "") -> Any:
    return arguments.parse(kind, words, verb="v", help="", positional=positional)


def test_dashes_underscores_and_bare_flags() -> None:
    for flag in ("--max-time=3", "--max_time=3"):
        assert parsed(TrainOptions, "--data=d", flag).max_time == 3
    base = ("a", "b", "--out=o", "--model=m")
    for words, expected in (
        ((), False),
        (("--augment",), True),
        (("--augment", "true"), True),
        (("--augment", "false"), False),
        (("--augment=false",), False),
        (("--augment", "--batch", "2"), True),
    ):
        options = parsed(main.PredictOptions, *base, *words, positional="sources")
        assert options.augment is expected
        assert options.sources == ["a", "b"]


@pytest.mark.parametrize("words", [["d"], ["--data", "d"], ["--timing=false", "--data=d"]])
def test_the_word_alone_may_have_its_name(words: list[str]) -> None:
    """The doctor takes --data as train does."""
    assert parsed(main.DoctorOptions, *words, positional="data").data == "d"


def test_a_word_alone_is_the_data() -> None:
    for words in (["DIR"], ["--stage1.epochs", "3", "DIR"], ["--data", "DIR"]):
        assert arguments.parse(TrainOptions, words, verb="train", help="").data == "DIR"
    for words in (["A", "B"], ["A", "--data", "B"], ["--data=B", "A"]):
        with pytest.raises(SpatialEmbedError, match=r"bad_setting.*[AB] and [AB]: one data set"):
            arguments.parse(TrainOptions, words, verb="train", help="")


def test_negative_numbers_and_names_with_a_dash() -> None:
    with pytest.raises(SpatialEmbedError, match="seed is -3"):
        parsed(TrainOptions, "--data=d", "--seed", "-3")
    words = ("--out=o", "--model=m", "--", "-x.png", "--y.png")
    assert parsed(main.PredictOptions, *words, positional="sources").sources == [
        "-x.png",
        "--y.png",
    ]


def documented(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    hints = get_type_hints(kind)
    parts = reversed(kind.__mro__[:-1])
    texts = {p.arg_name: p.description for part in parts for p in parse_from_object(part).params}
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from documented(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, texts[field.name]


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("verb", list(main.VERBS))
def test_help_lists_every_setting_with_its_docstring(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*verb.split(), "--help"]) == 0
    shown = bare(capsys.readouterr().out)
    assert bare(main.VERBS[verb].help) in shown
    for name, text in documented(main.VERBS[verb].settings()):
        assert f"--{name.replace('_', '-')}" in shown or name in main.VERBS[verb].positional, name
        assert text, name
        assert bare(text) in shown, name


@pytest.mark.parametrize("name", ["stage1.epochs", "val_fraction", "normalization.kind"])
def test_nearest_to_a_slip(name: str) -> None:
    for slip in (name[:-1], name[1:]):
        with pytest.raises(SpatialEmbedError, match=re.escape(name.replace("_", "-"))) as caught:
            parsed(TrainOptions, "--data=d", f"--{slip}", "1")
        assert caught.value.code == "unknown_setting"


def test_settings_that_verbs_share_are_one_flat_tree(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "DIR", "--model=m", "--group-by=g", "--threads=2", "--plain-ids"]
    assert main.main([*words, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    options = parsed(EvaluateOptions, *words[1:])
    assert printed == {f.name: getattr(options, f.name) for f in fields(EvaluateOptions)}
    assert (printed["data"], printed["group_by"], printed["threads"]) == ("DIR", "g", 2)
    assert isinstance(options, DataOptions)
    assert isinstance(options, DeviceOptions)


# ---------------------------------------------------------------- the process


def python(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    source = Path(spatialembed.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(source)}
    return subprocess.run(
        [sys.executable, *words], env=environment, text=True, check=False, **settings
    )


def test_version() -> None:
    done = python("-m", "spatialembed", "--version", capture_output=True)
    assert (done.returncode, done.stdout) == (0, f"spatialembed {spatialembed.__version__}\n")


def test_usage_is_quick() -> None:
    program = (
        "import sys; from spatialembed.command.main import main; assert main(['--help']) == 0; "
        "print(sorted({'torch', 'jsonargparse', 'lightning'} & set(sys.modules)))"
    )
    done = python("-c", program, capture_output=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(verb in done.stdout for verb in main.VERBS)


def test_no_verb_is_a_usage_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_a_reader_that_has_gone_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = python("-m", "spatialembed", "--help", stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_text_that_the_output_cannot_encode_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    folder = tmp_path / "核"
    assert main.main(["data", "scenes", "--images=1", "--size=64", f"--out={folder}"]) == 0
    words = [str(folder / "核.png"), "--model=nuclei", "--device=cpu", f"--out={tmp_path / 'out'}"]
    assert main.main(["predict", *words]) == 3
    for stream in (out, err):
        stream.flush()
        assert rb"\u6838" in stream.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", ["demo", "data scenes", "data streets"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(
    verb: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the work began")

    for function in (
        "command.demo.demo", "generated.nuclei_and_shapes.write_folder",
        "generated.streets.write_streets",
    ):  # fmt: skip
        monkeypatch.setattr(f"spatialembed.{function}", work)
    (tmp_path / "file").touch()
    assert main.main([*verb.split(), "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.startswith("error not_writable: ")
