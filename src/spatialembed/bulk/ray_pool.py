"""Workers on Ray: an actor each, which holds the same process as a worker of this machine has.

Plain actors, not Ray Data: a row would be the number of a shard, and nothing of what Ray Data adds
to that is of use (blocks would join small rows, its retries know no poison, its checkpoints hang).
Ray places actors and says when one is lost; what is done again, and how, is decided here.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from spatialembed.bulk.process import START_S, Died, Message, Process, started
from spatialembed.bulk.todo import Report, Todo
from spatialembed.concurrency import usable
from spatialembed.errors import RESOURCE, SpatialEmbedError, missing_extra

PLACE_S = 45.0
"""In which Ray has to place a first actor; one without room waits for ever, and says nothing."""
SETTINGS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # it would build another environment on each node
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Actor:
    """Holds a worker's process; what goes wrong is an answer, so that a lost actor is all else."""

    def __init__(self, settings: Message) -> None:
        self._settings = settings
        self._process: Process | None = None

    def there(self) -> bool:
        """Says that it was placed."""
        return True

    def facts(self) -> Message:
        """Load the model: its facts, or ``error``."""
        try:
            limit = self._settings["no_progress"] * 60
            self._process, facts = started(lambda: Process(self._settings), limit)
            return facts
        except SpatialEmbedError as error:
            return {"error": list(error.args)}

    def work(self, number: int) -> Message:
        """Do a shard: its report, or ``error``, or ``died``."""
        if self._process is None and "error" in (facts := self.facts()):
            return facts
        assert self._process is not None
        try:
            return self._process.ask({"shard": number})[0]
        except SpatialEmbedError as error:
            return {"error": list(error.args)}
        except Died as death:
            self._process = None
            return {"died": str(death)}


class RayPool:
    """A pool of actors on a Ray of its own on this machine, or on a cluster."""

    def __init__(self, address: str | None, workers: int | None) -> None:
        """address: of a cluster; None: a Ray of its own. Raises SpatialEmbedError.

        ``missing_extra`` (exit 2), ``no_ray`` (exit 5).
        """
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if address is None:  # before the import: everything listens on 127.0.0.1 only
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else a file at home
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "ray", "bulk prediction on Ray") from error
        self._ray: Any = ray
        local = {"num_cpus": max(workers or 1, usable()), "include_dashboard": False}
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address or "local",
                **({} if address else local),
                log_to_driver=True,
                logging_level="error",
                configure_logging=False,
            )
        except Exception as error:  # a wrong token or address, a port that is taken, no memory
            said = (str(error).splitlines() or [type(error).__name__])[0]
            what, remedy = f"{address or 'local'}: {said}", "check the address, the token, memory"
            raise SpatialEmbedError("no_ray", what, remedy, RESOURCE) from error
        if main:
            signal.signal(signal.SIGTERM, before)  # which Ray has replaced
        self._workers = workers
        self._actors: list[Any] = []

    def facts(self, settings: Message) -> Message:
        """As of ``LocalPool``; the actor that says so stays. Raises ``no_progress`` too."""
        total = self._ray.cluster_resources()
        gpus = total.get("GPU", 0) if settings["device"] in ("auto", "cuda") else 0
        self._needs = {"num_gpus": 1} if gpus else {"num_cpus": settings["threads"] or 1}
        room = gpus or total.get("CPU", 1) / self._needs["num_cpus"]
        self._wanted = self._workers or max(1, int(room))
        first = self._new(settings)
        self._get(first.there.remote(), PLACE_S, "Ray placed no worker")
        limit = START_S + settings["no_progress"] * 60
        facts = self._get(first.facts.remote(), limit, "no model was loaded")
        if "error" in facts:
            passed_on: list[Any] = facts["error"]
            raise SpatialEmbedError(*passed_on)
        self._actors = [first]
        return facts

    def _get(self, answer: Any, limit: float, late: str) -> Any:
        try:
            return self._ray.get(answer, timeout=limit)
        except self._ray.exceptions.GetTimeoutError as error:
            what = f"{late} within {limit:g} s: {self.state()}"
            remedy = "give it room, or fewer --threads"
            raise SpatialEmbedError("no_progress", what, remedy, RESOURCE) from error
        except self._ray.exceptions.RayError as error:
            said = str(error).splitlines()[0]
            raise SpatialEmbedError("no_ray", said, "look at the log of Ray", RESOURCE) from error

    def _new(self, settings: Message) -> Any:
        threads = str(settings["threads"] or "")
        limits = {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL")} if threads else {}
        options = {"runtime_env": {"env_vars": limits}, "max_restarts": 0, **self._needs}
        return self._ray.remote(Actor).options(**options).remote(settings)

    def reports(self, todo: Todo, settings: Message) -> Iterator[Report | None]:
        """As of ``LocalPool``."""
        ray, idle = self._ray, list(self._actors)
        starting: dict[Any, Any] = {}  # until Ray has found room, a shard would wait with them
        at_work: dict[Any, tuple[Any, int]] = {}
        while todo.left:
            while len(idle) + len(at_work) + len(starting) < min(self._wanted, todo.left):
                actor = self._new(settings)
                starting[actor.there.remote()] = actor
            while idle and (number := todo.take(wait=False)) is not None:
                actor = idle.pop()
                at_work[actor.work.remote(number)] = actor, number
            self._actors = [*idle, *starting.values(), *(actor for actor, _ in at_work.values())]
            answers = [*at_work, *starting]
            ready = ray.wait(answers, timeout=1)[0] if answers else []
            yield None  # also where all that is ready has died: somebody looks at the clock
            for answer in ready:
                actor, number = at_work.pop(answer, None) or (starting.pop(answer), None)
                try:
                    said = ray.get(answer)
                except ray.exceptions.RayError:  # the actor is lost, or its node
                    if number is None:
                        time.sleep(1)
                    else:
                        todo.back(number)
                    continue
                idle.append(actor)
                if number is None:
                    continue
                if "error" in said:
                    passed_on: list[Any] = said["error"]
                    raise SpatialEmbedError(*passed_on)
                if "died" in said:
                    todo.back(number)
                elif todo.done(number):
                    yield Report(**said)

    def state(self) -> str:
        """What Ray has and what is free."""
        try:
            total, free = self._ray.cluster_resources(), self._ray.available_resources()
        except Exception as error:
            return f"Ray does not answer ({type(error).__name__})"
        nodes = sum(node["Alive"] for node in self._ray.nodes())
        kinds = [
            f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")
        ]
        return f"{nodes} nodes of Ray, {' and '.join(kinds)} free, {self._needs} needed"

    def close(self) -> None:
        """Let Ray end its actors, and itself where it was started here."""
        actors, self._actors = self._actors, []  # it may be called once more
        with suppress(Exception):  # a cluster that is gone: the error at hand is that of the run
            for actor in actors:
                self._ray.kill(actor)
        self._ray.shutdown()
