"""Maps that visitors may ask again: bounded in number, in bytes, by visitor and in time."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from typing import NamedTuple

from spatialembed.inference.diameter import Seen
from spatialembed.serve.decoder import Picture

MOST, MOST_OF_ONE, MOST_BYTES, SECONDS = 16, 4, 1 << 29, 600.0


class Kept(NamedTuple):
    """An image and what the network made of it."""

    visitor: str
    name: str
    picture: Picture
    seen: Seen

    @property
    def size(self) -> int:
        """Bytes."""
        return self.picture.pixels.nbytes + sum(m.nbytes for m in self.seen.maps)


class Shelf:
    """The maps by their ids, which nobody can guess; those asked least recently go first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Kept, float]] = OrderedDict()

    def put(self, kept: Kept) -> str | None:
        """Keep it; returns its id, or None if it is too large. Others may have to go."""
        if kept.size > MOST_BYTES:
            return None
        own = [key for key, (other, _) in self._kept.items() if other.visitor == kept.visitor]
        for key in own[: max(0, len(own) + 1 - MOST_OF_ONE)]:
            self.drop(key)
        key = secrets.token_urlsafe(16)
        self._kept[key] = kept, time.monotonic()
        while len(self._kept) > MOST or self._bytes() > MOST_BYTES:
            self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> Kept | None:
        """The maps, which then last anew."""
        self.expire()
        if key not in self._kept:
            return None
        kept, _ = self._kept.pop(key)
        self._kept[key] = kept, time.monotonic()
        return kept

    def drop(self, key: str) -> None:
        """Forget them, if they are there."""
        self._kept.pop(key, None)

    def expire(self) -> None:
        """Forget those that nobody asked for too long."""
        now = time.monotonic()
        for key in [k for k, (_, at) in self._kept.items() if now - at > SECONDS]:
            self.drop(key)

    def _bytes(self) -> int:
        return sum(kept.size for kept, _ in self._kept.values())
