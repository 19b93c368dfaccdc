"""The page of `spatialembed serve` as a visitor uses it: in Chromium, against the real server.

No test may ask another origin, break the content security policy or leave an error of the script
in the console; the fixture ``page`` looks after each.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: extra dev")
pytest.importorskip("starlette", reason="needs the extra serve")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
]

EXAMPLES = Path(__file__).parent.parent / "src" / "spatialembed" / "serve" / "examples"
PATIENCE = 240_000  # ms for an image, on a loaded machine


class Server(NamedTuple):
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]


def start(models: list[str], port: int, *more: str) -> Server:
    words = [w for model in models for w in ("--model", model)] + ["--port", str(port), *more]
    words += ["--deadline", "300", "--device", "cpu", "--engine", "torch", "--precision", "float32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spatialembed", "serve", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
    while not ready(url):
        assert process.poll() is None, f"the server ended with {process.returncode}"
        assert time.monotonic() < end, "the server did not become ready"
        time.sleep(0.2)
    return Server(url + "/", process)


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = start(["nuclei", "phase"], free_port())
    yield running
    stop(running.process)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit(NamedTuple):
    """A page and what it has asked and said."""

    page: Any
    requests: list[tuple[str, str]]  # (method, path with query)
    console: list[str]

    def posts(self) -> list[str]:
        return [path for method, path in self.requests if method == "POST"]

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_function("() => document.querySelector('#about').textContent")

    def await_result(self, name: str) -> int:
        """The number of objects that the page names, once it shows the image of this name."""
        self.page.wait_for_function(
            "name => !document.querySelector('#result').hidden"
            " && document.querySelector('#name').textContent === name",
            arg=name,
            timeout=PATIENCE,
        )
        return int(self.page.inner_text("#count").replace(",", ""))

    def await_count(self, count: int, *, same: bool = True) -> None:
        """Until the page names this number of objects, or another one."""
        self.page.wait_for_function(
            "([count, same]) => (document.querySelector('#count').textContent === count) === same",
            arg=[f"{count:,}", same],
        )


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens pages; at the end, none of them may have asked another origin or met an error."""
    visits: list[Visit] = []
    contexts = []

    def visited(url: str, *, opened: bool = True, **settings: Any) -> Visit:
        usual = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"}
        context = browser.new_context(**usual | settings)
        contexts.append(context)
        seen = Visit(context.new_page(), [], [])

        def note(asked: Any) -> None:
            if asked.url.startswith(("blob:", "data:")):
                return
            assert asked.url.startswith(url), f"asked another origin: {asked.url}"
            seen.requests.append((asked.method, asked.url.removeprefix(url)))

        seen.page.on("request", note)
        seen.page.on("pageerror", lambda error: seen.console.append(f"error {error}"))
        seen.page.on("console", lambda m: seen.console.append(f"{m.type} {m.text}"))
        visits.append(seen)
        if opened:
            seen.open(url)
        return seen

    yield visited
    for context in contexts:
        context.close()
    for seen in visits:
        unforeseen = [line for line in seen.console if "Failed to load resource" not in line]
        assert not unforeseen


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def cells() -> bytes:
    """A PNG of (120, 160) uint8 with nuclei."""
    with Image.open(EXAMPLES / "1.png") as image:
        return png(np.asarray(image)[:120, :160])


def asked(server: Server, body: bytes, query: str = "", model: str = "nuclei") -> dict[str, Any]:
    """The answer of the API itself."""
    request = urllib.request.Request(
        f"{server.url}v1/models/{model}/instances?{query}",
        body,
        {"Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE / 1000) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def choose(page: Any, name: str, body: bytes, kind: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": body})


def drawn(page: Any, layer: str) -> np.ndarray:
    """RGBA (h, w, 4) uint8 of a canvas of the stage."""
    url = page.evaluate("id => document.getElementById(id).toDataURL()", layer)
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGBA"))


