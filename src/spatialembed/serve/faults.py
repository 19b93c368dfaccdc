"""Faults as answers: a status, a stable code, a line on the fault, and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from spatialembed.errors import INPUT, USAGE

STATUS = {
    "bad_request": 400,
    "bad_multipart": 400,
    "bad_token": 401,
    "bad_origin": 403,
    "no_such_path": 404,
    "no_such_model": 404,
    "bad_method": 405,
    "not_acceptable": 406,
    "slow_request": 408,
    "maps_gone": 410,
    "too_large": 413,
    "unsupported_type": 415,
    "bad_host": 421,
    "too_many": 429,
    "long_header": 431,
    "out_of_memory": 500,
    "model_died": 500,
    "internal": 500,
    "busy": 503,
    "draining": 503,
    "not_ready": 503,
    "deadline": 504,
}
"""Of the codes of the server; others are those of reading and predicting, told by exit code."""

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Of every answer that has none of its own by that name."""


class Refused(Exception):
    """An answer that is an error."""

    def __init__(
        self, code: str, message: str, remedy: str = "", *, retry: int | None = None, exit: int = 0
    ) -> None:
        """retry: seconds after which to try again. exit: exit code, of a code not in STATUS."""
        super().__init__(code)
        self.status = STATUS.get(code) or {INPUT: 422, USAGE: 400}.get(exit, 500)
        self.code = code
        self.body = body(code, message, remedy)
        self.headers = {} if retry is None else {"Retry-After": str(retry)}
        if self.status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    @classmethod
    def of(cls, error: Mapping[str, Any]) -> Refused:
        """That of an error that a model's process told."""
        return cls(error["code"], error["message"], error["remedy"], exit=error["exit_code"])


def body(code: str, message: str, remedy: str = "") -> bytes:
    """The JSON of an error."""
    told = {"code": code, "message": message, "remedy": remedy}
    return msgspec.json.encode({"error": told})
