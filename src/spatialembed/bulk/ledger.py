"""What was tried before: a shard that was begun and not finished may hold an image that kills.

.bulk/ledger/PART/attempt-1   put before anything of the shard is read
.bulk/ledger/PART/dead-17-1   image 17 ended the process that it had for itself
.bulk/ledger/PART/at          the image that such a process has, and how many attempts ended there

From the second attempt on, each image goes through a process that may die. Only a death that was
seen counts at once: a machine that goes down, or somebody who kills, says nothing about an image.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress

import msgspec

from spatialembed.bulk.store import WORK, Bucket, Folder

MOST_DEATHS = 2
"""Of its own process, then an image has failed."""
MOST_ENDS = 5
"""Attempts in a row that ended at one image, with nobody left to see what it died of."""


class Ledger:
    """The marks of one shard."""

    def __init__(self, store: Folder | Bucket, part: str) -> None:
        self._store, self._below = store, f"{WORK}/ledger/{part}"
        self._at, self._ends = -1, 0

    def begin(self) -> bool:
        """Mark an attempt; returns whether there was one before."""
        marks = {name.rpartition("/")[2] for name in self._store.names(self._below)}
        number = sum(name.startswith("attempt-") for name in marks) + 1
        while not self._store.put_new(f"{self._below}/attempt-{number}", _mine()):
            number += 1
        if number > 1 and "at" in marks:
            with suppress(ValueError, RecursionError, msgspec.ValidationError):  # damaged: as none
                said = json.loads(self._store.read(f"{self._below}/at"))
                self._at, self._ends = msgspec.convert(said, tuple[int, int])
        return number > 1

    def deaths(self, image: int) -> int:
        """How often its process died, as far as that goes."""
        marks = range(1, MOST_DEATHS + 1)
        return sum(self._store.has(f"{self._below}/dead-{image}-{i}") for i in marks)

    def died(self, image: int) -> None:
        """Mark that its process died."""
        number = self.deaths(image) + 1
        self._store.put_new(f"{self._below}/dead-{image}-{number}", _mine())

    def trying(self, image: int) -> bool:
        """Mark an image before its process has it; returns False if it ended too many attempts."""
        ends = self._ends if image == self._at else 0
        self._store.put(f"{self._below}/at", json.dumps([image, ends + 1]).encode())
        return ends < MOST_ENDS

    def tried(self) -> None:
        """All images have been tried."""
        self._store.remove(f"{self._below}/at")

    def withdraw(self) -> None:
        """Of an attempt that was stopped on purpose: it says nothing."""
        for name in list(self._store.names(self._below)):
            if "/attempt-" in name:
                self._store.remove(name)


def _mine() -> bytes:
    """Content by which a mark is known as one's own, see ``Bucket.put_new``."""
    return uuid.uuid4().bytes
