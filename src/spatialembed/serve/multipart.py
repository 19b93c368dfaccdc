"""multipart/form-data of one file and nothing else, as ``curl -F`` sends it (RFC 7578)."""

from __future__ import annotations

from email.message import Message

from spatialembed.serve.faults import Refused

LONGEST_BOUNDARY, LONGEST_HEAD, LONGEST_VALUE = 70, 4096, 2048
"""Characters by RFC 2046; bytes of the headers of a part; characters of a header: the standard
library's parser takes time by the square of them."""


def one_file(content_type: str, body: bytes | bytearray) -> tuple[memoryview, str | None]:
    """Content and name of the file. Raises Refused ``bad_multipart``."""
    boundary = _parameter("content-type", content_type, "boundary") or ""
    if not 1 <= len(boundary) <= LONGEST_BOUNDARY or not boundary.isascii():
        raise _bad("its boundary is missing or longer than 70 characters")
    line = b"--" + boundary.encode()
    head_end = body.find(b"\r\n\r\n", 0, len(line) + LONGEST_HEAD)
    if not body.startswith(line + b"\r\n") or head_end < 0:
        raise _bad("it does not begin with the header of a part")
    end = body.find(b"\r\n" + line, head_end + 2)
    if end < 0 or not body.startswith(b"--", end + 2 + len(line)):
        raise _bad("it has several parts, or no end")
    head = bytes(body[len(line) + 2 : head_end]).decode("utf-8", "replace")
    disposition = next(
        (value for name, _, value in (h.partition(":") for h in head.split("\r\n"))
         if name.strip().lower() == "content-disposition"), "",
    )  # fmt: skip
    start = head_end + 4
    return memoryview(body)[start : max(start, end)], _parameter(
        "content-disposition", disposition, "filename"
    )


def _parameter(header: str, value: str, name: str) -> str | None:
    message = Message()
    message[header] = value[:LONGEST_VALUE].replace("\r", " ").replace("\n", " ")
    try:
        found = message.get_param(name, header=header)
    except (TypeError, ValueError):  # of continuations (RFC 2231) that contradict each other
        return None
    return found if isinstance(found, str) else None


def _bad(what: str) -> Refused:
    return Refused("bad_multipart", f"the body: {what}", "send one file, as curl -F image=@FILE")
