"""What stands before every route, in this order: draining, token, Host, Origin, rate, room.

``check`` is asked as soon as the header is there, before a task or a route costs anything. The rest
is plain ASGI: behind Starlette's own kind of middleware nobody notices that a client has left.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from ipaddress import IPv4Network, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spatialembed.serve.faults import HEADERS, Refused

OPEN = ("/", "/page.css", "/page.js", "/healthz", "/readyz", "/openapi.json", "/examples/")
"""Paths, and beginnings of paths, that need no token."""
MOST_ADDRESSES = 10_000
Network = IPv4Network | IPv6Network
DRAINING_RETRY_S = 5


class Gate:
    """The checks, and the count of what is under way."""

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        hosts: Collection[str],
        rate: float | None,
        room: Callable[[Scope], None],
        proxies: Collection[Network] = (),
    ) -> None:
        """room: raises Refused where the model of the request has none. proxies: believed."""
        self.app, self.room, self.proxies = app, room, proxies
        self.token = None if token is None else token.encode()
        self.hosts = frozenset(host.lower() for host in hosts)
        self.rate = rate
        self.draining = False
        self.active = self.lost = 0  # under way; cut off without an answer
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request; of other kinds of traffic only the lifespan passes."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        # After Expect, a body may still come, or never.
        closing = self.draining or "expect" in Headers(scope=scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = HEADERS | ({"connection": "close"} if closing else {})
                own = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in more.items() if n.encode() not in own),
                ]
            await send(message)

        self.active += 1
        try:
            await self.app(scope, receive, answer)
        except asyncio.CancelledError:
            self.lost += 1
            raise
        finally:
            self.active -= 1

    def check(self, scope: Scope) -> None:
        """Raises Refused; ``client`` of the scope becomes the one behind the proxies."""
        headers, path = Headers(scope=scope), scope["path"]
        address = self._address(scope, headers)
        scope["client"] = address, 0
        if self.draining and path != "/healthz":
            what = "the server is about to end"
            raise Refused("draining", what, "try again", retry=DRAINING_RETRY_S)
        free = path in OPEN or path.startswith(OPEN[-1])
        if self.token is not None and not free:
            kind, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("latin-1"), self.token)
            if kind.lower() != "bearer" or not right:
                remedy = "send Authorization: Bearer TOKEN"
                raise Refused("bad_token", "no token, or a wrong one", remedy)
        host = headers.get("host", "")
        if _name(host) not in self.hosts:
            remedy = "start the server with --hosts NAME"
            raise Refused("bad_host", "the server does not go by that name", remedy)
        origin = headers.get("origin")
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        if origin is not None and origin.lower() not in own:
            raise Refused("bad_origin", "the page of another site asks", "open the server's own")
        if self.rate is not None and path.startswith("/v1/"):
            self._count(address, self.rate)
        self.room(scope)

    def _address(self, scope: Scope, headers: Headers) -> str:
        """Of the client: the last one that no proxy of ours has."""
        address = scope["client"][0] if scope.get("client") else ""
        if "x-forwarded-for" in headers:
            hops = ",".join(headers.getlist("x-forwarded-for")).split(",")
            while hops and self._is_proxy(address):
                address = hops.pop().strip()
        return address

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self.proxies)

    def _count(self, address: str, rate: float) -> None:
        """A bucket for each address: ``rate`` a second, twice that at once."""
        now, most = time.monotonic(), max(1.0, 2 * rate)
        left, at = self._buckets.pop(address, (most, now))
        left = min(most, left + (now - at) * rate)
        refused = left < 1  # and free of charge: who asks too often still gets its rate
        self._buckets[address] = left if refused else left - 1, now
        if len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        if refused:
            retry = math.ceil((1 - left) / rate)
            raise Refused("too_many", f"more than {rate:g} requests a second", "", retry=retry)


def _name(host: str) -> str:
    """Host header without its port: ``[::1]:8000`` is ``[::1]``."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