HAND_OVER = """([kind, name, body]) => {
  const bytes = Uint8Array.from(atob(body), c => c.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: 'image/png' }));
  const target = document.querySelector('.drop');
  const how = { bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried };
  if (kind === 'paste') target.dispatchEvent(new ClipboardEvent('paste', how));
  else for (const type of ['dragenter', 'dragover', 'drop']) {
    target.dispatchEvent(new DragEvent(type, how));
  }
}"""


# ---------------------------------------------------------------- an image comes in


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_dropped_and_pasted(kind: str, server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url)
    seen.page.evaluate(HAND_OVER, [kind, f"{kind}ped.png", base64.b64encode(cells).decode()])
    assert seen.await_result(f"{kind}ped.png") == len(asked(server, cells)["instances"]) > 3
    assert seen.page.is_hidden("#veil")


def test_clicked(server: Server, visit: Any, cells: bytes, tmp_path: Path) -> None:
    (tmp_path / "cells.png").write_bytes(cells)
    seen = visit(server.url)
    with seen.page.expect_file_chooser() as chooser:
        seen.page.click(".drop")
    chooser.value.set_files(tmp_path / "cells.png")
    count = seen.await_result("cells.png")
    assert count == len(asked(server, cells)["instances"])
    assert "120 \u00d7 160 px" in seen.page.inner_text(".file")
    assert "ms" in seen.page.inner_text("#time")


def test_example_and_back_to_another_image(server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url)
    seen.page.click("#examples button >> nth=0")
    assert seen.await_result("nuclei.png") > 100
    choose(seen.page, "cells.png", cells)
    assert 3 < seen.await_result("cells.png") < 100


def test_what_is_painted_is_what_was_answered(server: Server, visit: Any, cells: bytes) -> None:
    """The masks, decoded in the page, cover what those of an independent decoder cover."""
    decoder = pytest.importorskip("pycocotools.mask")
    seen = visit(server.url)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    masks = [decoder.decode(found["segmentation"]) for found in asked(server, cells)["instances"]]
    truth = np.any(masks, axis=0)  # (120, 160)
    fill = drawn(seen.page, "fill")[..., 3] > 0  # (h, w)
    scale = min(fill.shape[0] / 120, fill.shape[1] / 160)
    y, x = (
        np.floor((np.arange(side) + 0.5 - (side - pixels * scale) / 2) / scale).astype(int)
        for side, pixels in zip(fill.shape, (120, 160), strict=True)
    )
    assert np.array_equal(
        truth[y.clip(0, 119)][:, x.clip(0, 159)][:, (x >= 0) & (x < 160)],
        fill[:, (x >= 0) & (x < 160)],
    )
    assert not fill[:, (x < 0) | (x >= 160)].any()
    image = drawn(seen.page, "image")[..., 0]
    assert image[fill].mean() > 2 * image[~fill].mean()  # bright nuclei lie under it


def test_twelve_megapixels(server: Server, visit: Any) -> None:
    with Image.open(EXAMPLES / "1.png") as image:
        tile = np.asarray(image)
    scene = np.tile(tile, (9, 9))[:3000, :4000]
    seen = visit(server.url)
    seen.page.select_option("#model", "phase")
    choose(seen.page, "large.png", png(scene))
    seen.await_result("large.png")
    assert "3000 \u00d7 4000 px" in seen.page.inner_text(".file")
    assert drawn(seen.page, "image")[..., 0].max() > 100


def test_tiff_of_16_bits_is_shown_by_the_server(server: Server, visit: Any, cells: bytes) -> None:
    with Image.open(io.BytesIO(cells)) as image:
        dark = np.asarray(image).astype(np.uint16) * 4  # black to a browser that drops 8 bits
    stream = io.BytesIO()
    tifffile.imwrite(stream, dark)
    deep = io.BytesIO()
    Image.fromarray(dark).save(deep, format="PNG")
    seen = visit(server.url)
    for name, kind, body in (
        ("dark.tif", "image/tiff", stream.getvalue()),
        ("dark.png", "image/png", deep.getvalue()),
    ):
        choose(seen.page, name, body, kind)
        assert seen.await_result(name) > 3
        assert drawn(seen.page, "image")[..., 0].max() > 150
    assert sum(path.endswith("/image") for _, path in seen.requests) == 2


