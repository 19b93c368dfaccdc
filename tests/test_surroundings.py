"""Faults of the surroundings: each command ends with its line and code, earlier results intact."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spatialembed.command import main


def slow(command: list[str]) -> Any:
    """One that loads a model before it writes."""
    return pytest.param(command, marks=pytest.mark.slow)


def named(command: list[str]) -> str:
    return f"{command[0]} {command[-1]}"


LONG_NAME = "b" * 300
LONG_PATH = "/".join(["b" * 100] * 45)  # above 4,096 bytes
NOWHERE = "/proc/none"  # nobody may write there, not even root
PLACES = [NOWHERE, LONG_NAME, LONG_PATH, "data/images/0.png/out"]
FAST = ["--device", "cpu"]
PREDICT = ["predict", "data/images", "--model", "shapes", "--engine", "torch", *FAST]
EVALUATE = ["evaluate", "--model", "shapes", "--data", "data", "--engine", "torch", *FAST]

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a place without writing")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Five images of 48 px with a square each, below the working folder."""
    root = tmp_path / "data"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    mask = np.zeros((48, 48), np.uint8)
    mask[10:30, 10:30] = 1
    for n in range(5):
        Image.fromarray(mask * 180 + np.uint8(n)).save(root / "images" / f"{n}.png")
        Image.fromarray(mask).save(root / "masks" / f"{n}.png")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    yield root
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ends(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and the one line that says error."""
    code = main.main(arguments)
    lines = capfd.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    return code, next((line for line in lines if line.startswith("error")), "")


@pytest.mark.parametrize("place", PLACES, ids=["read-only", "name", "path", "below a file"])
@pytest.mark.parametrize(
    "command",
    [
        slow([*PREDICT, "--out"]),
        slow([*EVALUATE, "--out"]),
        slow(["tune", "--model", "shapes", "--data", "data", *FAST, "--out", "m", "--report"]),
        ["tune", "--model", "shapes", "--data", "data", *FAST, "--out"],
        ["train", "--data", "data", *FAST, "--out"],
        ["doctor", "data", "--out"],
        ["data", "scenes", "--images", "1", "--size", "32", "--out"],
        ["demo", "--out"],
    ],
    ids=named,
)
def test_results_that_cannot_be_written(
    command: list[str], place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, error = ends([*command, place], capfd)
    assert code in (2, 3, 5), error
    assert error.startswith(("error not_writable: ", "error system: ")), error


@pytest.mark.parametrize("place", [LONG_NAME, LONG_PATH], ids=["name", "path"])
@pytest.mark.parametrize(
    ("command", "codes"),
    [
        (["predict", "--model", "shapes", *FAST, "--out", "o"], (3,)),
        (["predict", "data/images", "--out", "o", *FAST, "--model"], (3, 4)),
        (["evaluate", "--model", "shapes", *FAST, "--data"], (3,)),
        (["evaluate", "--data", "data", *FAST, "--model"], (3, 4)),
        (["train", *FAST, "--data"], (3,)),
        (["train", *FAST, "--resume"], (4,)),
        (["doctor"], (3,)),
    ],
    ids=lambda value: f"{value[0]} {value[-1]}" if isinstance(value, list) else "",
)
def test_inputs_that_cannot_be_there(
    command: list[str], codes: tuple[int, ...], place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, error = ends([*command, place], capfd)
    assert code in codes, error
    assert error


def test_names_of_255_bytes_and_a_later_clock(
    data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A clock that jumped back leaves files of tomorrow."""
    name = "é" * 125 + "x.png"
    assert len(os.fsencode(name)) == 255
    (data / "images" / "0.png").rename(data / "images" / name)
    try:
        tomorrow = time.time() + 86400
        os.utime(data / "images" / name, (tomorrow, tomorrow))
        code, error = ends(
            [*PREDICT, "--format", "labels,csv", "--out", "found"],
            capfd,
        )
        assert code in (0, 6), error
        assert len(list(Path("found").glob("*_labels.png"))) >= 4
    finally:
        (data / "images" / name).rename(data / "images" / "0.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    "surroundings",
    [
        {"NUMBA_CACHE_DIR": NOWHERE},
        {"HOME": NOWHERE, "XDG_CACHE_HOME": NOWHERE, "MPLCONFIGDIR": "", "TMPDIR": NOWHERE},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    ],
    ids=["numba", "home", "locale"],
)
def test_without_what_others_take_for_granted(surroundings: dict[str, str]) -> None:
    """No cache, home or temporary folder, no UTF-8; and files for the owner alone."""
    command = "predict data/images --model shapes --engine torch --device cpu --out found --sheet"
    run = [sys.executable, "-m", "spatialembed", *command.split()]
    settings = {**os.environ, **surroundings, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        run, env=settings, umask=0o077, capture_output=True, text=True, check=False, timeout=540
    )
    assert done.returncode == 0, done.stderr
    assert "5 images" in done.stdout
    made = [path for path in Path("found").rglob("*") if path.is_file()]
    assert len(list(Path("found").glob("*_labels.png"))) == 5
    assert all(path.stat().st_mode & 0o077 == 0 for path in made)
