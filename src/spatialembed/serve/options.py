"""The settings of ``spatialembed serve``; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field

from spatialembed.options import DeviceOptions


@dataclass(frozen=True)
class ServeOptions(DeviceOptions):
    """Settings of ``spatialembed serve``."""

    model: list[str] = field(default_factory=list)
    """Bundled name, hf://OWNER/NAME@REVISION, or NAME=PATH of a model folder; again for each
    further one. None: nuclei."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but loopback needs a token."""
    port: int = 8000
    """Port; 0: a free one, which is printed."""
    token_file: str | None = None
    """File of the token that requests have to send, as Authorization: Bearer TOKEN."""
    hosts: str = ""
    """Names that requests may give in their Host header, with commas between, beside those of this
    machine."""
    proxies: str = ""
    """Addresses or networks, with commas between, of proxies whose X-Forwarded-For is believed
    beside those of this machine: 172.16.0.0/12, say, for one outside of the server's container."""
    queue: int = 8
    """Images that may wait for a model; more are refused at once, with Retry-After."""
    deadline: float = 60.0
    """Seconds that an image may wait for a model, and seconds that a model may take for it; a
    model's process that takes longer is replaced."""
    receive: float = 20.0
    """Seconds in which a request must have arrived and its answer been taken."""
    rate: float | None = None
    """Requests a second of one address; null: no limit."""
    grace: float = 60.0
    """Seconds after SIGTERM for what was accepted."""
    max_bytes: int = 1 << 26
    """Of an image as it is sent."""
    max_pixels: int = 1 << 25
    """Of an image, width x height, by its header."""
