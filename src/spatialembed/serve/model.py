"""A model as the event loop sees it: a bounded queue, and a process that is replaced when it fails.

starting -> ready -> (killed, stopped, out of memory) -> down -> ready
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from spatialembed.errors import SpatialEmbedError
from spatialembed.serve import pipe
from spatialembed.serve.faults import Refused

logger = logging.getLogger("spatialembed")
START_S = 300.0
"""A model that takes longer to load and to check itself is started again."""
BACK_OFF_S, LONGEST_BACK_OFF_S = 0.5, 30.0
"""Before a process is replaced: doubled at each failure in a row."""


@dataclass(eq=False)
class Job:
    """A question and its answer to come."""

    asked: pipe.Meta
    body: pipe.Bytes
    answer: asyncio.Future[tuple[pipe.Meta, bytes]]
    since: float = field(default_factory=time.monotonic)
    late: asyncio.TimerHandle | None = None  # ends the waiting
    waited: float = 0.0  # s

    def refuse(self, fault: Refused) -> None:
        """End it with a fault, unless it has ended."""
        if not self.answer.done():
            self.answer.set_exception(fault)


class Model:
    """One model; ``run`` is its task."""

    def __init__(self, name: str, given: dict[str, Any], queue: int, deadline: float) -> None:
        """given: arguments of the process, see ``model_process.main``."""
        self.name, self.given, self.most, self.deadline = name, given, queue, deadline
        self.state = "starting"
        self.facts: dict[str, Any] = {}
        self.failures = 0  # in a row
        self.restarts = 0
        self.working = False
        self.waiting: deque[Job] = deque()
        self.first_fault: SpatialEmbedError | None = None  # the model does not load at all
        self._wake = asyncio.Event()
        self._service = 1.0  # s, of a usual image
        self._process: Process | None = None

    def check_room(self) -> None:
        """Raises Refused ``not_ready`` or ``busy``."""
        if self.state != "ready":
            what = f"{self.name} is {self.state}"
            retry = math.ceil(max(5.0, self._back_off()))
            raise Refused("not_ready", what, "try again later", retry=retry)
        if len(self.waiting) >= self.most:
            what = f"{len(self.waiting)} images wait already"
            retry = max(1, math.ceil(self._service * len(self.waiting)))
            raise Refused("busy", what, "try again later", retry=retry)

    def submit(self, asked: pipe.Meta, body: pipe.Bytes = b"") -> Job:
        """Queue a question. Raises as ``check_room``."""
        self.check_room()
        loop = asyncio.get_running_loop()
        job = Job(asked, body, loop.create_future())
        fault = Refused("busy", "it waited too long", "try again later", retry=5)
        job.late = loop.call_later(self.deadline, job.refuse, fault)
        self.waiting.append(job)
        self._wake.set()
        return job

    async def run(self) -> None:
        """Keep a process at work until cancelled, or until the first one says why it cannot."""
        try:
            while self.first_fault is None:
                try:
                    self._process = await self._start()
                    self.state = "ready"
                    logger.info("%s is ready", self.name)
                    await self._serve(self._process)
                except Exception as error:  # of one model: the server and the others go on
                    if self.first_fault is None:  # else it is what the server ends with
                        logger.error("%s: the process did not start: %r", self.name, error)
                self.state = "down" if self.facts or self.failures else "starting"
                self.failures += 1
                await self._kill()
                if self.first_fault is None:
                    self.restarts += 1
                    await asyncio.sleep(self._back_off())
        finally:
            await self._kill()

    def _back_off(self) -> float:
        return min(LONGEST_BACK_OFF_S, BACK_OFF_S * 2 ** min(self.failures - 1, 10))

    async def _start(self) -> Process:
        """A process that has checked itself. Raises EOFError, TimeoutError, OSError."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "spatialembed.serve.model_process",
            msgspec.json.encode(self.given).decode(),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for the server alone
        )
        async with asyncio.timeout(START_S):
            said, _ = await pipe.receive(_reader(self._process))
        if "error" in said:
            error = SpatialEmbedError(**said["error"])
            if not self.facts:
                self.first_fault = error
            raise EOFError(str(error))
        facts = said["facts"]
        if self.facts and facts["self_check"] != self.facts["self_check"]:
            raise EOFError("it finds other instances in the example than the one before it")
        self.facts = facts
        return self._process

    async def _serve(self, process: Process) -> None:
        """Answer questions until the process fails."""
        gone = asyncio.ensure_future(process.wait())
        try:
            while not gone.done():
                job = self._next()
                if job is None:
                    self._wake.clear()
                    wake = asyncio.ensure_future(self._wake.wait())
                    await asyncio.wait({gone, wake}, return_when=asyncio.FIRST_COMPLETED)
                    wake.cancel()
                elif not await self._ask(process, job):
                    return
            logger.error("%s: its process ended (%s)", self.name, process.returncode)
        finally:
            gone.cancel()

    def _next(self) -> Job | None:
        """The first that somebody still waits for."""
        while self.waiting:
            job = self.waiting.popleft()
            if job.late is not None:
                job.late.cancel()
            if not job.answer.done():
                return job
        return None

    async def _ask(self, process: Process, job: Job) -> bool:
        """Answer a question; returns whether the process can be asked again."""
        begun = time.monotonic()
        job.waited = begun - job.since
        self.working = True
        try:
            async with asyncio.timeout(self.deadline):
                assert process.stdin is not None
                await pipe.send(process.stdin, job.asked, job.body)
                answer = await pipe.receive(_reader(process))
        except TimeoutError:
            what = f"the model took longer than {self.deadline:g} s"
            logger.error("%s: %s, its process is replaced", self.name, what)
            job.refuse(Refused("deadline", what, "send a smaller image"))
            return False
        except Exception as error:  # it is gone, or writes something that is no answer
            logger.error("%s: its process died at an image: %r", self.name, error)
            job.refuse(Refused("model_died", "the model's process died at this image"))
            return False
        finally:
            job.body, self.working = b"", False
        self.failures = 0
        self._service += 0.1 * (time.monotonic() - begun - self._service)
        if not job.answer.done():
            job.answer.set_result(answer)
        return True

    def drop(self, job: Job) -> None:
        """Nobody waits for it any more."""
        job.answer.cancel()
        if job in self.waiting:
            self.waiting.remove(job)
        if job.late is not None:
            job.late.cancel()

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


def _reader(process: Process) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout
