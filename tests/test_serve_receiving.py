"""What comes over the socket: in time, bounded, and never to be read in two ways.

The protocol runs in a thread, before an application that answers with the length of the body.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from served import raw, received, until

pytest.importorskip("starlette")
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from spatialembed.serve import receiving
from spatialembed.serve.faults import Refused
from spatialembed.serve.receiving import bounded

RECEIVE_S = 2.0
left = threading.Event()
BUFFER = 1 << 16
"""Bytes that a socket holds here, as asked for: systems differ by a factor of a thousand, and what
lies on the way in full looks like what was taken."""
LARGE = 8 << 20
"""Bytes of /large: more than sockets hold on the way."""


def buffered(connection: socket.socket) -> socket.socket:
    for side in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, side, BUFFER)
    return connection


def connected(port: int, timeout: float = 10) -> socket.socket:
    connection = buffered(socket.socket())
    connection.settimeout(timeout)
    connection.connect(("127.0.0.1", port))
    return connection


async def application(scope: Any, receive: Any, send: Any) -> None:
    request = Request(scope, receive)
    if scope["path"] == "/large":
        answer = Response(bytes(LARGE))
    elif scope["path"] == "/slow":
        await asyncio.sleep(0.5)
        answer = Response(b"done")
    elif scope["path"] == "/until-left":
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()
        return
    elif scope["path"] == "/refused":
        answer = Response(b"no", 413)
    else:
        try:
            answer = Response(str(len(await request.body())))
        except ClientDisconnect:
            return
    await answer(scope, receive, send)


def check(scope: Any) -> None:
    if scope["path"] == "/busy":
        raise Refused("busy", "later", retry=7)


refused: list[str] = []
"""Codes that were counted."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    before, receiving.HEAD_S = receiving.HEAD_S, RECEIVE_S
    listener = buffered(socket.create_server(("127.0.0.1", 0)))  # and so whom it accepts
    config = uvicorn.Config(
        application,
        http=bounded(RECEIVE_S, 1 << 20, check, refused.append),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=int(2 * RECEIVE_S),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    until(lambda: server.started)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()
    receiving.HEAD_S = before


HOST = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST
POST = b"POST / HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(GET + b"\r\n", 200, id="plain"),
        pytest.param(POST + b"Content-Length: 3\r\n\r\nabc", 200, id="body"),
        pytest.param(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", 200, id="chunks"),
        pytest.param(CHUNKED + b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n", 200, id="extension, trailer"),
        pytest.param(b"GET / HTTP/1.0\r\n" + HOST + b"\r\n", 200, id="HTTP/1.0"),
        pytest.param(
            POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="CL and TE",
        ),
        pytest.param(
            POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, id="two lengths"
        ),
        pytest.param(POST + b"Content-Length: +3\r\n\r\nabc", 400, id="signed length"),
        pytest.param(POST + b"Content-Length: -1\r\n\r\n", 400, id="negative length"),
        pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400, id="other coding"),
        pytest.param(POST + b"Transfer-Encoding: xchunked\r\n\r\n", 400, id="unknown coding"),
        pytest.param(
            b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="chunks in HTTP/1.0",
        ),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", 400, id="bare LF"),
        pytest.param(CHUNKED + b"3\nabc\n0\n\n", 400, id="bare LF in chunks"),
        pytest.param(CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", 400, id="bad chunk end"),
        pytest.param(CHUNKED + b"zz\r\n", 400, id="bad chunk size"),
        pytest.param(CHUNKED + b"fffffffffffffffff\r\n", 400, id="huge chunk size"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no Host"),
        pytest.param(GET + b"Host: b\r\n\r\n", 400, id="two Hosts"),
        pytest.param(b"GET /\r\n\r\n", 400, id="HTTP/0.9"),
        pytest.param(b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 400, id="HTTP/3.0"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS"),
        pytest.param(GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 400, id="upgrade"),
        pytest.param(b"CONNECT b:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="CONNECT"),
        pytest.param(GET + b"A : b\r\n\r\n", 400, id="space before colon"),
        pytest.param(GET + b"A: b\r\n c\r\n\r\n", 400, id="folded header"),
        pytest.param(GET + b"A: b\x00c\r\n\r\n", 400, id="zero byte"),
        pytest.param(GET + b"A: " + b"b" * 200_000 + b"\r\n\r\n", 431, id="header of 200 kB"),
        pytest.param(GET + b"A" * 200_000, 431, id="header name of 200 kB"),
        pytest.param(GET + b"A: b\r\n" * 3000 + b"\r\n", 431, id="3,000 headers"),
        pytest.param(b"GET /" + b"a" * 200_000, 431, id="target of 200 kB"),
        pytest.param(CHUNKED + b"3;" + b"a" * 200_000 + b"\r\nabc\r\n", 400, id="long extension"),
        pytest.param(CHUNKED + b"1\r\na\r\n" * 1_000_000, 400, id="a million chunks"),
        pytest.param(CHUNKED + b"0\r\n" + b"A: b\r\n" * 3000 + b"\r\n", 431, id="3,000 trailers"),
    ],
)
def test_statuses(port: int, request_bytes: bytes, status: int) -> None:
    answer = raw(port, request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    if status != 200:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert json.loads(body)["error"]["code"] in ("bad_request", "long_header")
        assert b"connection: close" in head.lower()


def test_one_request_gets_one_answer(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(CHUNKED + b"3\r\nabcd\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n")
        parts = b""
        while part := connection.recv(1 << 16):
            parts += part
    assert parts.count(b"HTTP/1.1 4") == 1
    assert b"HTTP/1.1 2" not in parts


def test_no_error_is_taken_for_the_answer_to_the_request_before(port: int) -> None:
    slow = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"
    with connected(port) as connection:
        connection.sendall(slow + b"GET / HTTP/1.1\nHost: a\n\n")
        parts = b""
        while part := connection.recv(1 << 16):
            parts += part
    assert b"HTTP/1.1 4" not in parts


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"", id="silent"),
        pytest.param(b"GET / HT", id="header"),
        pytest.param(b"GET /\r\n", id="HTTP/0.9 without an end"),
        pytest.param(POST + b"Content-Length: 9\r\n\r\nab", id="body"),
        pytest.param(CHUNKED + b"9\r\nab", id="chunk"),
    ],
)
def test_who_is_slow_is_told_at_the_deadline(port: int, begun: bytes) -> None:
    start = time.monotonic()
    with connected(port, timeout=20) as connection:
        connection.sendall(begun)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - start > 0.9 * RECEIVE_S


def test_a_trickle_does_not_move_the_deadline(port: int) -> None:
    with connected(port, timeout=0.2) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        for _ in range(100):  # 20 s, were it not cut
            try:
                connection.sendall(b"a")
                if connection.recv(100).startswith(b"HTTP/1.1 408 "):
                    return
            except TimeoutError:
                continue
    pytest.fail("still open")


def test_who_does_not_take_the_answer_is_cut(port: int) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with connection:
        connection.connect(("127.0.0.1", port))
        connection.settimeout(20)
        connection.sendall(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        time.sleep(2.5 * RECEIVE_S)
        assert len(received(connection)) < LARGE


def test_each_answer_has_its_own_time_to_be_taken(port: int) -> None:
    """The second is not yet taken when the time of the first has passed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/large")
    assert len(connection.getresponse().read()) == LARGE
    time.sleep(0.7 * RECEIVE_S)
    connection.request("GET", "/large")
    time.sleep(0.5 * RECEIVE_S)
    assert len(connection.getresponse().read()) == LARGE
    connection.close()


def test_a_body_after_the_answer_is_thrown_away_up_to_a_limit(port: int) -> None:
    head = b"POST /refused HTTP/1.1\r\n" + HOST
    with connected(port) as connection:
        connection.sendall(head + b"Content-Length: 100000\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 413 ")
        connection.sendall(bytes(100_000) + GET + b"\r\n")  # the connection is in step
        assert received(connection).startswith(b"HTTP/1.1 200 ")
    with connected(port) as connection:
        connection.sendall(head + b"Content-Length: 100000\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 413 ")
        connection.sendall(bytes(100_000))
        assert connection.recv(1) == b""  # idle from now on, and so closed in time
    with connected(port) as connection:
        connection.sendall(head + b"Content-Length: 9000000\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 413 ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(bytes(9_000_000))


def test_what_is_refused_by_its_header_is_heard_out(port: int) -> None:
    """A client that is cut off while it sends may never see the answer."""
    head = b"POST /busy HTTP/1.1\r\n" + HOST + b"Content-Length: 900000\r\n\r\n"
    with connected(port) as connection:
        connection.sendall(head)
        for _ in range(9):
            connection.sendall(bytes(100_000))
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 7\r\n" in answer.lower()
    assert refused[-1] == "busy"


def test_but_not_more_than_a_body_may_have(port: int) -> None:
    head = b"POST /busy HTTP/1.1\r\n" + HOST + b"Content-Length: 9000000\r\n\r\n"
    with (
        connected(port) as connection,
        pytest.raises((BrokenPipeError, ConnectionResetError)),
    ):
        connection.sendall(head + bytes(9_000_000))


def test_nor_for_longer(port: int) -> None:
    head = b"POST /busy HTTP/1.1\r\n" + HOST + b"Content-Length: 9000000\r\n\r\n"
    with connected(port, timeout=20) as connection:
        connection.sendall(head)
        assert received(connection).startswith(b"HTTP/1.1 503 ")
        for _ in range(200):  # 20 s, were it not cut
            try:
                connection.sendall(b"a")
            except (BrokenPipeError, ConnectionResetError):
                return
            time.sleep(0.1)
    pytest.fail("still open")


def test_one_request_at_a_time(port: int) -> None:
    two = POST + b"Content-Length: 3\r\n\r\nabc" + POST + b"Content-Length: 4\r\n\r\nabcd"
    with connected(port) as connection:
        connection.sendall(two)
        parts = b""
        while part := connection.recv(1 << 16):
            parts += part
    assert parts.count(b"HTTP/1.1 ") == 1
    assert b"connection: close\r\n" in parts.lower()
    assert parts.endswith(b"3")


def test_a_leaver_with_a_second_request_is_noticed(port: int) -> None:
    slow = b"GET /until-left HTTP/1.1\r\n" + HOST + b"\r\n"
    left.clear()
    with connected(port) as connection:
        connection.sendall(slow + slow + bytes(100_000))
    until(left.is_set)


def test_kept_connections(port: int) -> None:
    with connected(port) as connection:
        for _ in range(2):
            connection.sendall(GET + b"\r\n")
            assert received(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(GET + b"Host: b\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 400 ")


def test_broken_requests_leave_the_server_well(port: int) -> None:
    """Requests with bytes changed, dropped, doubled and cut."""
    rng = random.Random(0)
    seeds = [GET + b"A: b\r\n\r\n", POST + b"Content-Length: 3\r\n\r\nabc",
             CHUNKED + b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n"]  # fmt: skip
    for _ in range(300):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        with connected(port) as connection:
            connection.sendall(bytes(data))
    assert raw(port, GET + b"\r\n").startswith(b"HTTP/1.1 200 ")
