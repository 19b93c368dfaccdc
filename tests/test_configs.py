"""Settings in the package: each is parsed, says only what differs, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from importlib import resources
from typing import Any

import pytest
import yaml

from spatialembed.command.arguments import bundled_configs, parse
from spatialembed.training.options import TrainOptions

FOLDER = resources.files("spatialembed") / "configs"


def leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def value_of(options: Any, name: str) -> Any:
    for part in name.split("."):
        options = getattr(options, part)
    return options


def test_there_are_some() -> None:
    assert {"nuclei", "shapes"} <= set(bundled_configs())


@pytest.mark.parametrize("name", bundled_configs())
def test_parsed_and_different(name: str) -> None:
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    options = parse(TrainOptions, ["--config", name, "--data", "x"], verb="train", help="")
    default = TrainOptions(data="x")
    for key, value in leaves(settings):
        taken = value_of(options, key)
        assert (list(taken) if isinstance(taken, tuple) else taken) == value, key
        assert taken != value_of(default, key), f"{key} is the default: leave it out"
    given = {key for key, _ in leaves(settings)}
    for key, value in leaves(asdict(default)):
        if key not in given:
            assert value_of(options, key) == value, f"{key} came from nowhere"


@pytest.mark.parametrize("name", bundled_configs())
def test_every_value_has_its_reason(name: str) -> None:
    for line in (FOLDER / f"{name}.yaml").read_text().splitlines():
        setting, _, reason = line.partition("#")
        is_value = bool(setting.strip()) and not setting.rstrip().endswith(":")
        assert not is_value or len(reason.split()) > 3, line


def test_a_flag_after_the_file_wins() -> None:
    words = ["--config", "nuclei", "--stage1.epochs", "3", "--data", "x"]
    options = parse(TrainOptions, words, verb="train", help="")
    assert (options.stage1.epochs, options.stage1.crop) == (3, 224)
