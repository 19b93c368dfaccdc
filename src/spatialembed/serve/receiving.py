"""uvicorn's protocol over httptools with bounds: on time, headers, framing and connections.

    connected or idle  -> head    whole within ``HEAD_S``            408, 431
    head complete      -> body    whole within ``receive`` seconds   408, 400
    answering          -> taken   within ``receive`` seconds         cut
    refused            -> closed  ``LINGER_S`` after the last byte   cut

httptools tells nobody of the extensions of chunks, so bytes are counted as they come in, and what
no callback accounts for is overhead. Two answers to one request would be read as those of two, so
nothing is written once an answer has begun. One request at a time: one that is sent before the
answer to the one before it (a pipeline, which no usual client makes) is not read, so that reading
goes on and tells when the client leaves; the answer then says that the connection closes.

What can be refused by its header is refused here, without a task or a route: under load most of a
server's work is saying no.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from spatialembed.serve.faults import HEADERS, Refused

HEAD_S = 5.0
LONGEST_HEAD, MOST_HEADERS = 1 << 14, 100
"""Bytes of target and headers; their number."""
OVERHEAD, OVERHEAD_SHARE = 1 << 14, 0.25
"""Bytes of framing that a body may have, and more by its own length."""
SLICE = 1 << 14
"""Bytes parsed at a time, so that the count is never further off."""
MOST_CONNECTIONS = 800
"""Below the usual limit of 1,024 open files."""
LINGER_S = 1.0
"""An answer may be lost to a client that is cut off while it sends, so it is heard out: so long
after its last byte, within the time and the bytes that a body has."""
ALWAYS = b"".join(f"{name}: {value}\r\n".encode() for name, value in HEADERS.items())


class Receiving(HttpToolsProtocol):
    """One connection; ``bounded`` makes the class for some settings."""

    receive_s: float
    most_body: int
    check: Callable[[Any], None]
    count: Callable[[str], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # uvicorn's own
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._taken: asyncio.TimerHandle | None = None
        self._in_head = True
        self._ended = False  # nothing more is parsed
        self._head = self._body = self._unparsed = 0
        self._heard_until = 0.0

    # --- time

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        what = "the request did not arrive in time"
        self._refuse(Refused("slow_request", what, "send it faster"), LINGER_S)

    def _not_taken(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def on_response_complete(self) -> None:
        """The last byte is with the transport, which does not take those of another answer before
        most of them are sent. Each answer has its own time."""
        super().on_response_complete()
        if self._taken is not None:
            self._taken.cancel()
        self._taken = self.loop.call_later(self.receive_s, self._not_taken)

    # --- connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new one; one too many is told so."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(Refused("busy", "too many connections", "try again later", retry=5), 0)
        else:
            self._arm(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Timers end with it."""
        self._disarm()
        if self._taken is not None:
            self._taken.cancel()
        super().connection_lost(exc)

    def _refuse(self, fault: Refused, linger: float) -> None:
        """Answer with an error, if there is no answer yet, and close after ``linger`` s or less."""
        if self._ended or self.transport.is_closing():
            return
        self._disarm()
        self._ended = True
        if self.cycle is None or self._in_head or not self.cycle.response_started:
            more = "".join(f"{name}: {value}\r\n" for name, value in fault.headers.items())
            head = "content-type: application/json\r\nconnection: close\r\n"
            head += f"content-length: {len(fault.body)}\r\n{more}"
            parts = [STATUS_LINE[fault.status], ALWAYS, head.encode(), b"\r\n", fault.body]
            self.count(fault.code)  # first: who reads the answer may ask for the counts at once
            self.transport.write(b"".join(parts))
        if self.cycle is not None:  # whose body does not come any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not linger:
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._body, self._heard_until = 0, self.loop.time() + linger
        self._deadline = self.loop.call_later(min(linger, LINGER_S), self.transport.abort)

    def _stop(self, fault: Refused, linger: float = LINGER_S) -> NoReturn:
        """``_refuse`` within the parser, which ends of it."""
        self._refuse(fault, linger)
        raise httptools.HttpParserError

    def _drop(self, size: int) -> None:
        """Bytes that nobody reads."""
        self._body += size
        if self._deadline is None:  # nothing was refused: an answer is still to come
            if self._body > self.most_body:
                self.transport.abort()
            return
        self._disarm()
        left = min(LINGER_S, self._heard_until - self.loop.time())
        if left < 0 or self._body > self.most_body:
            self.transport.abort()
        else:
            self._deadline = self.loop.call_later(left, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Whatever the parser refuses."""
        self._refuse(Refused("bad_request", "this is no proper HTTP/1.1 request"), LINGER_S)

    # --- bytes

    def data_received(self, data: bytes) -> None:
        """Parse slice by slice, and count."""
        for start in range(0, len(data), SLICE):
            if self.parser is None or self.transport.is_closing():
                return
            if self._ended:
                self._drop(len(data) - start)
                return
            if self._deadline is None:  # the next request on a kept connection
                self._arm(HEAD_S)
            piece = data[start : start + SLICE]
            self._unparsed += len(piece)
            super().data_received(piece)
            if self._in_head and self._unparsed > 2 * LONGEST_HEAD:
                self._refuse(_too_long(), LINGER_S)
            elif self._unparsed > OVERHEAD + SLICE + OVERHEAD_SHARE * self._body:
                what = "the body has more framing than content"
                self._refuse(Refused("bad_request", what), LINGER_S)

    def on_message_begin(self) -> None:
        """A new request, unless it is too early."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            self._ended = True
            self._disarm()
            raise httptools.HttpParserError
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._in_head, self._head, self._body, self._unparsed = True, 0, 0, 0

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those after a body count, and are dropped."""
        if self._in_head:
            super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > LONGEST_HEAD or len(self.headers) > MOST_HEADERS:
            self._stop(_too_long())

    def on_headers_complete(self) -> None:
        """Refuse what two readers could read differently, and what ``check`` does; or begin."""
        values: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            values.setdefault(name, []).append(value.lower().strip())
        coding, old = values.get(b"transfer-encoding"), self.parser.get_http_version() != "1.1"
        if len(values.get(b"host", [])) != 1:
            self._stop(Refused("bad_request", "the request needs one Host header"))
        if coding and (coding != [b"chunked"] or old or b"content-length" in values):
            self._stop(Refused("bad_request", "the body may be chunked, and nothing else"))
        if self.parser.should_upgrade():
            self._stop(Refused("bad_request", "there is HTTP/1.1 alone here, and no upgrade"))
        path = unquote(httptools.parse_url(self.url).path.decode("ascii"))
        try:
            self.scope.update({"method": self.parser.get_method().decode(), "path": path})
            self.check(self.scope)
        except Refused as fault:
            self._stop(fault, self.receive_s)
        self._in_head, self._unparsed = False, 0
        self._arm(self.receive_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body. After an answer some of it is thrown away, not without end."""
        self._body += len(body)
        self._unparsed = max(0, self._unparsed - len(body))
        if self.cycle.response_complete and self._body > self.most_body:
            self.transport.abort()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here."""
        self._disarm()
        self._in_head, self._unparsed = True, 0
        super().on_message_complete()
        if self.cycle.response_complete:  # so the connection is idle from now, not from then
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


def _too_long() -> Refused:
    return Refused("long_header", "the header is too long", "send less of it")


def bounded(
    receive: float,
    most_body: int,
    check: Callable[[Any], None],
    count: Callable[[str], None],
) -> type[Receiving]:
    """The protocol with these bounds, in seconds and bytes.

    check: raises Refused for the scope of a request that shall not begin. count: is told the code
    of every fault that is answered here.
    """
    more = {"check": staticmethod(check), "count": staticmethod(count)}
    return type("Bounded", (Receiving,), {"receive_s": receive, "most_body": most_body, **more})
