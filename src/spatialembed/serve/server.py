"""The server as a whole: settings checked, socket bound, models started, drained at the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from errno import EADDRINUSE
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import FrameType

import uvicorn

from spatialembed.errors import PARTIAL, USAGE, SpatialEmbedError
from spatialembed.options import DeviceOptions
from spatialembed.serve.app import Limits, Site
from spatialembed.serve.gate import Gate, Network
from spatialembed.serve.metrics import Metrics
from spatialembed.serve.model import Model
from spatialembed.serve.options import ServeOptions
from spatialembed.serve.receiving import bounded

logger = logging.getLogger("spatialembed")
LEAST_TOKEN = 16
"""Characters."""


def serve(options: ServeOptions) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Returns the exit code: 0, 6 if the grace was too short for some requests, 143 if a second signal
    hurried it.

    Raises SpatialEmbedError ``no_token``, ``bad_setting``, ``bad_address`` (exit 2), and those of
    ``load`` for a model that does not load at all.
    """
    token = _token(options)
    models = _models(options)
    with _bound(options) as listener, tempfile.TemporaryDirectory(prefix="spatialembed-") as folder:
        for name, model in models.items():
            place = Path(folder, name)
            place.mkdir()
            model.given["folder"] = str(place)
        metrics = Metrics(models)
        site = Site(models, Limits(options.max_bytes, options.max_pixels), metrics)
        gate = Gate(site.app(), token, _hosts(options), options.rate, site.room, _proxies(options))
        server = _Server(gate, options, metrics.refused)
        port = listener.getsockname()[1]
        shown = f"[{options.host}]" if ":" in options.host else options.host
        print(
            f"{', '.join(models)}: http://{shown}:{port}/, once they are ready (Ctrl-C ends)",
            flush=True,
        )
        asyncio.run(_run(server, models, listener))
    for model in models.values():
        if model.first_fault is not None:
            raise model.first_fault
    if server.force_exit:
        return 128 + signal.SIGTERM
    if gate.lost:
        logger.error("%d requests had no answer within --grace %g s", gate.lost, options.grace)
        return PARTIAL
    return 0


async def _run(server: _Server, models: Mapping[str, Model], listener: socket.socket) -> None:
    """The server and a task for each model; where one cannot load at all, everything ends."""
    tasks = [asyncio.create_task(model.run()) for model in models.values()]
    for task in tasks:
        task.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await server.serve([listener])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Server(uvicorn.Server):
    """uvicorn's, which finishes what it has accepted and tells new requests to come again."""

    def __init__(self, gate: Gate, options: ServeOptions, count: Callable[[str], None]) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not a line a broken request
        super().__init__(
            uvicorn.Config(
                gate,
                http=bounded(options.receive, options.max_bytes, gate.check, count),
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # the gate reads them, since it counts by address
                server_header=False,
                timeout_keep_alive=10,
                timeout_graceful_shutdown=max(1, round(options.receive)),  # answers not yet taken
            )
        )
        self.gate, self.grace = gate, options.grace
        self._until = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once."""
        if self.gate.draining:
            self.force_exit = self.should_exit = True
            asyncio.get_running_loop().call_soon_threadsafe(self._cut)
        self.gate.draining, self._until = True, time.monotonic() + self.grace

    def _cut(self) -> None:
        """From Python 3.12 on a server is closed only when its last connection is."""
        for connection in self.server_state.connections:
            connection.transport.abort()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self.gate.draining and (not self.gate.active or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)


def _token(options: ServeOptions) -> str | None:
    if options.token_file is not None:
        token = Path(options.token_file).read_bytes().decode("utf-8", "surrogateescape").strip()
        if len(token) < LEAST_TOKEN or not token.isprintable() or " " in token:  # nor other bytes
            what = f"{options.token_file}: a token has {LEAST_TOKEN} characters or more, no spaces"
            raise SpatialEmbedError("no_token", what, "openssl rand -hex 32 makes one", USAGE)
        return token
    if not _is_loopback(options.host):
        what = f"listening at {options.host} without a token"
        remedy = "give --token-file, or --host 127.0.0.1"
        raise SpatialEmbedError("no_token", what, remedy, USAGE)
    return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(options: ServeOptions) -> set[str]:
    """Names that a Host header may have: a page elsewhere cannot point its own name here."""
    named = {host.strip() for host in options.hosts.split(",") if host.strip()}
    own = f"[{options.host}]" if ":" in options.host else options.host
    if not _is_loopback(options.host):
        named |= {socket.gethostname(), socket.getfqdn()}
    return {"localhost", "127.0.0.1", "[::1]", own} | named


def _proxies(options: ServeOptions) -> list[Network]:
    """Networks whose ``X-Forwarded-For`` is believed. Raises ``bad_setting``."""
    try:
        named = [ip_network(part.strip()) for part in options.proxies.split(",") if part.strip()]
    except ValueError as error:
        remedy = "give addresses or networks, 172.16.0.0/12 say"
        raise SpatialEmbedError("bad_setting", f"proxies: {error}", remedy, USAGE) from None
    return [ip_network("127.0.0.0/8"), ip_network("::1"), *named]


def _models(options: ServeOptions) -> dict[str, Model]:
    """By name. Raises ``bad_setting``."""
    how = {f.name: getattr(options, f.name) for f in fields(DeviceOptions)}
    positive = ("queue", "deadline", "receive", "grace", "max_bytes", "max_pixels")
    for name in positive:
        if getattr(options, name) <= 0:
            raise SpatialEmbedError("bad_setting", f"{name} is not above 0", "", USAGE)
    models: dict[str, Model] = {}
    for given in options.model or ["nuclei"]:
        name, equals, path = given.partition("=")
        if not equals:
            name = given.partition("@")[0] if given.startswith("hf://") else given
            name, path = Path(name).name, given
        if name in models or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            what = f"model {given}: its name is taken, or not of letters, digits, - _ ."
            raise SpatialEmbedError("bad_setting", what, "give NAME=PATH", USAGE)
        start = {"name": name, "path": path, "how": how, "most": options.max_pixels}
        models[name] = Model(name, start, options.queue, options.deadline)
    return models


def _bound(options: ServeOptions) -> socket.socket:
    """The listening socket. Raises ``bad_address``."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except (OSError, OverflowError, TypeError) as error:  # TypeError: no name of a host
        what, remedy = f"{options.host}:{options.port}: {error}", "give another --host or --port"
        if isinstance(error, OSError) and error.errno == EADDRINUSE:
            what = f"port {options.port} of {options.host} is taken by another program"
            remedy = f"end it, or give --port {options.port + 1}, or --port 0 for any that is free"
        raise SpatialEmbedError("bad_address", what, remedy, USAGE) from None
