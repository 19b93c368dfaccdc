"""Names of devices and precisions against what a machine has."""

from __future__ import annotations

import logging

import pytest
import torch

from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import device
from spatialembed.inference.device import resolve_device, resolve_precision

CPU = torch.device("cpu")


def test_auto_falls_back_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(device, "_fault", lambda where: "driver too old" * (where.type == "cuda"))
    with caplog.at_level(logging.INFO, "spatialembed"):
        assert resolve_device("auto") == CPU
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert "cuda" in caplog.text
    assert "driver too old" in caplog.text


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_order(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(device, "_fault", lambda _: "")
    assert resolve_device("auto").type == chosen


@pytest.mark.parametrize(("name", "code"), [("gpu", "unknown_device"), ("cuda:99", "no_device")])
def test_devices_that_are_not_there(name: str, code: str) -> None:
    with pytest.raises(SpatialEmbedError) as caught:
        resolve_device(name)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("has", [True, False])
def test_auto_precision_asks_the_machine(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(device, "_computes_bfloat16", lambda _: has)
    assert resolve_precision("auto", CPU) == ("bfloat16" if has else "float32")
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision("bfloat16", CPU) == "bfloat16"
    with pytest.raises(SpatialEmbedError, match="unknown_precision"):
        resolve_precision("half", CPU)
