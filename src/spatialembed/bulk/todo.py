"""Which shards are left, who has them, and since when: the queue of every engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from threading import Condition
from typing import NamedTuple


class Report(NamedTuple):
    """A shard that is done."""

    shard: int
    images: int


class Todo:
    """Shards are handed out in order; one that takes very long is handed out once more."""

    def __init__(self, shards: Iterable[int], late_s: float) -> None:
        """late_s: after so many seconds a shard is taken for one whose worker was stopped."""
        self._waiting = deque(shards)
        self._left = set(self._waiting)
        self._begun: dict[int, float] = {}
        self._late_s = late_s
        self._changed = Condition()

    @property
    def left(self) -> int:
        """How many are not done."""
        return len(self._left)

    @property
    def begun(self) -> list[int]:
        """Those that somebody has."""
        with self._changed:
            return sorted(self._begun)

    def take(self, *, wait: bool) -> int | None:
        """The next shard; None: there is none, and where it waits, there will be none."""
        with self._changed:
            while self._left:
                if self._waiting:
                    number = self._waiting.popleft()
                else:
                    before = time.monotonic() - self._late_s
                    number = next((n for n, since in self._begun.items() if since < before), -1)
                if number >= 0:
                    self._begun[number] = time.monotonic()
                    return number
                if not wait:
                    return None
                self._changed.wait(1)
            return None

    def back(self, number: int) -> None:
        """Whoever had it has gone."""
        with self._changed:
            if number in self._left and number not in self._waiting:
                self._waiting.appendleft(number)
            self._begun.pop(number, None)
            self._changed.notify_all()

    def done(self, number: int) -> bool:
        """It is done; returns whether it was not yet."""
        with self._changed:
            first = number in self._left
            self._left.discard(number)
            self._begun.pop(number, None)
            if number in self._waiting:
                self._waiting.remove(number)
            self._changed.notify_all()
            return first
