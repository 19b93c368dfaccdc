"""The checks before every route, without a server; and the maps that are kept, without a model."""

from __future__ import annotations

import os
import signal
import socket
import threading
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette")
from starlette.responses import Response

from spatialembed.command.main import main
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference.predictor import Seen
from spatialembed.serve import gate as gating
from spatialembed.serve import kept as keeping
from spatialembed.serve.decoder import Decoder, Picture
from spatialembed.serve.faults import Refused
from spatialembed.serve.gate import Gate
from spatialembed.serve.kept import Kept, Shelf
from spatialembed.serve.multipart import one_file
from spatialembed.types import Embeddings, Instances

TOKEN = "0123456789abcdef"


def room(_: object) -> None:
    """Always."""


def gate(token: str | None = None, rate: float | None = None) -> Gate:
    proxies = [ip_network("127.0.0.1"), ip_network("10.0.0.0/8")]
    return Gate(Response(b"fine"), token, {"localhost", "[::1]"}, rate, room, proxies)


def ask(
    gate: Gate, path: str = "/v1/models", address: str = "a", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers, and the code of the error."""
    headers = {"host": "localhost:8000"} | headers
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {
        "type": "http",
        "path": path,
        "headers": pairs,
        "method": "GET",
        "client": (address, 1),
    }
    try:
        gate.check(scope)
    except Refused as fault:
        return fault.status, fault.headers, fault.code
    return 200, {}, ""


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer \u00e9", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN} ", 200),
    ],
)
def test_token(given: str | None, status: int) -> None:
    headers = {} if given is None else {"authorization": given}
    assert ask(gate(TOKEN), **headers)[0] == status


@pytest.mark.parametrize("path", ["/", "/page.js", "/healthz", "/readyz", "/examples/1.png"])
def test_the_page_and_the_probes_need_no_token(path: str) -> None:
    assert ask(gate(TOKEN), path)[0] == 200


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/models/x/instances", "//"])
def test_the_rest_needs_one(path: str) -> None:
    status, headers, code = ask(gate(TOKEN), path)
    assert (status, code, headers["WWW-Authenticate"]) == (401, "bad_token", "Bearer")


@pytest.mark.parametrize(
    ("host", "status"),
    [("LOCALHOST", 200), ("[::1]:80", 200), ("", 421), ("evil.example", 421),
     ("localhost.evil.example", 421), ("evil.example:80@localhost", 421)],
)  # fmt: skip
def test_host(host: str, status: int) -> None:
    assert ask(gate(), host=host)[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:8000", 200), ("https://localhost:8000", 200), ("null", 403),
     ("http://localhost:9000", 403), ("http://localhost:8000.evil.example", 403),
     ("http://[", 403), ("http://localhost:8000/", 403)],
)  # fmt: skip
def test_origin(origin: str, status: int) -> None:
    assert ask(gate(), origin=origin)[0] == status


def test_rate_of_each_address() -> None:
    limited = gate(rate=2.0)
    answers = [ask(limited) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200] * 4 + [429]
    assert answers[-1][1]["Retry-After"] == "1"
    assert ask(limited, address="b")[0] == 200
    assert ask(limited, path="/healthz")[0] == 200


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [("10.1.2.3", "1.1.1.1", "1.1.1.1"), ("10.1.2.3", "8.8.8.8, 1.1.1.1, 127.0.0.1", "1.1.1.1"),
     ("1.1.1.1", "2.2.2.2", "1.1.1.1"), ("10.1.2.3", "10.9.9.9", "10.9.9.9")],
)  # fmt: skip
def test_the_rate_is_that_of_the_client_behind_the_proxy(
    peer: str, forwarded: str, client: str
) -> None:
    limited = gate(rate=0.5)
    assert ask(limited, address=peer, x_forwarded_for=forwarded)[0] == 200
    assert ask(limited, address=client)[0] == 429
    assert ask(limited, address="9.9.9.9")[0] == 200


def test_a_port_that_is_taken_is_named(capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"bad_address: port {port} of 127.0.0.1 is taken" in capsys.readouterr().err


def test_who_asks_too_often_still_gets_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    limited, statuses = gate(rate=2.0), []
    for tenth in range(100):
        monkeypatch.setattr(gating.time, "monotonic", lambda now=tenth / 10: now)
        statuses.append(ask(limited)[0])
    assert 22 <= statuses.count(200) <= 24  # 4 at once, then 2 a second


def test_a_token_of_any_letters() -> None:
    named = gate("schlüssel-für-zellen")
    right = "Bearer schlüssel-für-zellen"
    assert ask(named, authorization=right)[0] == 200
    assert ask(named, authorization=right + "x")[0] == 401


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("multipart/form-data; boundary*=x; boundary*0=y", id="contradiction"),
        pytest.param(f"multipart/form-data; boundary*{'9' * 5000}=x", id="long number"),
        pytest.param(f'multipart/form-data; boundary="{";" * 16_000}"', id="long value"),
    ],
)
def test_odd_boundaries_are_refused(kind: str) -> None:
    with pytest.raises(Refused, match="bad_multipart"):
        one_file(kind, b"--x\r\n\r\nabc\r\n--x--")


def test_draining_comes_before_the_token() -> None:
    draining = gate(TOKEN)
    draining.draining = True
    status, headers, code = ask(draining)
    assert (status, code) == (503, "draining")
    assert int(headers["Retry-After"]) > 0
    assert ask(draining, "/healthz")[0] == 200


# --- settings


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--host", "0.0.0.0"], "no_token"),
        (["--host", "::"], "no_token"),
        (["--token-file", "short"], "no_token"),
        (["--token-file", "bytes"], "no_token"),
        (["--host", "é" * 70, "--token-file", "long"], "bad_address"),
        (["--queue", "0"], "bad_setting"),
        (["--model", "nuclei", "--model", "nuclei"], "bad_setting"),
        (["--model", "a/b=nuclei"], "bad_setting"),
        (["--port", "70000"], "bad_address"),
        (["--proxies", "nginx"], "bad_setting"),
    ],
)
def test_settings_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("secret")
    Path("bytes").write_bytes(b"\xff" * 40)
    Path("long").write_text("s" * 40)
    assert main(["serve", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error {code}: ")


# --- kept maps


def some(visitor: str, pixels: int = 100) -> Kept:
    none = Instances(np.zeros((1, pixels), np.int32), np.zeros(0), np.zeros(0, np.int64))
    maps = Embeddings(*(torch.zeros(1, c, 1, pixels) for c in (2, 2, 1)))
    picture = Picture(np.zeros((1, pixels), np.uint8), None, [])
    return Kept(visitor, "image", picture, Seen(none, maps, 1.0))


def test_kept_maps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    of_a = [shelf.put(some("a")) for _ in range(keeping.MOST_OF_ONE + 1)]
    assert shelf.get(of_a[0] or "") is None  # the visitor's oldest goes for its newest
    assert shelf.get(of_a[1] or "") is not None
    rest = [shelf.put(some(f"v{i}")) for i in range(keeping.MOST - 1)]
    assert shelf.get(of_a[1] or "") is not None  # asked last, so it stays
    assert shelf.get(of_a[2] or "") is None
    assert all(shelf.get(key or "") for key in rest)
    monkeypatch.setattr(keeping, "MOST_BYTES", 2 * some("a").size)
    assert shelf.put(some("a", 1000)) is None
    assert shelf.put(some("b")) is not None
    assert sum(shelf.get(key or "") is not None for key in [*of_a, *rest]) == 1


def test_kept_maps_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    key = shelf.put(some("a"))
    monkeypatch.setattr(keeping, "SECONDS", -1.0)
    assert shelf.get(key or "") is None


# --- the decoder


def test_a_decoder_that_dies_is_replaced(tmp_path: Path) -> None:
    decoder = Decoder(tmp_path)
    stream = BytesIO()
    Image.new("L", (2, 1), 7).save(stream, "PNG")
    image = stream.getvalue()
    assert decoder(image, 1000).pixels.tolist() == [[7, 7]]
    assert not list(tmp_path.iterdir())  # the image does not stay on the disk
    os.kill(decoder.child.pid, signal.SIGSTOP)  # it dies of the next file
    threading.Timer(0.3, decoder.child.kill).start()
    with pytest.raises(SpatialEmbedError, match="not_decodable"):
        decoder(image, 1000)
    assert decoder(image, 1000).pixels.tolist() == [[7, 7]]
    decoder.child.kill()
    decoder.child.wait()
    assert decoder(image, 1000).pixels.tolist() == [[7, 7]]
    decoder.child.kill()
