"""JSON that nobody vouches for, into flat dataclasses: every key and type checked by msgspec."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

import msgspec

from spatialembed.errors import MODEL, SpatialEmbedError

T = TypeVar("T")
LARGEST = 1 << 62
"""Numbers fit a float32 and an int64."""


def bad_model(where: str, what: str) -> SpatialEmbedError:
    """The error of a model file that is not as it should be."""
    return SpatialEmbedError(
        "bad_model", f"{where}: {what}", "fetch or save the model again", MODEL
    )


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The object of a JSON text; NaN and Infinity, which are not of JSON, are refused."""
    try:
        facts = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_model(where, f"not valid JSON: {error}") from error
    if not isinstance(facts, dict):
        raise bad_model(where, "not a JSON object")
    return facts


def check_keys(
    value: Any, expected: set[str], where: str, *, optional: Set[str] = frozenset()
) -> None:
    """These keys and maybe ``optional`` ones; a missing default would change results silently."""
    if not isinstance(value, dict):
        raise bad_model(where, "not an object")
    for what, keys in (
        ("unknown", set(value) - expected - optional),
        ("missing", expected - set(value)),
    ):
        if keys:
            raise bad_model(where, f"{what} key {', '.join(map(repr, sorted(keys)))}")


def parse_fields(kind: type[T], facts: dict[str, Any], name: str, where: str) -> T:
    """One of our flat dataclasses from the fact ``name``, an object that has each of its fields."""
    value, where = facts[name], f"{where}: {name}"
    check_keys(value, {f.name for f in fields(kind)}, where)  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    arguments = {name: typed(value[name], hints[name], f"{where}: {name}") for name in value}
    try:
        return kind(**arguments)
    except (ValueError, SpatialEmbedError) as error:
        raise bad_model(where, str(error)) from error


def typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` if it is of the annotated type; a list becomes a tuple where that is annotated."""
    try:
        found = msgspec.convert(value, hint)
    except (msgspec.ValidationError, UnicodeError) as error:  # of a key that is no UTF-8
        raise bad_model(where, f"{str(value)[:100]!r}: {error}") from error
    for number in found if isinstance(found, tuple) else (found,):
        if isinstance(number, (int, float)) and not abs(number) < LARGEST:
            raise bad_model(where, f"{str(number)[:100]} is too large")
    return found
