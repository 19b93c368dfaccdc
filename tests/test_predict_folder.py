"""Folders in, folders out: every output in its place, and nothing lost on the way."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import re
import signal
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from torch import Tensor

from known_predictor import INFO, GreyLevels, known, scene
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.read import ImageWarning
from spatialembed.inference import predictor as predictor_module
from spatialembed.inference.predict_folder import SAMPLED, job_pixels, pixels_of, predict_folder
from spatialembed.inference.predictor import Predictor
from spatialembed.results import folder
from spatialembed.types import Embeddings


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
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return files - {".spatialembed-results"}


ALL_OUTPUTS = {
    "objects.csv",
    "instances.json",
    *(f"{n}_{kind}.png" for n in ("a", "deep/a", "deep/b") for kind in ("labels", "overlay")),
}


def test_sheet_and_page_of_a_run(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (inputs / "broken.png").write_text("no image")
    Image.fromarray(scene(7)).convert("RGB").save(inputs / "named.png", "JPEG", quality=100)
    result = predict_folder(
        known(), [inputs], out, sheet=True, report={"model": "known"}, progress=False
    )
    named = {"named_labels.png", "named_overlay.png"}
    assert files_in(out) >= ALL_OUTPUTS | named | {"sheet.jpg", "report.html"}
    page = (out / "report.html").read_text("utf-8")
    assert f"{result.objects} objects in 4 images" in page
    assert "1 input failed" in page
    assert "named like PNG, read as JPEG" in page
    assert page.count("not_an_image") == page.count("broken.png") == 1
    links = set(re.findall(r'href="./([^"]+)"', page))
    assert links == {name for name in files_in(out) if name.endswith("_overlay.png")}


def test_the_page_of_a_run_without_overlays_links_to_none(inputs: Path, tmp_path: Path) -> None:
    predict_folder(known(), [inputs], tmp_path, formats=["labels"], report={}, progress=False)
    assert "href" not in (tmp_path / "report.html").read_text("utf-8")


def test_the_page_of_a_run_that_was_stopped(inputs: Path, tmp_path: Path) -> None:
    class Stopping(GreyLevels):
        def __call__(self, images: Tensor) -> Embeddings:
            if self.batches:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        predict_folder(
            Predictor(Stopping(), INFO), [inputs], tmp_path, batch=1, report={}, progress=False
        )
    assert "objects in 1 image<" in (tmp_path / "report.html").read_text("utf-8")


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


@pytest.mark.filterwarnings("ignore:.*the first of")
@pytest.mark.parametrize("fault", ["IMG-15 --pages all"])
def test_every_page_is_an_image(tmp_path: Path, fault: str) -> None:
    """Each by its own name; reduced copies are no pages; a broken page fails alone."""
    pages = [scene(i) for i in range(3)]
    (tmp_path / "in").mkdir()
    with tifffile.TiffWriter(tmp_path / "in" / "stack.tif") as file:
        for page in pages:
            file.write(page, contiguous=False)
            file.write(page[::2, ::2], subfiletype=1)
    Image.fromarray(pages[0]).save(tmp_path / "in" / "one.tif")
    (tmp_path / "in" / "broken.tif").write_bytes(b"II*\0" + bytes(4))
    out = tmp_path / "out"
    result = predict_folder(known(), [tmp_path / "in"], out, pages="all", progress=False)
    assert (result.images, [p.name for p, _ in result.failed]) == (4, ["broken.tif"])
    names = ["one", *(f"stack_p{i:04d}" for i in (1, 2, 3))]
    assert {row["image"] for row in rows(out)} == {f"{name}.tif" for name in names}
    for name, page in zip(names, [pages[0], *pages], strict=True):
        labels = np.asarray(Image.open(out / f"{name}_labels.png"))
        assert np.array_equal(labels, known()(page).labels)
    Image.fromarray(pages[0]).save(tmp_path / "in" / "stack_p0002.tif")
    with pytest.raises(SpatialEmbedError, match=r"name_collision.*page 3"):
        predict_folder(known(), [tmp_path / "in"], out, pages="all", progress=False)


@pytest.mark.parametrize("fault", ["IMG-08 as a setting"])
def test_images_above_the_limit_fail_alone(inputs: Path, fault: str) -> None:
    Image.fromarray(scene(0, (33, 40))).save(inputs / "large.png")
    predictor = known()
    predictor.max_pixels = 32 * 40
    paths = sorted(inputs.rglob("*.*"))
    outcomes = list(predictor.outcomes(paths))
    refused = {o.source.name: o.error.code for o in outcomes if o.error is not None}
    assert refused == {"large.png": "too_large"}
    assert sum(o.instances is not None for o in outcomes) == 3


def test_output_that_cannot_be_written_is_found_first(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    predictor = known()
    with pytest.raises(SpatialEmbedError) as caught:
        predict_folder(predictor, [inputs], tmp_path / "file" / "out", progress=False)
    assert (caught.value.code, caught.value.exit_code) == ("not_writable", 2)
    assert predictor.engine.batches == []  # type: ignore[attr-defined]


def test_a_full_disk_keeps_what_was_written(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third picture does not fit: the two images before it are there."""
    write, calls = folder.write_overlay, []

    def failing(*arguments: Any) -> Path:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "full")
        return write(*arguments)

    monkeypatch.setattr(folder, "write_overlay", failing)
    with pytest.raises(OSError, match="full"):
        predict_folder(known(), [inputs], tmp_path / "out", progress=False)
    assert len(rows(tmp_path / "out")) == 6
    assert len(json.loads((tmp_path / "out" / "instances.json").read_text())["images"]) == 2


