"""napari's end of the process of the model. Whatever waits does so in a thread; no Qt here."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from spatialembed.serve import pipe

Question = Callable[[], tuple[pipe.Meta, pipe.Bytes]]
LAST = ("found", "failed")
"""Kinds of an answer after which no more come."""


class Answer(NamedTuple):
    """A part of the answer to a question; its kind is in ``meta``."""

    meta: pipe.Meta
    body: pipe.Bytes = b""


class ModelClient:
    """A process of the model, started at once. All methods return at once.

    Questions are answered in their order, each by some ``Answer`` of which the last one has a kind
    in LAST. A question is a function, called in the thread: pixels may have to be read for it.
    """

    def __init__(self) -> None:
        self._questions: SimpleQueue[Question | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        threading.Thread(target=self._talk, name="spatialembed", daemon=True).start()

    def ask(self, question: Question) -> None:
        """Put a question."""
        self._questions.put(question)

    def answers(self) -> list[Answer]:
        """What has come since the last call."""
        found = []
        while True:
            try:
                found.append(self._answers.get_nowait())
            except Empty:
                return found

    def stop(self, *_: object) -> None:
        """End the process in whatever it does; the thread follows."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()
        self._questions.put(None)

    @property
    def pid(self) -> int | None:
        """Of the process while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def _talk(self) -> None:
        try:
            with self._lock:
                if self._stopped:
                    return
                self._process = _started()
            while (question := self._questions.get()) is not None:
                self._settle(question, self._process)
        except (EOFError, OSError) as error:
            self._fail(_end_of(self._process, error), gone=True)
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                for end in (self._process.stdin, self._process.stdout):
                    assert end is not None
                    end.close()

    def _settle(self, question: Question, process: subprocess.Popen[bytes]) -> None:
        """Ask one question, and collect its answers."""
        try:
            # Its warnings go napari's way, which shows them from its own thread. Catching them here
            # would be for all threads at once, and could lose those of napari.
            meta, body = question()
        except Exception as error:  # of reading the pixels, whatever library does that
            self._fail(f"the layer could not be read: {type(error).__name__}: {error}")
            return
        pipe.write(process.stdin, meta, body)  # type: ignore[arg-type]
        while True:
            answer = Answer(*pipe.read(process.stdout))  # type: ignore[arg-type]
            self._answers.put(answer)
            if answer.meta["kind"] in LAST:
                return

    def _fail(self, text: str, *, gone: bool = False) -> None:
        self._answers.put(Answer({"kind": "failed", "text": text, "gone": gone}))


def _started() -> subprocess.Popen[bytes]:
    # -P: a file random.py in the current folder is not for it.
    command = [sys.executable, "-P", "-m", "napari_spatialembed.model_process"]
    hidden = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # of Windows
    ends = subprocess.PIPE
    return subprocess.Popen(command, bufsize=0, stdin=ends, stdout=ends, creationflags=hidden)


def _end_of(process: subprocess.Popen[bytes] | None, error: Exception) -> str:
    if process is None:
        return f"the process of the model could not be started: {error}"
    code = process.wait()
    killed = " (killed: the memory may have run out)" if code < 0 else ""
    return f"the process of the model ended with {code}{killed}; its output says why"