def test_name_with_markup_stays_text(server: Server, visit: Any, cells: bytes) -> None:
    name = "<img src=x onerror=document.title='pwned'>.png"
    seen = visit(server.url)
    choose(seen.page, name, cells)
    seen.await_result(name)
    assert seen.page.inner_text("#name") == name
    assert seen.page.locator("img[src=x]").count() == 0
    assert seen.page.title() == "spatialembed"


def test_model_is_chosen(server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url)
    before = seen.page.inner_text("#about")
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    seen.page.select_option("#model", "phase")
    assert seen.page.inner_text("#about") not in ("", before)
    seen.page.wait_for_function("() => document.querySelector('#result').hidden")
    seen.await_result("cells.png")
    assert [path.split("/")[2] for path in seen.posts()] == ["nuclei", "phase"]


# ---------------------------------------------------------------- reading the result


def centre(server: Server, page: Any, cells: bytes, label: int) -> tuple[float, float]:
    """Where on the screen a pixel of this object lies."""
    decoder = pytest.importorskip("pycocotools.mask")
    mask = decoder.decode(asked(server, cells)["instances"][label - 1]["segmentation"])
    ys, xs = np.nonzero(mask)
    box = page.locator("#stage").bounding_box()
    middle = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return (
        box["x"] + (xs[middle] + 0.5) / 160 * box["width"],
        box["y"] + (ys[middle] + 0.5) / 120 * box["height"],
    )


def test_pointing_reads_an_object(server: Server, visit: Any, cells: bytes) -> None:
    found = asked(server, cells)["instances"]
    seen = visit(server.url)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    seen.page.mouse.move(*centre(server, seen.page, cells, 2))
    seen.page.wait_for_selector("#tip:not([hidden])")
    text = seen.page.inner_text("#tip")
    assert "Object 2" in text
    assert "class" in text
    assert f"{found[1]['score']:.3f}" in text
    assert f"{found[1]['expected_iou']:.2f}" in text
    assert f"{found[1]['area']:,} px" in text
    assert drawn(seen.page, "mark").any()
    seen.page.mouse.move(1, 1)
    seen.page.wait_for_selector("#tip", state="hidden")
    assert not drawn(seen.page, "mark").any()


