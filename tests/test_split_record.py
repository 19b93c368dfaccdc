"""Which images a model was trained on: kept by it, used by evaluate and tune, said by both."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spatialembed.command import main
from spatialembed.data.folder import FolderDataset, open_folder
from spatialembed.data.open import select
from spatialembed.data.splitting import SplitRecord, split_dataset, split_record
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import model_file
from spatialembed.inference.model_file import ModelInfo
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.options import PartOptions
from spatialembed.training.options import StageOptions, TrainOptions
from spatialembed.training.train import train
from spatialembed.types import Normalization

PLATES = "aabbccdd"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight images of 32 px with one square each, two of a plate."""
    folder = tmp_path / "wells"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for n in range(8):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = 1
        Image.fromarray(mask * 150 + np.uint8(n)).save(folder / "images" / f"{n}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{n}.png")
    rows = [f"{n},{plate}" for n, plate in enumerate(PLATES)]
    (folder / "index.csv").write_text("\n".join(("image,plate", *rows)) + "\n")
    return folder


def parted(data: Path) -> tuple[FolderDataset, FolderDataset, SplitRecord]:
    train, val = split_dataset(open_folder(data), fraction=0.5, group_by="plate", seed=3)
    record = split_record(train, val, val_fraction=0.5, group_by="plate", seed=3)
    return train, val, record


def model_of(folder: Path, record: SplitRecord | None) -> Path:
    """An untrained model that says it was trained so, and whose seed maps start nothing."""
    info = ModelInfo(
        ("object",), True, Normalization("none"), ClusterOptions(start=0.999), split=record
    )
    torch.manual_seed(0)
    model_file.save(folder, SpatialEmbeddingNet(1), info)
    return folder


def test_it_is_read_as_it_was_written(data: Path, tmp_path: Path) -> None:
    _, _, record = parted(data)
    _, info = model_file.load(model_of(tmp_path / "m", record))
    assert info.split == record
    assert len(record.trained) == 4
    other = replace(record, trained=frozenset(i.to_bytes(6, "big") for i in range(100_000)))
    assert SplitRecord.from_json(json.loads(json.dumps(other.to_json()))) == other


@pytest.mark.parametrize(
    "change",
    [
        {"trained": "AAAA"},
        {"trained": "?"},
        {"trained": 3},
        {"seed": True},
        {"seed": 1 << 70},
        {"val_fraction": 2.0},
        {"more": 1},
        {"group_by": ["a"]},
    ],
)
def test_a_damaged_record_is_refused(data: Path, tmp_path: Path, change: dict[str, object]) -> None:
    folder = model_of(tmp_path / "m", parted(data)[2])
    facts = json.loads((folder / "model.json").read_text())
    facts["split"] |= change
    (folder / "model.json").write_text(json.dumps(facts))
    with pytest.raises(SpatialEmbedError) as caught:
        model_file.load(folder)
    assert caught.value.code == "bad_model"


