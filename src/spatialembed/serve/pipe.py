"""Frames between processes: a fixed header, JSON of known keys, raw bytes. Nothing is unpickled.

4 bytes "spe1" | length of the JSON, uint32 | length of the rest, uint64 | JSON | the rest
"""

from __future__ import annotations

import asyncio
import os
import struct
from io import RawIOBase
from typing import Any

import msgspec

HEAD = struct.Struct("<4sIQ")
MAGIC = b"spe1"
LONGEST_META, LONGEST_BODY = 1 << 24, 1 << 34
"""Bytes; a longer frame is a fault of ours."""

Meta = dict[str, Any]
Bytes = bytes | bytearray | memoryview


def ends() -> tuple[RawIOBase, RawIOBase]:
    """This process's standard input and output; what a library prints goes to the log instead."""
    source, sink = open(0, "rb", 0), open(os.dup(1), "wb", 0)  # noqa: SIM115  until it ends
    os.dup2(2, 1)
    return source, sink


def write(pipe: RawIOBase, meta: Meta, body: Bytes = b"") -> None:
    """Write a frame. Raises BrokenPipeError where the reader has gone."""
    text = msgspec.json.encode(meta)
    for part in (HEAD.pack(MAGIC, len(text), len(body)) + text, body):
        left = memoryview(part)
        while left:
            left = left[pipe.write(left) :]


def read(pipe: RawIOBase) -> tuple[Meta, bytearray]:
    """Read a frame. Raises EOFError where the writer has gone."""
    meta, body = _lengths(bytes(_exactly(pipe, HEAD.size)))
    return msgspec.json.decode(_exactly(pipe, meta)), _exactly(pipe, body)


def _exactly(pipe: RawIOBase, size: int) -> bytearray:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        got = pipe.readinto(left)
        if not got:
            raise EOFError
        left = left[got:]
    return data


async def send(writer: asyncio.StreamWriter, meta: Meta, body: Bytes = b"") -> None:
    """``write`` for the event loop."""
    text = msgspec.json.encode(meta)
    writer.write(HEAD.pack(MAGIC, len(text), len(body)) + text)
    writer.write(body)
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> tuple[Meta, bytes]:
    """``read`` for the event loop. Raises EOFError (IncompleteReadError is one)."""
    meta, body = _lengths(await reader.readexactly(HEAD.size))
    return msgspec.json.decode(await reader.readexactly(meta)), await reader.readexactly(body)


def _lengths(head: bytes) -> tuple[int, int]:
    magic, meta, body = HEAD.unpack(head)
    if magic != MAGIC or meta > LONGEST_META or body > LONGEST_BODY:
        raise EOFError("no frame")  # a process that writes anything else is as good as gone
    return meta, body
