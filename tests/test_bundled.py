"""What is said of the bundled models, and where a model is not given."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pytest

from spatialembed.command.main import main
from spatialembed.command.models import choices
from spatialembed.inference.bundled import bundled_models, summaries
from spatialembed.inference.model_file import summary


def test_every_bundled_model_has_a_line() -> None:
    found = summaries()
    assert sorted(found) == bundled_models()
    for name, line in found.items():
        assert 20 < len(line) < 160, name
        assert line.endswith(".")


def test_a_model_of_ones_own_is_described_by_its_card(tmp_path: Path) -> None:
    """As the server's page shows it."""
    assert summary("shapes") == summaries()["shapes"]
    shutil.copytree(str(resources.files("spatialembed") / "models" / "shapes"), tmp_path / "own")
    card = tmp_path / "own" / "README.md"
    card.write_text("# Mine\n\nCells of mine. More of it.\n")
    assert summary(tmp_path / "own") == "Cells of mine."
    card.unlink()
    assert summary(str(tmp_path / "own")) == ""


def test_predict_without_a_model_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "a.png", "--out", "b"]) == 2
    said = capsys.readouterr().err
    assert "required: --model" in said
    for name, line in summaries().items():
        assert f"--model {name}" in said
        assert line in said
    assert choices() in said
