"""The server's answers: equal to ``predict``, bounded, and with a stable code if they are errors.

Every test shares one server, with a model of plain shapes.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans
from PIL import Image

import spatialembed
from served import SAME, Served, raw
from spatialembed.command.main import main

pytest.importorskip("starlette")
MAX_BYTES = 200_000


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    served = Served("--model", "shapes", "--max-bytes", str(MAX_BYTES), "--max-pixels", "1000000")
    try:
        served.wait_until_ready()
        yield served
    finally:
        served.close()


def pixels() -> np.ndarray:
    """Some shapes, small enough to be quick."""
    example = resources.files("spatialembed").joinpath("serve", "examples", "3.png")
    with Image.open(io.BytesIO(example.read_bytes())) as image:
        return np.asarray(image)[40:168, 40:200]


def encoded(image: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format=form, **options)  # type: ignore[arg-type]
    return stream.getvalue()


PNG = encoded(pixels())


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``predict`` writes for the same image."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "a.png").write_bytes(PNG)
    for form in ("labels,overlay,csv,coco,geojson,imagej", "tiff"):
        out = str(folder / form[:4])
        words = ["predict", str(folder / "a.png"), "--model", "shapes", "--out", out]
        assert main([*words, "--format", form, *SAME]) == 0
    return folder


# --- equal to predict


@pytest.mark.parametrize(
    ("form", "file", "media"),
    [
        ("labels", "labe/a_labels.png", "image/png"),
        ("tiff", "tiff/a_labels.tif", "image/tiff"),
        ("overlay", "labe/a_overlay.png", "image/png"),
        ("csv", "labe/objects.csv", "text/csv; charset=utf-8"),
        ("coco", "labe/instances.json", "application/json"),
        ("geojson", "labe/a.geojson", "application/geo+json"),
        ("imagej", "labe/a_rois.zip", "application/zip"),
    ],
)
def test_files_are_those_of_predict(
    server: Served, predicted: Path, form: str, file: str, media: str
) -> None:
    answer = server.post(PNG, f"format={form}&name=a.png")
    assert (answer.status, answer.headers["Content-Type"]) == (200, media)
    assert answer.body == (predicted / file).read_bytes()


def test_json_has_what_coco_has_and_outlines(server: Served, predicted: Path) -> None:
    told = server.post(PNG, "polygons=1").json
    coco = json.loads((predicted / "labe" / "instances.json").read_text())
    assert len(told["instances"]) > 3
    assert told["image"] == {"file_name": "image", "width": 160, "height": 128}
    assert told["categories"] == [{"id": 1, "name": "object"}] == coco["categories"]
    assert (told["model"], told["maps"], told["truncated"]) == ("shapes", None, False)
    for ours, theirs in zip(told["instances"], coco["annotations"], strict=True):
        both = ("label", "score", "bbox", "area", "segmentation", "category_id")
        assert [ours[key] for key in both] == [theirs[key] for key in both]
        assert sum(_area(ring) for part in ours["polygons"] for ring in part) == ours["area"]


def _area(ring: list[list[float]]) -> float:
    """Signed, by the shoelace formula: holes are negative."""
    x, y = np.array(ring).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("GIF", {})],
)
def test_image_files_of_other_formats(server: Served, form: str, options: dict) -> None:
    assert server.post(encoded(pixels(), form, **options)).json["instances"]


def test_sixteen_bits_are_read_as_such(server: Served) -> None:
    deep = encoded(pixels().astype(np.uint16) * 257, "TIFF")
    assert server.post(deep, "format=labels").body == server.post(PNG, "format=labels").body


def test_multipart_of_one_file(server: Served) -> None:
    kind, body = _form(PNG)
    plain = server.post(PNG, "name=my cell.png".replace(" ", "%20"))
    path = "/v1/models/shapes/instances"
    assert server.ask("POST", path, body, {"Content-Type": kind}).body == plain.body


def _form(content: bytes, boundary: str = "x1", name: str = "my cell.png") -> tuple[str, bytes]:
    head = f'Content-Disposition: form-data; name="image"; filename="C:\\fake\\{name}"'
    body = f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", body


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("image/png", "image/png"),
        ("text/csv;q=0.9, application/json;q=0.1", "text/csv; charset=utf-8"),
        ("application/geo+json", "application/geo+json"),
        ("*/*", "application/json"),
        ("image/avif, */*;q=0.5", "application/json"),
    ],
)
def test_accept_chooses_the_format(server: Served, accept: str, media: str) -> None:
    headers = {"Content-Type": "image/png", "Accept": accept}
    answer = server.ask("POST", "/v1/models/shapes/instances", PNG, headers)
    assert answer.headers["Content-Type"] == media


# --- the network once, questions often


def test_kept_maps_answer_other_thresholds_as_a_new_request_does(server: Served) -> None:
    first = server.post(PNG, "keep=1&name=a.png")
    key = first.headers["Maps"]
    assert first.json["maps"] == key
    assert len(key) == 22
    path = f"/v1/models/shapes/maps/{key}"
    for query in ("start=0.5", "min_pixels=200&format=labels", "membership=0.7&format=csv"):
        again = server.get(f"{path}/instances?{query}")
        anew = server.post(PNG, f"{query}&name=a.png")
        if "format" in query:
            assert again.body == anew.body
        else:
            assert again.json["instances"] == anew.json["instances"]
        assert "predict;dur" not in again.headers["Server-Timing"]
    assert Image.open(io.BytesIO(server.get(f"{path}/image").body)).size == (160, 128)
    assert server.ask("DELETE", path).status == 204
    gone = server.get(f"{path}/instances")
    assert (gone.status, gone.code) == (410, "maps_gone")


def test_of_one_visitor_four_are_kept(server: Served) -> None:
    keys = [server.post(PNG, "keep=1").headers["Maps"] for _ in range(5)]
    states = [server.get(f"/v1/models/shapes/maps/{key}/image").status for key in keys]
    assert states == [410, 200, 200, 200, 200]


# --- refused


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is large, and is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        pytest.param(bomb(13_000, 13_000), 413, "too_large", id="169 Mpx in 164 kB"),
        pytest.param(b"", 422, "empty_file", id="nothing"),
        pytest.param(b"hello, world, this is text", 422, "not_an_image", id="text"),
        pytest.param(PNG[: len(PNG) // 2], 422, "truncated", id="half"),
        pytest.param(bytes(MAX_BYTES + 1), 413, "too_large", id="too many bytes"),
    ],
)
def test_images_that_cannot_be_used(server: Served, image: bytes, status: int, code: str) -> None:
    before = server.model_process()
    answer = server.post(image)
    assert (answer.status, answer.code) == (status, code)
    assert "/tmp" not in answer.json["error"]["message"]
    assert server.model_process() == before


def test_bytes_are_counted_as_they_come(server: Served) -> None:
    head = b"POST /v1/models/shapes/instances HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = raw(server.port, head + (b"10000\r\n" + bytes(0x10000) + b"\r\n") * 5)
    assert answer.startswith(b"HTTP/1.1 413 ")


PNG_TYPE = {"Content-Type": "image/png"}
ONE = "/v1/models/shapes/instances"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("POST", "/v1/models/cats/instances", PNG_TYPE, 404, "no_such_model"),
        ("GET", "/v1/nothing", {}, 404, "no_such_path"),
        ("GET", "/examples/../openapi.json", {}, 404, "no_such_path"),
        ("GET", ONE, {}, 405, "bad_method"),
        ("POST", ONE + "?strat=0.5", PNG_TYPE, 400, "bad_setting"),
        ("POST", ONE + "?foo=1", PNG_TYPE, 400, "bad_setting"),
        ("POST", ONE + "?start=2", PNG_TYPE, 400, "bad_setting"),
        ("POST", ONE + "?start=x", PNG_TYPE, 400, "bad_setting"),
        ("POST", ONE + "?start=nan", PNG_TYPE, 400, "bad_setting"),
        ("POST", ONE + "?start=0.5&start=0.6", PNG_TYPE, 400, "bad_setting"),
        ("POST", ONE + "?format=exe", PNG_TYPE, 400, "bad_setting"),
        ("POST", ONE, PNG_TYPE | {"Accept": "video/mp4"}, 406, "not_acceptable"),
        ("POST", ONE, {"Content-Type": "text/html"}, 415, "unsupported_type"),
        ("POST", ONE, PNG_TYPE | {"Content-Encoding": "gzip"}, 415, "unsupported_type"),
        ("POST", ONE, {"Content-Type": "multipart/form-data"}, 400, "bad_multipart"),
        ("POST", ONE, PNG_TYPE | {"Origin": "https://evil.example"}, 403, "bad_origin"),
        ("POST", ONE, PNG_TYPE | {"Origin": "null"}, 403, "bad_origin"),
        ("GET", "/v1/models", {"Host": "evil.example"}, 421, "bad_host"),
        ("GET", "/v1/models/shapes/maps/none/instances", {}, 410, "maps_gone"),
    ],
)
def test_requests_that_are_refused(
    server: Served, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    answer = server.ask(method, path, PNG if method == "POST" else None, headers)
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"]["remedy"]


def test_faults_of_an_image_have_its_name_and_refusals_are_counted(server: Served) -> None:
    before = server.get("/metrics").body
    answer = server.post(PNG[:100], "name=cell%3Cb%3E.png")
    assert answer.json["error"]["message"].startswith("cell<b>.png: ")
    raw(server.port, b"GET / HTTP/1.1\r\n\r\n")
    server.ask("GET", "/v1/models", None, {"Host": "evil.example"})
    server.get("/v1/nothing")
    after = server.get("/metrics").body
    for code in ("truncated", "bad_request", "bad_host", "no_such_path"):
        assert _counted(after, code) == _counted(before, code) + 1


def _counted(metrics: bytes, code: str) -> float:
    start = f'spatialembed_refusals_total{{code="{code}"}} '
    lines = metrics.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(start))


FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(*_form(b"x", "b" * 10_000), id="boundary of 10 kB"),
        pytest.param(FORM, b"--x\r\n\r\n\r\n" * 15_000 + b"--x--", id="15,000 parts"),
        pytest.param(FORM, b"--x\r\nA: " + b"y" * 9000, id="long header"),
        pytest.param(FORM, b"--x\r\nA: b\r\n\r\nhello", id="no end"),
    ],
)
def test_odd_multipart_is_refused(server: Served, kind: str, body: bytes) -> None:
    answer = server.ask("POST", ONE, body, {"Content-Type": kind})
    assert (answer.status, answer.code) == (400, "bad_multipart")


def test_own_origin_is_fine(server: Served) -> None:
    headers = PNG_TYPE | {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("POST", ONE, PNG, headers).status == 200


def test_expect_is_refused_before_the_body_is_sent(server: Served) -> None:
    head = f"POST {ONE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    head += f"Expect: 100-continue\r\nContent-Length: {MAX_BYTES + 1}\r\n\r\n"
    answer = raw(server.port, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    fine = head.replace(str(MAX_BYTES + 1), "3")
    assert raw(server.port, fine.encode(), wait=2).startswith(b"HTTP/1.1 100 ")


# --- about the server


def test_the_event_loop_has_no_torch(server: Served) -> None:
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{server.model_process()}/maps").read_text()


def test_health_models_and_metrics(server: Served) -> None:
    server.post(PNG)
    assert server.get("/healthz").json == {"live": True}
    assert server.get("/readyz").json == {"ready": True, "models": {"shapes": "ready"}}
    (model,) = server.get("/v1/models").json["models"]
    assert (model["name"], model["licence"]) == ("shapes", "Apache-2.0")
    assert model["class_names"] == ["object"]
    counted = b'spatialembed_answers_total{kind="image",model="shapes"}'
    assert counted in server.get("/metrics").body


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/examples/1.png"])
def test_the_page_may_reach_nothing_but_its_server(server: Served, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 200
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# --- as /openapi.json describes it

DESCRIBED = json.loads((resources.files(spatialembed) / "serve" / "openapi.json").read_bytes())
OPERATIONS = [
    (path, method)
    for path, item in DESCRIBED["paths"].items()
    for method in item
    if method != "parameters"
]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_described(server: Served, path: str, method: str) -> None:
    """Every second request goes to a model that there is, and with an image, not random bytes."""
    schemathesis = pytest.importorskip("schemathesis")
    import requests
    from schemathesis.specs.openapi import checks

    held = [
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
        checks.status_code_conformance,
    ]
    operation = schemathesis.openapi.from_dict(DESCRIBED)[path][method]
    statuses = set()

    @settings(
        max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(), real=booleans())
    def run(case: Any, real: bool) -> None:
        if real and "name" in case.path_parameters:
            case.path_parameters["name"] = "shapes"
        call = case.as_transport_kwargs(base_url=f"http://127.0.0.1:{server.port}")
        if method == "post" and real:
            call |= {"data": PNG, "files": None}
            call["headers"]["Content-Type"] = "image/png"
        answer = requests.request(**call, timeout=60)
        case.validate_response(answer, checks=held)
        statuses.add(answer.status_code)

    run()
    assert not statuses & {500, 504}
    assert "maps" in path or 200 in statuses
