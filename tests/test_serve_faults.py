"""The server when a model's process is killed, stopped or cannot start, and when it is told to end.

A stopped process (SIGSTOP) stands for one that hangs, and holds requests where a test needs them.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPException
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spatialembed
from served import Answer, Served, alive, children, until

pytest.importorskip("starlette")
QUEUE = 3


def image() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


PNG = image()


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    served = Served("--model", "shapes", "--queue", str(QUEUE), "--deadline", "4")
    yield served
    served.close()


@pytest.fixture
def server(shared: Served) -> Served:
    """The shared server, with all of its parts at work."""
    shared.wait_until_ready()
    return shared


class Stopped:
    """A context in which the model's process does nothing."""

    def __init__(self, server: Served) -> None:
        self.process = server.model_process()

    def __enter__(self) -> int:
        os.kill(self.process, signal.SIGSTOP)
        return self.process

    def __exit__(self, *_: object) -> None:
        if alive(self.process):
            os.kill(self.process, signal.SIGCONT)


def posted(pool: ThreadPoolExecutor, server: Served, number: int) -> list[Future[Answer]]:
    """Requests under way: one at the model, the others waiting."""
    futures = []
    for i in range(number):
        futures.append(pool.submit(server.post, PNG))
        until(lambda i=i: server.measure("accepted") == i + 1)  # type: ignore[misc]
    return futures


def test_a_full_queue_refuses_at_once(server: Served) -> None:
    with ThreadPoolExecutor(QUEUE + 1) as pool:
        with Stopped(server):
            accepted = posted(pool, server, QUEUE + 1)
            refused = server.post(PNG)  # the others have no answer yet
            assert (refused.status, refused.code) == (503, "busy")
            assert int(refused.headers["Retry-After"]) >= 1
        assert [future.result().status for future in accepted] == [200] * (QUEUE + 1)


def test_work_of_leavers_is_dropped(server: Served) -> None:
    head = b"POST /v1/models/shapes/instances HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(PNG)
    with Stopped(server):
        for _ in range(3):
            leavers = []
            for _ in range(QUEUE):
                leaver = socket.create_connection(("127.0.0.1", server.port))
                leaver.sendall(head + PNG)
                leavers.append(leaver)
            until(lambda: server.measure("waiting") >= QUEUE - 1)
            for leaver in leavers:
                leaver.close()
            until(lambda: server.measure("waiting") == 0)
    assert server.post(PNG).status == 200


@pytest.mark.slow
def test_a_killed_model_fails_its_image_and_is_replaced(server: Served) -> None:
    before = server.model_process()
    (decoder,) = children(before)
    with ThreadPoolExecutor(2) as pool:
        with Stopped(server):
            first, second = posted(pool, server, 2)
            os.kill(before, signal.SIGKILL)
        assert (first.result().status, first.result().code) == (500, "model_died")
        assert server.get("/healthz").status == 200
        assert second.result().status in (200, 503)  # it may have waited too long for the next
    server.wait_until_ready()
    assert server.model_process() != before
    assert server.post(PNG).status == 200
    until(lambda: not alive(decoder))


@pytest.mark.slow
def test_a_stopped_model_is_given_up_at_the_deadline(server: Served) -> None:
    with Stopped(server) as before:
        answer = server.post(PNG)
    assert (answer.status, answer.code) == (504, "deadline")
    server.wait_until_ready()
    assert server.model_process() != before
    assert server.post(PNG).status == 200


def test_a_killed_decoder_is_replaced(server: Served) -> None:
    model = server.model_process()
    (decoder,) = children(model)
    os.kill(decoder, signal.SIGKILL)
    until(lambda: not alive(decoder))
    assert server.post(PNG).status == 200
    assert server.model_process() == model


@pytest.mark.slow
def test_a_model_that_cannot_start_again_is_live_and_not_ready(tmp_path: Path) -> None:
    bundled = resources.files(spatialembed) / "models" / "shapes"
    shutil.copytree(str(bundled), tmp_path / "own")
    server = Served("--model", f"mine={tmp_path / 'own'}")
    try:
        server.wait_until_ready()
        (model,) = server.get("/v1/models").json["models"]
        assert model["description"].startswith("Plain compact objects")
        (tmp_path / "own").rename(tmp_path / "away")
        os.kill(server.model_process(), signal.SIGKILL)
        until(lambda: server.measure("restarts_total") >= 2)
        assert server.get("/readyz").json["models"] == {"mine": "down"}
        assert server.get("/healthz").status == 200
        assert server.get("/readyz").status == 503
        refused = server.post(PNG, model="mine")
        assert (refused.status, refused.code) == (503, "not_ready")
        assert int(refused.headers["Retry-After"]) >= 1
        (tmp_path / "away").rename(tmp_path / "own")
        server.wait_until_ready()
        assert server.post(PNG, model="mine").status == 200
    finally:
        log = server.close()
    assert "mine: the process did not start" in log
    assert server.process.returncode == 0


def test_a_model_that_is_not_there_ends_the_server() -> None:
    server = Served("--model", "nowhere")
    _, log = server.process.communicate(timeout=120)
    assert server.process.returncode == 4
    assert "error no_model: " in log


@pytest.mark.slow
def test_drain_finishes_what_was_accepted() -> None:
    server = Served("--model", "shapes", "--queue", str(QUEUE))
    try:
        server.wait_until_ready()
        model = server.model_process()
        with ThreadPoolExecutor(QUEUE + 1) as pool:
            with Stopped(server):
                accepted = posted(pool, server, QUEUE + 1)
                server.process.send_signal(signal.SIGTERM)
                until(lambda: server.get("/readyz").status == 503)
                refused = server.post(PNG)
                assert (refused.status, refused.code) == (503, "draining")
                assert int(refused.headers["Retry-After"]) >= 1
                assert server.get("/healthz").status == 200
            assert [future.result().status for future in accepted] == [200] * (QUEUE + 1)
        assert server.process.wait(timeout=60) == 0
        until(lambda: not alive(model))
    finally:
        server.process.kill()


@pytest.mark.slow
def test_requests_lost_at_the_end_of_the_grace_are_told() -> None:
    server = Served("--model", "shapes", "--grace", "0.5", "--receive", "1")
    try:
        server.wait_until_ready()
        with ThreadPoolExecutor(2) as pool, Stopped(server):
            lost = posted(pool, server, 2)  # whose answers never come
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=60) == 6
            assert all(isinstance(f.exception(), (OSError, HTTPException)) or
                       f.result().status == 500 for f in lost)  # fmt: skip
    finally:
        log = server.close()
    assert "2 requests had no answer within --grace 0.5 s" in log


@pytest.mark.slow
def test_a_second_signal_ends_at_once() -> None:
    server = Served("--model", "shapes")
    try:
        server.wait_until_ready()
        model = server.model_process()
        with ThreadPoolExecutor(2) as pool, Stopped(server):
            posted(pool, server, 2)  # whose answers never come
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.get("/readyz").status == 503)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=20) == 143
        until(lambda: not alive(model))
    finally:
        server.process.kill()
