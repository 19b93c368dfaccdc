"""A server in a process of its own, on loopback, for the tests of ``serve``."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

WAIT_S = 240.0
"""A machine under load takes long to import torch."""
SAME = ("--engine", "torch", "--precision", "float32", "--threads", "1")
"""Engines differ in the last bits: those of two runs that are compared have to be the same."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class Served:
    """``spatialembed serve`` with some flags, until ``close``."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "spatialembed", "serve", "--port", "0", *SAME, *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(line.rpartition(":")[2].partition("/")[0]) if line else 0

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())  # type: ignore[arg-type]
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def post(self, image: bytes, query: str = "", model: str = "shapes") -> Answer:
        path = f"/v1/models/{model}/instances{'?' if query else ''}{query}"
        return self.ask("POST", path, image, {"Content-Type": "image/png"})

    def wait_until_ready(self) -> None:
        until(lambda: self.get("/readyz").status == 200)

    def model_process(self) -> int:
        """Its id."""
        return children(self.process.pid)[0]

    def measure(self, name: str) -> int:
        """A number of the model in /metrics."""
        text = self.get("/metrics").body.decode()
        line = next(x for x in text.splitlines() if x.startswith(f"spatialembed_{name}{{"))
        return int(float(line.split()[-1]))

    def close(self) -> str:
        """End it; returns what it has logged."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.communicate(timeout=WAIT_S)[1]
        finally:
            self.process.kill()


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def raw(port: int, data: bytes, *, wait: float = 10.0) -> bytes:
    """Send bytes over a socket, and return what comes until it is closed or nothing more comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        # It may be refused before all of it is sent; the answer may be there all the same.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return received(connection)


def received(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
            head, end, body = b"".join(parts).partition(b"\r\n\r\n")
            if end and f"content-length: {len(body)}".encode() in head.lower().split(b"\r\n"):
                break
    except (TimeoutError, ConnectionResetError):
        pass
    return b"".join(parts)


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended, and whose parent has not asked, does not."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"