def test_what_was_trained_on_is_left_out(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever images are called and in whatever order, and new ones of a trained plate too."""
    train, val, record = parted(data)
    caplog.set_level(logging.INFO, "spatialembed")
    assert select(PartOptions(data=str(data)), record).names == val.names
    assert "4 of 8 images were trained on and are left out" in caplog.text
    assert select(PartOptions(data=str(data), split="val"), record).names == val.names
    assert select(PartOptions(data=str(data), split="train"), record).names == train.names
    assert len(select(PartOptions(data=str(data), split="all"), record)) == 8
    for part in ("images", "masks"):
        for n in range(8):
            (data / part / f"{n}.png").rename(data / part / f"z{9 - n}.png")
    added = np.full((32, 32), 9, np.uint8)
    for part in ("images", "masks"):
        for name in ("new_trained", "new_held_out"):
            Image.fromarray(added).save(data / part / f"{name}.png")
    trained, held_out = (part.index_row(0)["plate"] for part in (train, val))
    rows = [f"z{9 - n},{plate}" for n, plate in enumerate(PLATES)]
    rows += [f"new_trained,{trained}", f"new_held_out,{held_out}"]
    (data / "index.csv").write_text("\n".join(("image,plate", *rows)) + "\n")
    kept = {f"z{9 - int(name)}" for name in val.names} | {"new_held_out"}
    assert set(select(PartOptions(data=str(data)), record).names) == kept


def test_flags_and_other_images_part_as_before(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, record = parted(data)
    plain = split_dataset(open_folder(data), fraction=0.25, seed=1)
    by_flags = select(PartOptions(data=str(data), split="val", val_fraction=0.25, seed=1), record)
    assert by_flags.names == plain[1].names
    stranger = replace(record, trained=frozenset({b"none of"[:6]}))
    assert len(select(PartOptions(data=str(data)), stranger)) == 8
    usual = split_dataset(open_folder(data))
    assert select(PartOptions(data=str(data), split="val"), stranger).names == usual[1].names
    images = open_folder(data)
    nothing = images.subset([])
    all_of_it = split_record(images, nothing, val_fraction=None, group_by=None, seed=0)
    assert len(select(PartOptions(data=str(data)), all_of_it)) == 8  # nothing else is left
    val = PartOptions(data=str(data), split="val")
    with pytest.raises(SpatialEmbedError, match=r"bad_split.*8 of these 8 images"):
        select(val, all_of_it)
    monkeypatch.setattr(FolderDataset, "index_row", lambda *_: {"all": "one group"})
    with pytest.raises(SpatialEmbedError, match=r"bad_split.*4 of these 8 images"):
        select(val, replace(record, group_by="all"))


@pytest.mark.parametrize(
    ("flags", "images", "seen"),
    [
        ([], 4, "None of these 4 images were trained on."),
        (["--split", "all"], 8, "4 of these 8 images were trained on."),
        (["--split", "train"], 4, "4 of these 4 images were trained on."),
    ],
)
def test_the_command_says_it_and_the_report_too(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    images: int,
    seen: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    model = model_of(tmp_path / "m", parted(data)[2])
    usual = ["--model", str(model), "--data", str(data), "--device", "cpu"]
    assert main.main(["evaluate", *usual, "--engine", "torch", *flags]) == 0
    assert seen in capsys.readouterr().out
    first = Path("runs/evaluate/wells/report.json")
    report = json.loads(first.read_text())
    assert report["images"] == images
    assert report["trained_on_images"] == int(seen.split(maxsplit=1)[0].replace("None", "0"))
    assert main.main(["evaluate", *usual, "--engine", "torch", *flags]) == 0  # into its own folder
    assert Path("runs/evaluate/wells-2/report.json").exists()


def test_a_model_without_record_is_scored_on_all_with_a_word(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = model_of(tmp_path / "m", None)
    out = str(tmp_path / "out")
    usual = ["--model", str(model), "--data", str(data), "--device", "cpu", "--out", out]
    assert main.main(["evaluate", *usual, "--engine", "torch"]) == 0
    said = capfd.readouterr()
    assert "all 8 images are taken: the model does not say which it was trained on" in said.err
    assert json.loads((tmp_path / "out" / "report.json").read_text())["trained_on_images"] is None


def test_a_missing_model_is_all_that_is_said_of_it(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--model", str(tmp_path / "gone"), "--data", str(data)]
    assert main.main([*words, "--out", str(tmp_path / "out")]) == 4
    said = capfd.readouterr().err
    assert "no_model" in said
    assert "trained on" not in said


def test_training_keeps_it_and_that_of_the_model_it_starts_from(data: Path, tmp_path: Path) -> None:
    _, _, expected = parted(data)
    before = replace(expected, trained=frozenset({b"before"}))
    options = TrainOptions(
        data=str(data),
        out=str(tmp_path / "runs"),
        name="a",
        init=str(model_of(tmp_path / "m", before)),
        group_by="plate",
        val_fraction=0.5,
        seed=3,
        normalization=Normalization("none"),
        stage1=StageOptions(crop=32, epochs=1, batch=4),
        device="cpu",
        workers=0,
    )
    _, info = model_file.load(train(options) / "model")
    assert info.split == replace(expected, trained=expected.trained | before.trained)
