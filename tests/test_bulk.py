"""Folders in, folders out: every output in its place, and nothing lost on the way."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from known_predictor import known, scene
from spatialembed.bulk import predict_folder
from spatialembed.errors import SpatialEmbedError
from spatialembed.results import folder


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Three images in two folders, two of one name."""
    folder = tmp_path / "in"
    for i, name in enumerate(("a.png", "deep/a.png", "deep/b.tif")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(i)).save(folder / name)
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "objects.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


ALL_OUTPUTS = {
    "objects.csv",
    "instances.json",
    *(f"{n}_{kind}.png" for n in ("a", "deep/a", "deep/b") for kind in ("labels", "overlay")),
}


@pytest.mark.parametrize("fault", ["IMG-30 mirrored"])
def test_folder(inputs: Path, tmp_path: Path, fault: str) -> None:
    out = tmp_path / "new" / "out"
    result = predict_folder(known(), [inputs], out, progress=False)
    assert (result.images, result.objects, result.failed, result.exit_code) == (3, 9, [], 0)
    assert files_in(out) == ALL_OUTPUTS
    for i, name in enumerate(("a", "deep/a", "deep/b")):
        labels = np.asarray(Image.open(out / f"{name}_labels.png"))
        assert np.array_equal(labels, known()(scene(i)).labels)
    assert [row["image"] for row in rows(out)] == [
        name for name in ("a.png", "deep/a.png", "deep/b.tif") for _ in range(3)
    ]
    coco = json.loads((out / "instances.json").read_text())
    assert len(coco["images"]) == 3
    assert len(coco["annotations"]) == 9


@pytest.mark.parametrize("fault", ["IMG-33 output inside input"])
def test_own_outputs_are_not_read_again(inputs: Path, fault: str) -> None:
    for _ in range(2):
        result = predict_folder(known(), [inputs], inputs / "out", progress=False)
        assert result.images == 3


@pytest.mark.parametrize("fault", ["IMG-26 some fail"])
def test_failed_inputs_are_reported_and_the_rest_goes_on(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    (inputs / "broken\n.png").write_bytes((inputs / "a.png").read_bytes()[:60])
    (inputs / "deep" / "folder.png").mkdir()
    (inputs / "empty.png").touch()
    result = predict_folder(known(), [inputs], tmp_path / "out", progress=False)
    assert [(p.name, e.code) for p, e in result.failed] == [
        ("broken\n.png", "truncated"),
        ("empty.png", "empty_file"),
    ]
    assert (result.images, result.exit_code) == (3, 6)
    assert files_in(tmp_path / "out") == ALL_OUTPUTS
    assert [r.levelname for r in caplog.records] == ["ERROR", "ERROR"]
    assert "\n" not in caplog.records[0].getMessage()
    assert "empty_file" in caplog.records[1].getMessage()


def test_pickle_named_like_an_image_is_not_executed(inputs: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "canary"),)

    (inputs / "bomb.png").write_bytes(pickle.dumps(Bomb()))
    result = predict_folder(known(), [inputs], tmp_path / "out", progress=False)
    assert [e.code for _, e in result.failed] == ["not_an_image"]
    assert not (tmp_path / "canary").exists()


def test_all_failed_exits_like_the_first_fault(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    result = predict_folder(known(), [tmp_path / "a.png"], tmp_path / "out", progress=False)
    assert result.exit_code == 3


@pytest.mark.parametrize("fault", ["IMG-29 names"])
def test_strange_names(tmp_path: Path, fault: str) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = [b"-rf.png", b"new\nline.png", b"\xff\xfe.png", b"%s" % (b"x" * 251 + b".png")]
    for i, name in enumerate(names):
        Image.fromarray(scene(i)).save(tmp_path / "image.png")
        os.rename(tmp_path / "image.png", os.fsencode(folder) + b"/" + name)
    result = predict_folder(known(), [folder], out, progress=False)
    assert (result.images, result.exit_code) == (4, 0)
    listed = json.loads((out / "instances.json").read_text())["images"]
    assert {os.fsencode(entry["file_name"]) for entry in listed} == set(names)
    labels = {os.fsencode(p.name) for p in out.glob("*_labels.png")}
    assert {n.removesuffix(b".png") + b"_labels.png" for n in names[:3]} < labels
    assert len(labels) == 4


def test_output_that_cannot_be_written_is_found_first(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    predictor = known()
    with pytest.raises(SpatialEmbedError) as caught:
        predict_folder(predictor, [inputs], tmp_path / "file" / "out", progress=False)
    assert (caught.value.code, caught.value.exit_code) == ("not_writable", 2)
    assert predictor.engine.batches == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")], ids=repr)
def test_what_is_done_is_not_lost(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    """Stopped at the third image, by the user or by a full disk: the two before it are there."""
    write, calls = folder.write_overlay, []

    def failing(*arguments: Any) -> Path:
        calls.append(arguments)
        if len(calls) == 3:
            raise stop
        return write(*arguments)

    monkeypatch.setattr(folder, "write_overlay", failing)
    with pytest.raises(type(stop)):
        predict_folder(known(), [inputs], tmp_path / "out", progress=False)
    assert len(rows(tmp_path / "out")) == 6
    assert len(json.loads((tmp_path / "out" / "instances.json").read_text())["images"]) == 2


def test_tables_are_written_on_the_way(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill loses at most half a minute of them."""
    clock = iter(range(0, 10_000, 31))
    monkeypatch.setattr(folder.time, "monotonic", lambda: next(clock))
    seen = []
    write = folder.write_labels

    def spy(stem: Path, labels: Any) -> Path:
        seen.append(
            len(rows(tmp_path / "out")) if (tmp_path / "out" / "objects.csv").exists() else 0
        )
        return write(stem, labels)

    monkeypatch.setattr(folder, "write_labels", spy)
    predict_folder(known(), [inputs], tmp_path / "out", progress=False)
    assert seen == [0, 3, 6]


def test_truncated_results_are_reported(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = known()
    options = predictor.options(max_instances=2)
    result = predict_folder(
        predictor, [inputs / "a.png"], tmp_path / "out", options=options, progress=False
    )
    assert result.truncated == [inputs / "a.png"]
    assert "max_instances" in caplog.text


def test_progress_bar_goes_to_standard_error(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_folder(known(), [inputs], tmp_path / "out")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3/3" in printed.err
