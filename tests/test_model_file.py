"""Model files: what is saved is loaded, a stopped save loses nothing, damage is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from model_files import WRITERS, Bomb, new_net, plain_pickle, same_weights
from spatialembed import files
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import model_file
from spatialembed.inference.model_file import ModelInfo, load, save
from spatialembed.inference.predictor import load as load_predictor
from spatialembed.method.calibration import Calibration
from spatialembed.method.cluster import ClusterOptions
from spatialembed.types import Normalization

INFO = ModelInfo(
    class_names=("round", "eckig ü"),
    elliptical=True,
    normalization=Normalization("fixed", mean=(0.1, 0.2, 0.3)),
    thresholds=ClusterOptions(start=0.8, min_pixels=12, max_instances=7),
    scale=1.5,
    training={"licence": "CC0", "hours": 0.5, "figure": {"ap": [0.7, 0.8]}},
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "shapes", new_net(), INFO)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refused(code: str, action: Callable[[], Any]) -> str:
    with pytest.raises(SpatialEmbedError) as caught:
        action()
    assert (caught.value.code, caught.value.exit_code) == (code, 4)
    assert caught.value.remedy
    return str(caught.value)


def edit(model: Path, **changes: Any) -> None:
    facts = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(facts | changes))


def rehash(model: Path) -> None:
    """As a forger would: the hash of the weights as they are now."""
    edit(
        model, weights_sha256=hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    )


# What is saved is loaded


@pytest.mark.parametrize("inside", ["", "model.safetensors", "model.json"])
def test_round_trip(saved: Path, inside: str) -> None:
    net, info = load(saved / inside)
    assert info == INFO
    assert same_weights(net, new_net())
    assert not net.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in net.parameters())
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]


def test_the_calibration_travels_along(model: Path, tmp_path: Path) -> None:
    calibrated = replace(INFO, calibration=Calibration((0.4, 0.9), (0.1, 0.8), 300, 0.01, 0.2))
    weights = (model / "model.safetensors").read_bytes()
    other = model_file.save_as(model, tmp_path / "other", calibrated)
    assert load(other)[1] == calibrated
    assert (other / "model.safetensors").read_bytes() == weights
    assert load(model)[1] == INFO  # without one, as files were before
    assert model_file.save_as(model, model, calibrated) == model
    assert load(model)[1] == calibrated
    without = [n for n in model_file.bundled_models() if load(n)[1].calibration is None]
    assert without == ["worms"]  # of fewer validation objects than a fit takes


def test_load_draws_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(3)
    load(saved)
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(4))


def test_half_keeps_what_float16_would_lose(tmp_path: Path) -> None:
    net = new_net()
    net.encoder.initial_block.bn.running_var[:] = 1e-9  # 0 in float16
    net.encoder.initial_block.bn.running_mean[:] = 1e6  # infinite in float16
    with torch.no_grad():
        net.encoder.initial_block.conv.weight[:] = 1e5  # a kernel beyond float16
    whole = save(tmp_path / "whole", net, INFO)
    half = save(tmp_path / "half", net, INFO, half=True)
    assert (half / "model.safetensors").stat().st_size < 0.52 * (
        whole / "model.safetensors"
    ).stat().st_size
    ours, theirs = net.state_dict(), load(half)[0].state_dict()
    for name, tensor in ours.items():
        if tensor.dim() < 2 or name == "encoder.initial_block.conv.weight":
            assert torch.equal(tensor, theirs[name]), name
        else:
            torch.testing.assert_close(theirs[name], tensor, rtol=2**-11, atol=0, msg=name)


def test_training_facts_become_json(tmp_path: Path) -> None:
    facts = {"ap": np.float32(0.5), "undefined": float("nan"), "sizes": (1, np.int64(2)), 3: None}
    folder = save(tmp_path / "m", new_net(), replace(INFO, training=facts))
    assert load(folder)[1].training == {"ap": 0.5, "undefined": None, "sizes": [1, 2], "3": None}


@pytest.mark.parametrize(
    "info",
    [
        replace(INFO, class_names=("one",)),
        replace(INFO, elliptical=False),
        replace(INFO, class_names=("a", "a")),
        replace(INFO, class_names=("a", "\x1b[2Jb")),
        replace(INFO, scale=0.0),
    ],
    ids=["classes", "elliptical", "twice", "control characters", "scale"],
)
def test_save_writes_nothing_that_would_not_load(tmp_path: Path, info: ModelInfo) -> None:
    refused("bad_model", lambda: save(tmp_path / "m", new_net(), info))
    assert not (tmp_path / "m").exists()


# A save that is stopped


class Stopped(BaseException):
    """A kill: nothing may catch it."""


def stop_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise ``Stopped`` before that flush or rename, the acts that change what a reader sees."""
    done = iter(range(1000))

    def counted(act: Callable[..., None]) -> Callable[..., None]:
        def acting(*arguments: Any) -> None:
            if next(done) == step:
                raise Stopped
            act(*arguments)

        return acting

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(files, "flush", counted(files.flush))