class Interrupted(GreyLevels):
    """Ctrl-C, or SIGTERM as the command line hears it, while the third batch is worked on."""

    def __init__(self, stop: BaseException) -> None:
        super().__init__()
        self.stop = stop

    def __call__(self, images: Tensor) -> Embeddings:
        if len(self.batches) == 2:
            raise self.stop
        return super().__call__(images)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_what_is_done_outlives_an_interruption(
    inputs: Path, tmp_path: Path, stop: BaseException
) -> None:
    predictor = Predictor(Interrupted(stop), INFO)  # type: ignore[arg-type]
    with pytest.raises(type(stop)):
        predict_folder(predictor, [inputs], tmp_path / "out", batch=1, progress=False)
    assert [row["image"] for row in rows(tmp_path / "out")] == ["a.png"] * 3 + ["deep/a.png"] * 3
    assert files_in(tmp_path / "out") == ALL_OUTPUTS - {
        "deep/b_labels.png",
        "deep/b_overlay.png",
    }


def test_tables_are_written_on_the_way(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill loses at most half a minute of them."""
    clock = iter(range(0, 10_000, 31))
    monkeypatch.setattr(folder.time, "monotonic", lambda: next(clock))
    seen, write = [], folder.ResultFolder.write

    def spy(self: folder.ResultFolder) -> None:
        write(self)
        seen.append(len(rows(tmp_path / "out")))

    monkeypatch.setattr(folder.ResultFolder, "write", spy)
    predict_folder(known(), [inputs], tmp_path / "out", progress=False)
    assert seen == [3, 6, 9, 9]


@pytest.mark.parametrize("threads", [1, 3])
def test_order_is_kept_whoever_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Reading and writing last as long as they like: the files are the same, byte by byte."""
    (tmp_path / "in").mkdir()
    for i in range(12):
        Image.fromarray(scene(i, (32 + i % 2, 40))).save(tmp_path / "in" / f"{i:02d}.png")
    predict_folder(known(), [tmp_path / "in"], tmp_path / "quiet", progress=False)

    def late(function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **settings: Any) -> Any:
            time.sleep(zlib.crc32(repr(arguments).encode()) % 20 / 1000)
            return function(*arguments, **settings)

        return slow

    for module in (predictor_module, folder):
        monkeypatch.setattr(module, "helpers", lambda: threads)
    monkeypatch.setattr(predictor_module, "read_pixels", late(predictor_module.read_pixels))
    monkeypatch.setattr(folder, "write_labels", late(folder.write_labels))
    predict_folder(known(), [tmp_path / "in"], tmp_path / "late", progress=False)
    quiet, other = (
        {name: (tmp_path / out / name).read_bytes() for name in files_in(tmp_path / out)}
        for out in ("quiet", "late")
    )
    assert quiet == other
    assert len(quiet) == 2 * 12 + 2


@pytest.mark.parametrize("limit", ["images", "pixels"])
def test_few_images_wait_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """However slow the disk is: the fourth is taken when the first is written."""
    open_disk = threading.Event()
    monkeypatch.setattr(folder, "write_labels", lambda *_: open_disk.wait(20))
    monkeypatch.setattr(folder, "helpers", lambda: 3 if limit == "pixels" else 1)
    monkeypatch.setattr(folder, "WAITING_PIXELS", 3 * 32 * 40 if limit == "pixels" else 1e9)
    most = 3 if limit == "pixels" else 2
    image, found = scene(0), known()(scene(0))
    with folder.ResultFolder(tmp_path, ("thing",)) as results:
        for i in range(most):
            results.add(str(i), image, found)
        one_more = threading.Thread(target=results.add, args=("last", image, found))
        one_more.start()
        one_more.join(0.2)
        assert one_more.is_alive()
        open_disk.set()
        one_more.join(20)
        assert not one_more.is_alive()
    assert len(rows(tmp_path)) == 3 * (most + 1)


def test_waiting_lasts_until_all_pictures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = folder.write_labels
    monkeypatch.setattr(folder, "write_labels", lambda *it: (time.sleep(0.1), write(*it))[1])
    image, found = scene(0), known()(scene(0))
    with folder.ResultFolder(tmp_path, ("thing",)) as results:
        for name in "ab":
            results.add(name, image, found)
        results.wait()
        assert len(list(tmp_path.glob("*_overlay.png"))) == 2
        results.write()
        assert len(rows(tmp_path)) == 3 * 2


def test_an_interruption_while_the_disk_is_slow_loses_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_disk = threading.Event()
    monkeypatch.setattr(folder, "write_labels", lambda *_: open_disk.wait(20))
    image, found = scene(0), known()(scene(0))

    def interrupted() -> None:
        with folder.ResultFolder(tmp_path, ("thing",)) as results:
            for name in "ab":
                results.add(name, image, found)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            threading.Timer(0.6, open_disk.set).start()
            results.wait()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(rows(tmp_path)) == 3 * 2


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


def test_length_of_a_job(inputs: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    pixels = scene(0).size
    assert job_pixels([inputs], tmp_path / "out") == 3 * pixels
    (inputs / "text.png").write_text("not an image")  # counts as the others do
    assert job_pixels([inputs], tmp_path / "out") == 4 * pixels
    assert job_pixels([inputs / "text.png"], tmp_path / "out") == 0
    with pytest.raises(SpatialEmbedError, match="not_found"):
        job_pixels([inputs / "gone.png"], tmp_path / "out")
    for i in range(3 * SAMPLED):
        Image.fromarray(scene(0)).save(inputs / f"more{i}.png")
    assert job_pixels([inputs], tmp_path / "out") == (4 + 3 * SAMPLED) * pixels
    # Others may come from what the collector ends just now: unclosed sockets of other tests.
    assert not [w for w in recwarn.list if issubclass(w.category, ImageWarning)]
    assert pixels_of([inputs / "text.png"]) == pixels_of([]) == 0


def test_progress_bar_goes_to_standard_error(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_folder(known(), [inputs], tmp_path / "out")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3/3" in printed.err
