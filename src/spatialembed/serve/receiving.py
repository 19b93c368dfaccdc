"""uvicorn's protocol over httptools with bounds: on time, headers, framing and connections.

    connected or idle  -> head    whole within ``HEAD_S``            408, 431
    head complete      -> body    whole within ``receive`` seconds   408, 400
    answering          -> taken   within ``receive`` seconds         cut

httptools tells nobody of the extensions of chunks, so bytes are counted as they come in, and what
no callback accounts for is overhead. Two answers to one request would be read as those of two, so
nothing is written once an answer has begun.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from spatialembed.serve.faults import STATUS, body

HEAD_S = 5.0
LONGEST_HEAD, MOST_HEADERS = 1 << 14, 100
"""Bytes of target and headers; their number."""
OVERHEAD, OVERHEAD_SHARE = 1 << 14, 0.25
"""Bytes of framing that a body may have, and more by its own length."""
SLICE = 1 << 14
"""Bytes parsed at a time, so that the count is never further off."""
MOST_CONNECTIONS = 800
"""Below the usual limit of 1,024 open files."""
LINGER_S = 2.0


class Receiving(HttpToolsProtocol):
    """One connection; ``bounded`` makes the class for some settings."""

    receive_s = 20.0
    most_body = 1 << 26

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # uvicorn's own
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._taken: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head = self._body = self._unparsed = 0

    # --- time

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._refuse("slow_request", "the request did not arrive in time", "send it faster")

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
            self._refuse("busy", "too many connections", "try again later", retry=5)
        else:
            self._arm(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Timers end with it."""
        self._disarm()
        if self._taken is not None:
            self._taken.cancel()
        super().connection_lost(exc)

    def _refuse(self, code: str, message: str, remedy: str = "", retry: int | None = None) -> None:
        """Answer with an error, if there is no answer yet, and close."""
        self._disarm()
        if self.transport.is_closing():
            return
        if self._may_answer():
            told = body(code, message, remedy)
            lines = [
                STATUS_LINE[STATUS[code]],
                b"content-type: application/json\r\nconnection: close\r\n",
                b"content-length: %d\r\n" % len(told),
                b"" if retry is None else b"retry-after: %d\r\n" % retry,
                b"\r\n",
                told,
            ]
            self.transport.write(b"".join(lines))
        self.transport.close()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _may_answer(self) -> bool:
        """Whether an error would be read as the answer to the request that it is about."""
        if self.cycle is None:
            return True
        if self._in_head:  # of a request after the one that ``cycle`` is of
            return self.cycle.response_complete
        return not self.cycle.response_started

    def send_400_response(self, msg: str) -> None:
        """Whatever the parser refuses."""
        self._refuse("bad_request", "this is no proper HTTP/1.1 request")

    # --- bytes

    def data_received(self, data: bytes) -> None:
        """Parse slice by slice, and count."""
        for start in range(0, len(data), SLICE):
            if self.parser is None or self.transport.is_closing():
                return
            if self._deadline is None:  # the next request on a kept connection
                self._arm(HEAD_S)
            piece = data[start : start + SLICE]
            self._unparsed += len(piece)
            super().data_received(piece)
            if self._in_head and self._unparsed > 2 * LONGEST_HEAD:
                self._too_long()
            elif self._unparsed > OVERHEAD + SLICE + OVERHEAD_SHARE * self._body:
                self._refuse("bad_request", "the body has more framing than content")

    def on_message_begin(self) -> None:
        """A new request."""
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
            self._too_long()

    def _too_long(self) -> None:
        self._refuse("long_header", "the header is too long", "send less of it")

    def on_headers_complete(self) -> None:
        """Refuse what two readers could read differently, else begin to answer."""
        if self.transport.is_closing():
            return
        values: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            values.setdefault(name, []).append(value.lower().strip())
        coding, old = values.get(b"transfer-encoding"), self.parser.get_http_version() != "1.1"
        if len(values.get(b"host", [])) != 1:
            self._refuse("bad_request", "the request needs one Host header")
        elif coding and (coding != [b"chunked"] or old or b"content-length" in values):
            self._refuse("bad_request", "the body may be chunked, and nothing else")
        elif self.parser.should_upgrade():
            self._refuse("bad_request", "there is HTTP/1.1 alone here, and no upgrade")
        else:
            self._in_head, self._unparsed = False, 0
            self._arm(self.receive_s)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body. After an answer some of it is thrown away, not without end."""
        if self.transport.is_closing():
            return
        self._body += len(body)
        self._unparsed = max(0, self._unparsed - len(body))
        if self.cycle.response_complete and self._body > self.most_body:
            self.transport.abort()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here."""
        self._disarm()
        if not self.transport.is_closing():
            self._in_head, self._unparsed = True, 0
            super().on_message_complete()
            if self.cycle.response_complete:  # so the connection is idle from now, not from then
                self._unset_keepalive_if_required()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )


def bounded(receive: float, most_body: int) -> type[Receiving]:
    """The protocol with these bounds, in seconds and bytes."""
    return type("Bounded", (Receiving,), {"receive_s": receive, "most_body": most_body})
