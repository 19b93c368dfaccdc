"""The process of the model behind the plugin, without Qt: equal to the command line, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from conftest import alive
from napari_spatialembed.client import Answer, ModelClient
from napari_spatialembed.samples import nuclei, shapes
from spatialembed.command.main import main

PIXELS: np.ndarray = nuclei()[0][0]
DETECT: dict[str, Any] = {
    "do": "detect", "model": "nuclei", "diameter": None, "augment": False, "memory": 3.0,
    "tile": None, "thresholds": {}, "pixel_um": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[ModelClient]:
    made = ModelClient()
    yield made
    made.stop()


def detect(pixels: np.ndarray, **given: Any) -> Callable[[], tuple[dict[str, Any], bytes]]:
    facts = {"dtype": pixels.dtype.str, "shape": pixels.shape}
    return lambda: (DETECT | facts | given, pixels.tobytes())


def again(**thresholds: float) -> Callable[[], tuple[dict[str, Any], bytes]]:
    return lambda: ({"do": "again", "thresholds": thresholds, "pixel_um": None}, b"")


def answered(client: ModelClient, seconds: float = 300) -> list[Answer]:
    """All answers up to the last one of a question."""
    found: list[Answer] = []
    for _ in range(int(seconds * 100)):
        found += client.answers()
        if found and found[-1].meta["kind"] in ("found", "failed"):
            return found
        time.sleep(0.01)
    raise AssertionError(f"no answer: {found}")


def answered_to(client: ModelClient, question: Any) -> list[Answer]:
    client.ask(question)
    return answered(client)


def labels_of(answer: Answer) -> np.ndarray:
    assert answer.meta["kind"] == "found", answer.meta
    height, width = answer.meta["shape"]
    return np.frombuffer(answer.body, np.int32, count=height * width).reshape(height, width)


def by_command(folder: Path, pixels: np.ndarray, *flags: str) -> np.ndarray:
    Image.fromarray(pixels).save(folder / "image.png")
    out = folder / "out"
    source = str(folder / "image.png")
    assert main(["predict", "--out", str(out), "--format", "tiff", source, *flags]) == 0
    return np.asarray(Image.open(out / "image_labels.tif"))


@pytest.mark.parametrize(
    ("pixels", "given", "flags"),
    [
        pytest.param(PIXELS, {}, ("--model", "nuclei"), id="nuclei"),
        pytest.param(shapes()[0][0], {"model": "shapes"}, ("--model", "shapes"), id="shapes"),
        pytest.param(
            np.repeat(PIXELS[:160, :200, None], 3, axis=2),
            {"diameter": 40.0, "thresholds": {"start": 0.8}},
            ("--model", "nuclei", "--diameter", "40", "--start", "0.8"),
            id="colours, a diameter and a threshold",
        ),
        pytest.param(PIXELS, {"tile": 128}, ("--model", "nuclei", "--tile", "128"), id="tiles"),
    ],
)
def test_labels_are_those_of_the_command_line(
    client: ModelClient,
    pixels: np.ndarray,
    given: dict[str, Any],
    flags: tuple[str, ...],
    tmp_path: Path,
) -> None:
    client.ask(detect(pixels, **given))
    answers = answered(client)
    expected = by_command(tmp_path, pixels, *flags)
    assert expected.max() > 5
    assert np.array_equal(labels_of(answers[-1]), expected)
    shares = [each.meta["share"] for each in answers if each.meta["kind"] == "progress"]
    assert shares == ([i / 12 for i in range(1, 13)] if "tile" in given else [])


def test_other_thresholds_on_the_same_maps(client: ModelClient, tmp_path: Path) -> None:
    client.ask(detect(PIXELS))
    client.ask(again(min_pixels=200, membership=0.6))
    answered(client)
    found = answered(client)[-1]
    flags = ("--model", "nuclei", "--min-pixels", "200", "--membership", "0.6")
    assert np.array_equal(labels_of(found), by_command(tmp_path, PIXELS, *flags))
    assert found.meta["thresholds"]["min_pixels"] == 200
    table = msgspec.json.decode(memoryview(found.body)[4 * PIXELS.size :])
    assert table["id"] == list(range(1, found.meta["objects"] + 1))
    assert table["area"] == np.bincount(labels_of(found).ravel())[1:].tolist()
    assert len(table["mean_grey"]) == len(table["id"])


def test_foreseen_faults_are_answers_and_the_process_stays(client: ModelClient) -> None:
    client.ask(detect(PIXELS, model="no such model"))
    assert "no_model" in answered(client)[-1].meta["text"]
    client.ask(detect(np.zeros((4, 5, 7), np.uint8)))
    assert "bad_channels" in answered(client)[-1].meta["text"]
    client.ask(again(start=0.5))
    assert "not there" in answered(client)[-1].meta["text"]
    client.ask(detect(PIXELS))
    assert labels_of(answered(client)[-1]).any()


NOISE = np.random.default_rng(0).integers(90, 110, (96, 96)).astype(np.uint8)


def test_no_warning_is_lost(client: ModelClient) -> None:
    """Of the model in its process, each time; and of what reads the layer in the thread."""

    def question() -> tuple[dict[str, Any], bytes]:
        warnings.warn("a slow layer", UserWarning, stacklevel=1)
        return detect(NOISE, model="shapes")()

    for _ in range(2):
        with pytest.warns(UserWarning, match="a slow layer"):
            answers = answered_to(client, question)
        said = [each.meta["text"] for each in answers if each.meta["kind"] == "warning"]
        assert len(said) == 1, said
        assert "an image of 96 x 96 px: its percentiles lie in the noise" in said[0]


def test_a_layer_that_cannot_be_read_is_an_answer(client: ModelClient) -> None:
    def question() -> tuple[dict[str, Any], bytes]:
        raise OSError("the disk is gone")

    client.ask(question)
    text = answered(client)[-1].meta["text"]
    assert text == "the layer could not be read: OSError: the disk is gone"


def test_a_killed_process_is_an_answer() -> None:
    client = ModelClient()
    client.ask(detect(np.tile(PIXELS, (6, 6))))
    wait_for(lambda: client.pid is not None)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    last = answered(client)[-1].meta
    assert last["kind"] == "failed"
    assert last["gone"]
    assert "memory may have run out" in last["text"]


def test_a_stop_ends_the_process_in_the_middle_of_the_network() -> None:
    client = ModelClient()
    client.ask(detect(np.tile(PIXELS, (8, 8)), augment=True))  # 11 million pixels, eight times
    wait_for(lambda: any(a.meta.get("text") == "network" for a in client.answers()))
    pid = client.pid
    assert pid is not None
    begun = time.monotonic()
    client.stop()
    assert time.monotonic() - begun < 0.5  # it does not wait
    wait_for(lambda: client.pid is None, seconds=5)
    assert all(answer.meta["kind"] != "found" for answer in client.answers())


def test_without_napari_the_process_ends_in_the_middle_of_the_network(tmp_path: Path) -> None:
    """napari is killed, and so closes nothing by itself."""
    (tmp_path / "napari.py").write_text(NAPARI)
    folder = str(Path(__file__).parent)
    words = [sys.executable, str(tmp_path / "napari.py"), folder]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as napari:
        assert napari.stdout is not None
        pid = int(napari.stdout.readline())
        assert alive(pid)
        napari.kill()
    wait_for(lambda: not alive(pid), seconds=20)


NAPARI = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from test_client import ModelClient, PIXELS, detect, wait_for

if __name__ == "__main__":
    client = ModelClient()
    client.ask(detect(np.tile(PIXELS, (8, 8)), augment=True))
    wait_for(lambda: any(a.meta.get("text") == "network" for a in client.answers()))
    print(client.pid, flush=True)
    time.sleep(600)
"""


def test_a_stop_before_the_start() -> None:
    client = ModelClient()
    client.stop()
    wait_for(lambda: client.pid is None, seconds=20)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    for _ in range(int(seconds * 100)):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")
