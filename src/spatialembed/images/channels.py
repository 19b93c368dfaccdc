"""Which channels an image has, and the one that is asked for: ``--channel N|name|max|sum``.

2       the second channel, counted from 1 as ImageJ does
DAPI    the channel of that name, capitals or not; red, green, blue of a colour picture
max     of each pixel the largest value of all channels
sum     their sum, as float32: it has no stated range
all     as without a choice: colours stay colours, of other channels the first is read
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from spatialembed.errors import SpatialEmbedError, check

Channel = int | str
"""A number from 1, a name, or "max", "sum", "all"."""
ALL, MAX, SUM = "all", "max", "sum"
COLOURS = ("red", "green", "blue")
LISTED = 30


class Preferred(str):
    """The channel that a model was trained on: an image without it is read as if none was named."""


def parse_channel(channel: Channel | None) -> Channel | None:
    """A channel as it is given, None for "all".

    Raises SpatialEmbedError ``bad_setting`` (exit 2) for a number below 1 and for no name.
    """
    text = "" if channel is None else str(channel).strip()
    check(channel is None or bool(text), "channel is empty", "give a number, a name, max or sum")
    if text.lstrip("-").isdecimal():
        fine = text.isdecimal() and bool(text.strip("0"))
        check(fine, f"channel is {text[:20]}", "channels are counted from 1, as in ImageJ")
    return None if text.lower() in ("", ALL) else channel


def chosen(where: object, names: Sequence[str], channel: Channel) -> list[int] | None:
    """Which of an image's channels are read, from 0: one, or for max and sum all of them.

    Args:
        where: The image, for messages.
        names: Of its channels, "" where one has none.
        channel: What is asked for.

    Returns:
        The indices; None: read as if no channel was named, since it was only ``Preferred``.

    Raises:
        SpatialEmbedError: ``no_channel``.
    """
    text = str(channel).strip().lower()
    if text in (MAX, SUM):
        return list(range(len(names)))
    if text.isdecimal():
        found = [int(text) - 1] if 1 <= int(text[:9]) <= len(names) and len(text) < 10 else []
    else:
        found = [i for i, name in enumerate(names) if name.strip().lower() == text]
    if len(found) == 1:
        return found
    if isinstance(channel, Preferred):
        return None
    what = f"{len(found)} channels are named" if found else "no channel"
    raise SpatialEmbedError(
        "no_channel", f"{where}: {what} {str(channel)[:80]!r}", f"it has {listed(names)}"
    )


def listed(names: Sequence[str]) -> str:
    """The channels of an image in words: "2 channels: 1 DAPI, 2 GFP; or max or sum"."""
    if len(names) == 1:
        return "one channel"
    shown = [f"{i} {name}".strip() for i, name in enumerate(names[:LISTED], start=1)]
    more = ["..."] * (len(names) > LISTED)
    return f"{len(names)} channels: {', '.join(shown + more)}; or max or sum"


def is_sum(channel: Channel | None) -> bool:
    """Whether pixels become float32 by the choice."""
    return str(channel).strip().lower() == SUM


def combined(channel: Channel, planes: Iterable[np.ndarray]) -> np.ndarray:
    """The plane (H, W) that is asked for, of those that ``chosen`` names, one or all.

    Raises SpatialEmbedError ``bad_channels`` where their sizes differ.
    """
    total = is_sum(channel)
    result: np.ndarray | None = None
    for plane in planes:
        term = plane.astype(np.float32) if total else plane
        if result is None:
            result = term
            continue
        if result.shape != term.shape:
            what = f"channels of {result.shape} and {term.shape} px"
            raise SpatialEmbedError("bad_channels", what, "choose one by its number")
        result = result + term if total else np.maximum(result, term)
    assert result is not None, "chosen names at least one"
    return result


def pick(where: object, pixels: np.ndarray, channel: Channel | None) -> np.ndarray:
    """The channel of an image (H, W) or (H, W, C) as (H, W); None: the image as it is.

    Raises SpatialEmbedError ``no_channel``, ``bad_setting`` (exit 2).
    """
    if (channel := parse_channel(channel)) is None:
        return pixels
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    count = planes.shape[2]
    names = COLOURS if count == 3 else ("",) * count
    if (which := chosen(where, names, channel)) is None:
        return pixels
    return combined(channel, (planes[..., i] for i in which))