def test_opacity_and_outline(server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    asked_before = len(seen.requests)
    for opacity, outline, alphas in ((100, 0, {0, 255}), (0, 0, {0}), (0, 2, {0, 255})):
        seen.page.fill("#opacity", str(opacity))
        seen.page.fill("#outline", str(outline))
        assert set(np.unique(drawn(seen.page, "fill")[..., 3])) == alphas
    assert len(seen.requests) == asked_before


def test_histogram_of_areas(server: Server, visit: Any, cells: bytes) -> None:
    areas = [found["area"] for found in asked(server, cells)["instances"]]
    seen = visit(server.url)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    assert f"Median {sorted(areas)[len(areas) // 2]} px" in seen.page.inner_text("#areas-text")
    seen.page.focus("#histogram")
    counted = 0
    for _ in range(seen.page.locator("#histogram g").count()):
        seen.page.keyboard.press("ArrowRight")
        counted += int(seen.page.inner_text("#areas-text").split()[0])
        assert seen.page.inner_text("#said") == seen.page.inner_text("#areas-text")
    assert counted == len(areas)
    assert drawn(seen.page, "mark").any()
    seen.page.keyboard.press("Escape")
    assert not drawn(seen.page, "mark").any()
    seen.page.hover("#histogram g >> nth=0")
    assert f"of {min(areas)}" in seen.page.inner_text("#areas-text")
    assert drawn(seen.page, "mark").any()


def test_zoom(server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    whole = drawn(seen.page, "image")
    seen.page.click("#in")
    assert (drawn(seen.page, "image") != whole).any()
    seen.page.click("#out")
    seen.page.click("#fit")
    assert np.array_equal(drawn(seen.page, "image"), whole)


DOWNLOADED = {
    "Labels PNG": ".png",
    "Labels TIFF": ".tif",
    "Overlay": "_overlay.png",
    "Table": ".csv",
    "COCO": ".json",
    "GeoJSON": ".geojson",
    "ROIs": ".zip",
    "Everything": ".json",
}


def test_downloads(server: Server, visit: Any, cells: bytes, tmp_path: Path) -> None:
    seen = visit(server.url)
    choose(seen.page, "cells.v2.png", cells)
    count = seen.await_result("cells.v2.png")
    saved = {}
    for title, suffix in DOWNLOADED.items():
        word, _, kind = title.partition(" ")
        with seen.page.expect_download() as download:
            seen.page.locator("#downloads button", has_text=word).filter(has_text=kind).click()
        assert download.value.suggested_filename.startswith("cells.v2")
        assert download.value.suggested_filename.endswith(suffix)
        saved[title] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[title])
    with Image.open(saved["Labels PNG"]) as image:
        assert np.asarray(image).max() == count
    assert tifffile.imread(saved["Labels TIFF"]).max() == count
    assert len(saved["Table"].read_text().splitlines()) == count + 1
    assert len(json.loads(saved["COCO"].read_text())["annotations"]) == count
    assert len(json.loads(saved["GeoJSON"].read_text())["features"]) == count
    assert len(seen.posts()) == 1


# ---------------------------------------------------------------- thresholds


def test_thresholds_without_the_network(server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url)
    choose(seen.page, "cells.png", cells)
    before = seen.await_result("cells.png")
    areas = sorted(found["area"] for found in asked(server, cells)["instances"])
    limit = areas[len(areas) // 2]
    seen.page.keyboard.press("Home")
    assert drawn(seen.page, "mark").any()
    seen.page.eval_on_selector(
        "#threshold-min_pixels",
        "(input, limit) => { for (input.value = 0; input.value < limit; input.stepUp())"
        " input.dispatchEvent(new Event('input')); input.dispatchEvent(new Event('input')); }",
        limit,
    )
    seen.await_count(before, same=False)
    fewer = int(seen.page.inner_text("#count"))
    assert seen.page.is_hidden("#tip")  # the object is another one now
    assert not drawn(seen.page, "mark").any()
    assert fewer == len(asked(server, cells, f"min_pixels={limit}")["instances"]) < before
    questions = [path for method, path in seen.requests if method == "GET" and "/maps/" in path]
    assert len(questions) == 1  # of some hundred moves
    assert len(seen.posts()) == 1
    seen.page.click("#reset")
    seen.await_count(before)
    assert len(seen.posts()) == 1


def test_late_answer_to_an_old_question_is_dropped(
    server: Server, visit: Any, cells: bytes
) -> None:
    seen = visit(server.url)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    seen.page.route("**/maps/*/instances?*min_pixels=499*", hold)
    with seen.page.expect_request("**/maps/*/instances?*min_pixels=499*"):
        seen.page.fill("#threshold-min_pixels", "499")
    with seen.page.expect_response("**/maps/*/instances?*min_pixels=0*"):
        seen.page.fill("#threshold-min_pixels", "0")
    count = len(asked(server, cells, "min_pixels=0")["instances"])
    seen.await_count(count)
    for route in held:
        route.fulfill(json={"instances": []})
    seen.page.wait_for_timeout(300)
    assert seen.page.inner_text("#count") == str(count)


def test_maps_that_are_gone_are_made_again(server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    seen.page.route(
        "**/maps/*/instances?*",
        lambda route: route.fulfill(
            status=410, json={"error": {"code": "maps_gone", "message": "gone", "remedy": "again"}}
        ),
    )
    with seen.page.expect_response(lambda answer: answer.request.method == "POST"):
        seen.page.fill("#threshold-min_pixels", "0")
    count = len(asked(server, cells, "min_pixels=0")["instances"])
    seen.await_count(count)
    assert len(seen.posts()) == 2
    assert seen.page.is_hidden("#failure")
    assert seen.page.get_attribute("#result", "aria-busy") is None


def test_image_that_is_not_kept(server: Server, visit: Any, cells: bytes) -> None:
    """As one that is too large: shown if the browser can, sent again for each new question."""
    seen = visit(server.url)

    def unkept(route: Any) -> None:
        answer = route.fetch()
        if "json" in answer.headers["content-type"]:
            route.fulfill(response=answer, json=answer.json() | {"maps": None})
        else:
            route.fulfill(response=answer)

    seen.page.route("**/v1/models/nuclei/instances?*", unkept)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    with seen.page.expect_response("**/instances?*min_pixels=0"):
        seen.page.fill("#threshold-min_pixels", "0")
    seen.await_count(len(asked(server, cells, "min_pixels=0")["instances"]))
    with seen.page.expect_download() as download:
        seen.page.locator("#downloads button", has_text="Table").click()
    assert download.value.suggested_filename == "cells_objects.csv"
    assert len(seen.posts()) == 3
    choose(seen.page, "text.png", b"no image at all")
    seen.page.wait_for_selector("#failure:not([hidden])")
    with seen.page.expect_download() as download:  # still of the image that is shown
        seen.page.locator("#downloads button", has_text="Table").click()
    assert download.value.suggested_filename == "cells_objects.csv"
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, np.asarray(Image.open(io.BytesIO(cells))))
    choose(seen.page, "cells.tif", tiff.getvalue(), "image/tiff")
    assert seen.await_result("cells.tif") > 3
    assert "the browser cannot show" in seen.page.inner_text("#time")


# ---------------------------------------------------------------- errors


def bomb(width: int = 13000, height: int = 13000) -> bytes:
    """A PNG of few bytes that claims many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width + 1) * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "body", "status", "word"),
    [
        ("bomb.png", bomb(), 413, "13000"),
        ("text.png", b"no image at all", 422, "content"),
        ("empty.png", b"", None, "empty"),
    ],
)
def test_refused_images(
    name: str, body: bytes, status: int | None, word: str, server: Server, visit: Any
) -> None:
    seen = visit(server.url)
    answers: list[int] = []
    seen.page.on(
        "response", lambda r: answers.append(r.status) if r.request.method == "POST" else 0
    )
    choose(seen.page, name, body)
    seen.page.wait_for_selector("#failure:not([hidden])")
    assert answers == ([] if status is None else [status])
    assert word in seen.page.inner_text(".failure-what").replace(",", "")
    assert seen.page.inner_text(".failure-remedy")
    assert seen.page.is_hidden("#again")  # the same image would be refused again
    assert seen.page.is_visible(".drop")
    seen.page.click("#dismiss")
    assert seen.page.is_hidden("#failure")


def test_too_many_bytes_are_not_even_sent(server: Server, visit: Any, tmp_path: Path) -> None:
    with open(tmp_path / "long.png", "wb") as file:
        file.truncate((64 << 20) + 1)
    seen = visit(server.url)
    seen.page.set_input_files("#file", tmp_path / "long.png")
    seen.page.wait_for_selector("#failure:not([hidden])")
    assert "65 MiB" in seen.page.inner_text(".failure-what")
    assert not seen.posts()


def test_busy_server_is_asked_again(server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url)
    busy = {"code": "busy", "message": "8 images wait already", "remedy": "try again later"}
    seen.page.route(
        "**/v1/models/nuclei/instances?*",
        lambda route: route.fulfill(status=503, headers={"Retry-After": "2"}, json={"error": busy}),
        times=1,
    )
    choose(seen.page, "cells.png", cells)
    seen.page.wait_for_selector("#failure:not([hidden])")
    assert "8 images wait already" in seen.page.inner_text("#failure")
    assert "Try again later" in seen.page.inner_text("#failure")
    assert seen.page.is_disabled("#again")
    assert "in 2 s" in seen.page.inner_text("#again") or "in 1 s" in seen.page.inner_text("#again")
    seen.page.click("#again")  # waits until it may be pressed
    assert seen.await_result("cells.png") > 3
    assert seen.page.is_hidden("#failure")


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (500, {"error": {"code": "model_died", "message": "the model died"}}, "The model died."),
        (502, "<h1>Bad Gateway</h1>", "The server answered 502."),  # of a proxy
    ],
)
def test_server_that_fails_is_quoted(
    status: int, body: Any, line: str, server: Server, visit: Any, cells: bytes
) -> None:
    seen = visit(server.url)
    content = body if isinstance(body, str) else json.dumps(body)
    seen.page.route(
        "**/v1/models/nuclei/instances?*",
        lambda route: route.fulfill(status=status, body=content),
        times=1,
    )
    choose(seen.page, "cells.png", cells)
    seen.page.wait_for_selector("#failure:not([hidden])")
    assert seen.page.inner_text(".failure-what") == line
    seen.page.click("#again")
    seen.await_result("cells.png")


def test_progress_of_sending_and_cancel(server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url)
    noise = np.random.default_rng(0).integers(0, 256, (600, 600), np.uint8)  # 360 kB
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 30_000}
    line = seen.page.context.new_cdp_session(seen.page)
    line.send("Network.emulateNetworkConditions", slow)
    choose(seen.page, "noise.png", png(noise))
    seen.page.wait_for_function(
        "() => /[1-9] %/.test(document.querySelector('#phase').textContent)"
    )
    assert 0 < seen.page.eval_on_selector("#progress", "bar => bar.value") < 1
    seen.page.click("#cancel")
    assert seen.page.is_visible(".drop")
    assert seen.page.is_hidden("#failure")
    line.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": -1})
    choose(seen.page, "cells.png", cells)
    assert seen.await_result("cells.png") > 3


def test_token_and_a_server_killed_midway(visit: Any, cells: bytes, tmp_path: Path) -> None:
    port, secret = free_port(), "a-token-of-thirty-two-characters"
    (tmp_path / "token").write_text(secret + "\n")
    mortal = start(["phase"], port, "--token-file", str(tmp_path / "token"))
    try:
        seen = visit(mortal.url, opened=False)
        page = seen.page
        page.goto(mortal.url)
        for attempt in ("wrong", secret):
            page.wait_for_selector("#token-form:not([hidden])")
            page.fill("#token", attempt)
            page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#about').textContent")
        choose(page, "cells.png", cells)
        count = seen.await_result("cells.png")
        assert not any(secret in path for _, path in seen.requests)
        with page.expect_request(lambda asked: asked.method == "POST"):
            page.set_input_files("#file", EXAMPLES / "1.png")
        mortal.process.kill()
        mortal.process.wait()
        page.wait_for_selector("#failure:not([hidden])", timeout=PATIENCE)
        assert "does not answer" in page.inner_text(".failure-what")
        assert int(page.inner_text("#count")) == count  # what was there is still there
        mortal = start(["phase"], port, "--token-file", str(tmp_path / "token"))
        page.click("#again")
        seen.await_result("1.png")
        assert page.is_hidden("#failure")
    finally:
        stop(mortal.process)


# ---------------------------------------------------------------- everybody


def test_by_keyboard_alone(server: Server, visit: Any) -> None:
    seen = visit(server.url)
    page = seen.page

    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.innerText"))

    for _ in range(12):
        page.keyboard.press("Tab")
        if focused().startswith("Nuclei"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    count = seen.await_result("nuclei.png")
    assert focused() == "stage"
    assert f"{count} objects found" in page.inner_text("#said")
    read = set()
    page.keyboard.press("Home")
    for i in range(1, 6):
        said = page.inner_text("#said")
        assert said.startswith(f"{i} of {count}: object ")
        assert "score" in said
        assert "expected IoU" in said
        assert "area" in said
        assert page.is_visible("#tip")
        read.add(said.split("object ")[1].split(",")[0])
        page.keyboard.press("ArrowRight")
    assert len(read) == 5
    page.keyboard.press("End")
    assert page.inner_text("#said").startswith(f"{count} of {count}")
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    assert page.is_visible("#tip")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")
    for _ in range(12):
        page.keyboard.press("Tab")
        if focused() == "threshold-start":
            break
    page.keyboard.press("End")
    seen.await_count(count, same=False)
    assert len(seen.posts()) == 1


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 1920])
def test_no_width_scrolls_sideways(width: int, server: Server, visit: Any, cells: bytes) -> None:
    seen = visit(server.url, viewport={"width": width, "height": 740})
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert seen.page.evaluate(overflow) <= 0
    name = f"a{'_very' * 30}_long_name.png"
    choose(seen.page, name, cells)
    seen.await_result(name)
    assert seen.page.evaluate(overflow) <= 0


def test_phone_by_touch(server: Server, visit: Any, cells: bytes) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    seen = visit(server.url, device_scale_factor=2, **phone)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    seen.page.touchscreen.tap(*centre(server, seen.page, cells, 1))
    seen.page.wait_for_selector("#tip:not([hidden])")
    assert "Object 1" in seen.page.inner_text("#tip")
    seen.page.evaluate("document.querySelector('#thresholds input').scrollIntoView()")
    image = seen.page.locator("#stage").bounding_box()
    slider = seen.page.locator("#thresholds input").first.bounding_box()
    assert image["y"] >= 0  # in sight, above the slider that changes it
    assert image["y"] + image["height"] <= slider["y"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_in_light_and_dark(
    scheme: str, server: Server, visit: Any, cells: bytes
) -> None:
    """axe finds nothing at the start, at an error and at a result, in the system's colours."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="extra dev").Axe()
    seen = visit(server.url, color_scheme=scheme)

    def clean() -> None:
        found = axe.run(seen.page)
        assert not found.response["violations"], found.generate_report()

    ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(v) for v in ground[4:-1].split(",")) > 380
    assert light == (scheme == "light")
    clean()
    choose(seen.page, "text.png", b"no image at all")
    seen.page.wait_for_selector("#failure:not([hidden])")
    clean()
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    seen.page.keyboard.press("ArrowRight")
    clean()


def test_below_the_prefix_of_a_proxy(server: Server, visit: Any, cells: bytes) -> None:
    below = server.url + "some/where/"
    seen = visit(below, opened=False)  # asks nothing outside of it

    def forward(route: Any) -> None:
        route.continue_(url=route.request.url.replace(below, server.url))

    seen.page.route(below + "**", forward)
    seen.open(below)
    choose(seen.page, "cells.png", cells)
    seen.await_result("cells.png")
    with seen.page.expect_download():
        seen.page.locator("#downloads button", has_text="Table").click()


def test_policy_lets_nothing_else_in(server: Server, visit: Any) -> None:
    seen = visit(server.url)
    seen.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.broken = 1';"
        " document.body.append(s); }"
    )
    assert seen.page.evaluate("window.broken") is None
    assert any("Content Security Policy" in line for line in seen.console)
    seen.console.clear()
    markup = (EXAMPLES.parent / "static" / "index.html").read_text(encoding="utf-8")
    assert " style=" not in markup
    assert "<style" not in markup
    assert "http" not in markup.replace("http://www.w3.org/2000/svg", "")
