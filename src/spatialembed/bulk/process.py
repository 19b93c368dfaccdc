"""A worker in a process of its own, asked over pipes: a line of JSON and so many bytes each way.

Processes are started anew, never forked: torch hangs after a fork, and so does obstore. One whose
asker has gone ends at once, whatever it does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from spatialembed.errors import MODEL, SpatialEmbedError

START_S = 300.0
"""A model that takes longer to load is taken for one that hangs."""
FAILURES = 3
"""Starts in a row that may end by themselves, as they do where a library is broken."""
Message = dict[str, Any]


class Died(Exception):
    """The process ended, or was ended because it took too long; ``code`` as of subprocess."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


def send(pipe: IO[bytes], message: Message, body: bytes = b"") -> None:
    """Write a message. Raises BrokenPipeError."""
    left = memoryview(json.dumps({**message, "bytes": len(body)}).encode() + b"\n" + body)
    while left:
        left = left[pipe.write(left) or 0 :]
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[Message, bytes]:
    """Read a message. Raises EOFError."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message = json.loads(line)
    body = pipe.read(message.pop("bytes"))
    return message, body


class Process:
    """The process of ``bulk.worker``, and its answers."""

    def __init__(self, settings: Message, gpu: str | None = None) -> None:
        """gpu: which one it may see; None: those that this process sees."""
        threads = str(settings["threads"] or "")
        limits = {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL")} if threads else {}
        limits |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "spatialembed.bulk.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **limits},
            start_new_session=True,  # Ctrl-C in a terminal is for who asks
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def facts(self) -> Message:
        """What the results follow from, once the model is loaded.

        Raises ``Died``; SpatialEmbedError of loading.
        """
        return self._answer(START_S)[0]

    def ask(
        self, question: Message, body: bytes = b"", limit: float | None = None
    ) -> tuple[Message, bytes]:
        """An answer within ``limit`` seconds, or the process is killed.

        Raises ``Died``; SpatialEmbedError that it met.
        """
        try:
            send(self._to, question, body)
        except (OSError, ValueError) as error:
            raise Died(self._end()) from error
        return self._answer(limit)

    def _answer(self, limit: float | None) -> tuple[Message, bytes]:
        late = threading.Timer(limit, self._process.kill) if limit else None
        if late:
            late.daemon = True
            late.start()
        try:
            message, body = receive(self._from)
        except (EOFError, OSError, ValueError, KeyError) as error:
            raise Died(self._end()) from error
        finally:
            if late:
                late.cancel()
        if "error" in message:
            passed_on: list[Any] = message["error"]
            raise SpatialEmbedError(*passed_on)
        return message, body

    def _end(self) -> int:
        self._process.kill()
        return self._process.wait()

    def close(self) -> None:
        """End it at once: nothing that it puts can be half."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):  # what was not sent
                pipe.close()


def started(start: Callable[[], Process], limit_s: float) -> tuple[Process, Message]:
    """A process that is ready, with its facts; one that is killed before that is replaced.

    start: makes one. limit_s: after which no other one is tried.
    Raises SpatialEmbedError of loading, ``worker_died``.
    """
    begun, failures, said = time.monotonic(), 0, ""
    while failures < FAILURES and (not said or time.monotonic() - begun < limit_s):
        process = start()
        try:
            return process, process.facts()
        except Died as death:  # killed: by somebody, or for want of memory at this moment
            failures, said = failures + (death.code >= 0), str(death)
    what = f"a worker ends before it is ready, again and again ({said})"
    raise SpatialEmbedError("worker_died", what, "look at its messages above", MODEL)