STEPS = 7  # two atomic writes of flush, rename, flush; one rename


@pytest.mark.parametrize("second", [None, 3, 5], ids=lambda s: f"then at {s}")
@pytest.mark.parametrize("first", [pytest.param(i, id=f"CKP-01 step {i}") for i in range(STEPS)])
def test_stopped_save_leaves_a_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int | None
) -> None:
    """Stopped before any step, and once more in the save after it: the old model or the new one."""
    nets = [new_net(0), new_net(1), new_net(2)]
    infos = [INFO, replace(INFO, scale=2.0), replace(INFO, scale=3.0)]
    last = 0
    for i, step in ((1, first), (2, second)):
        if step is None:
            continue
        with monkeypatch.context() as patch:
            stop_before(step, patch)
            with pytest.raises(Stopped):
                save(model, nets[i], infos[i])
        net, info = load(model)
        k = infos.index(info)
        assert k in (last, i)
        assert same_weights(net, nets[k])
        last = k
    save(model, nets[1], infos[1])
    assert load(model)[1] == infos[1]
    assert not (model / "model.pending.json").exists()


def test_steps_are_counted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above stops before each step there is, and the last one is no step."""
    stop_before(STEPS, monkeypatch)
    save(model, new_net(1), INFO)


def test_disk_full_keeps_the_old_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(SpatialEmbedError) as caught:
            save(model, new_net(1), replace(INFO, scale=2.0))
    assert (caught.value.code, caught.value.exit_code) == ("disk_full", 5)
    assert load(model)[1] == INFO


# What is refused


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda b: b"", id="CKP-02 zero bytes"),
        pytest.param(lambda b: b[:-1], id="CKP-02 a byte short"),
        pytest.param(lambda b: b[: len(b) // 2], id="CKP-02 half"),
        pytest.param(lambda b: flip(b, 8 * 4), id="CKP-02 flipped near the start"),
        pytest.param(lambda b: b"\0" * len(b), id="CKP-02 zeros"),
        pytest.param(lambda b: b * 2, id="CKP-02 twice"),
    ],
)
def test_damaged_files(model: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    file = model / name
    data = file.read_bytes().rstrip()
    file.write_bytes(damage(data))
    assert str(model) in refused("bad_model", lambda: load(model))


@pytest.mark.parametrize("at", [8, 1000, -1])
def test_any_flipped_bit_of_the_weights(model: Path, at: int) -> None:
    file = model / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(flip(data, 8 * (at % len(data))))
    assert "SHA-256" in refused("bad_model", lambda: load(model))


@pytest.mark.parametrize("cut", [0, 7, 100, 5000])
def test_damage_behind_a_true_hash(model: Path, cut: int) -> None:
    """Whoever made the damage may have made the hash: the parser is no door either."""
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut] + b"x")
    rehash(model)
    refused("bad_model", lambda: load(model))


@pytest.mark.parametrize(
    ("classes", "elliptical"),
    [
        pytest.param(3, True, id="CKP-04 classes"),
        pytest.param(2, False, id="CKP-04 network"),
    ],
)
def test_weights_of_another_network(model: Path, classes: int, elliptical: bool) -> None:
    state = new_net(0, classes, elliptical).state_dict()
    safetensors.torch.save_file(state, model / "model.safetensors")
    rehash(model)
    message = refused("model_mismatch", lambda: load(model))
    assert "output_conv.weight is (16, 3, 2, 2), expected (16, " in message


def test_missing_and_foreign_tensors(model: Path) -> None:
    state = new_net().state_dict()
    state["stranger"] = state.pop("encoder.initial_block.conv.bias")
    safetensors.torch.save_file(state, model / "model.safetensors")
    rehash(model)
    message = refused("model_mismatch", lambda: load(model))
    assert "encoder.initial_block.conv.bias is missing; stranger is not known" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize(
    "buffer",
    [pytest.param("bias", id="CKP-05 weight"), pytest.param("running_var", id="CKP-05 statistics")],
)
def test_weights_that_are_not_finite(model: Path, value: float, buffer: str) -> None:
    net = new_net()
    name = f"encoder.layers.3.bn1.{buffer}"
    net.state_dict()[name][5] = value
    assert name in refused("bad_model", lambda: save(model, net, INFO))
    assert load(model)[1] == INFO
    safetensors.torch.save_file(net.state_dict(), model / "model.safetensors")
    rehash(model)
    assert name in refused("bad_model", lambda: load(model))


THRESHOLDS = {
    "foreground": 0.5, "start": 0.9, "membership": 0.5, "min_pixels": 128, "min_free": 0.5,
    "max_instances": None,
}  # fmt: skip
CALIBRATION = asdict(Calibration((0.4, 0.9), (0.1, 0.8), 300, 0.01, 0.2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"format_version": "1"}, "format_version is '1'"),
        ({"format_version": True}, "format_version is True"),
        ({"network": {"num_classes": 2}}, "missing key 'elliptical'"),
        ({"network": {"num_classes": 10**9, "elliptical": True}}, "there are 2 class names"),
        ({"network": {"num_classes": 2, "elliptical": 1}}, "elliptical is 1"),
        ({"network": [2, True]}, "not an object"),
        ({"class_names": "ab"}, "not a list"),
        ({"class_names": ["a", 5]}, "class name '5'"),
        ({"class_names": ["a", "line\nbreak"]}, "printable"),
        ({"scale": "1"}, "scale: '1'"),
        ({"scale": 1e9}, "scale is"),
        ({"training": []}, "training is not an object"),
        ({"normalization": {"kind": "none"}}, "missing key"),
        ({"thresholds": THRESHOLDS | {"start": None}}, "start: 'None'"),
        ({"thresholds": THRESHOLDS | {"start": 2}}, "start"),
        ({"thresholds": THRESHOLDS | {"min_pixels": 1.5}}, "min_pixels: '1.5'"),
        ({"thresholds": THRESHOLDS | {"max_instances": True}}, "max_instances: 'True'"),
        ({"thresholds": THRESHOLDS | {"sart": 0.9}}, "unknown key 'sart'"),
        ({"calibration": {"ious": [0.5]}}, "missing key 'error'"),
        ({"calibration": CALIBRATION | {"ious": [0.5, 0.4]}}, "IoUs fall"),
        ({"calibration": CALIBRATION | {"ious": [0.5, "a"]}}, "ious: "),
        ({"calibration": CALIBRATION | {"mean_seeds": 0.5}}, "mean_seeds: '0.5'"),
        ({"calibration": CALIBRATION | {"objects": 1.5}}, "objects: '1.5'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_facts_are_checked(model: Path, changes: dict[str, Any], said: str) -> None:
    edit(model, **changes)
    assert said in refused("bad_model", lambda: load(model))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "median"},
        {"mean": [0.1, 0.2]},
        {"mean": [0.1, 0.2, "x"]},
        {"low": 10**400},
        {"std": None},
        {"kind": ["none"]},
    ],
    ids=str,
)
def test_normalization_is_checked(model: Path, changes: dict[str, Any]) -> None:
    facts = json.loads((model / "model.json").read_text())
    edit(model, normalization=facts["normalization"] | changes)
    assert "normalization" in refused("bad_model", lambda: load(model))


@pytest.mark.parametrize("text", ["NaN", "[" * 100_000, "[]", '"a"', "\xff"])
def test_facts_that_are_no_json_object(model: Path, text: str) -> None:
    (model / "model.json").write_text(text, encoding="latin-1")
    refused("bad_model", lambda: load(model))


def test_newer_format_is_named_before_its_strange_keys(model: Path) -> None:
    newer = model_file.FORMAT_VERSION + 1
    edit(model, format_version=newer, weights_sha256=None, more=1)
    assert f"format version {newer}" in refused("model_version", lambda: load(model))


def test_thresholds_may_be_edited_by_hand(model: Path) -> None:
    edit(model, thresholds=THRESHOLDS | {"min_pixels": 40})
    assert load(model)[1].thresholds == ClusterOptions(min_pixels=40)


def test_unknown_model_lists_the_bundled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "bundled_models", lambda: ["nuclei", "shapes"])
    message = refused("no_model", lambda: load("nuclie"))
    assert "nuclei, shapes" in message
    refused("no_model", lambda: load(tmp_path))
    refused("no_model", lambda: load(tmp_path / "model.safetensors"))


def test_other_files_are_no_models(saved: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "weights.pt"
    shutil.copy(saved / "model.safetensors", stranger)
    assert "convert" in refused("bad_model", lambda: load(stranger))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_fifo_does_not_hang(model: Path, name: str) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)
    refused("no_model" if name == "model.safetensors" else "bad_model", lambda: load(model))


def test_bundled_models_load() -> None:
    for name in model_file.bundled_models():
        net, info = load(name)
        assert net.num_classes == len(info.class_names)


# No pickle is ever executed


@pytest.mark.parametrize("write", WRITERS)
def test_the_bombs_are_live(tmp_path: Path, write: Callable[[Bomb, Path], None]) -> None:
    """Else the tests below would prove nothing."""
    write(Bomb(tmp_path / "canary"), tmp_path / "file")
    if write is plain_pickle:
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("open_model", [load, load_predictor])
@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "model.pt", "nuclei"])
def test_no_pickle_is_executed_as_a_model(
    model: Path, write: Callable[[Bomb, Path], None], open_model: Callable[..., Any], name: str
) -> None:
    canary = model / "canary"
    write(Bomb(canary), model / name)
    if name == "model.safetensors":
        rehash(model)
    refused("bad_model", lambda: open_model(model / name))
    assert not canary.exists()


# Any bytes


PIECES = (
    b"null", b"true", b"-1", b"1e308", b"1e400", b"9" * 30, b"1" * 500, b"[]", b"{}", b'""', b"[[",
    b"NaN", b'"\\ud800"', b"\xff", b"\x00", b"F64", b"U16", b"18446744073709551615",
)  # fmt: skip


def mutated(data: bytes, rng: random.Random, end: int) -> bytes:
    """One to three changes in the first ``end`` bytes: a byte, a piece of JSON, a gap."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, span = rng.randrange(end), rng.randint(0, 20)
        changed[at : at + span] = rng.choice(PIECES) if rng.random() < 0.8 else b""
    return bytes(changed)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_any_bytes_load_or_are_refused_in_a_line(model: Path, name: str) -> None:
    """Sizes and offsets in a header among them; the hash fits, whoever made the damage."""
    data, rng = (model / name).read_bytes(), random.Random(0)
    end = 8 + int.from_bytes(data[:8], "little") if name == "model.safetensors" else len(data)
    outcomes = set()
    for _ in range(30):
        (model / name).write_bytes(mutated(data, rng, end))
        if name == "model.safetensors":
            rehash(model)
        try:
            load(model)
            outcomes.add("fine")
        except SpatialEmbedError as error:
            outcomes.add(error.code if str(error).isprintable() else repr(error))
    assert "bad_model" in outcomes
    assert outcomes <= {"fine", "bad_model", "model_mismatch", "model_version"}
