"""JSON that nobody vouches for, into flat dataclasses: every key and type checked."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from spatialembed.errors import MODEL, SpatialEmbedError

T = TypeVar("T")


def bad_model(where: str, what: str) -> SpatialEmbedError:
    """The error of a model file that is not as it should be."""
    return SpatialEmbedError(
        "bad_model", f"{where}: {what}", "fetch or save the model again", MODEL
    )


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The object of a JSON text; its NaN and Infinity, which are not of JSON, are refused."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        facts = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
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


def parse_fields(kind: type[T], value: Any, where: str) -> T:
    """One of our flat dataclasses from a JSON object that names each of its fields."""
    check_keys(value, {f.name for f in fields(kind)}, where)  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    arguments = {name: typed(value[name], hints[name], f"{where}: {name}") for name in value}
    try:
        return kind(**arguments)
    except (ValueError, SpatialEmbedError) as error:
        raise bad_model(where, str(error)) from error


def typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` if it is of the annotated type (float, int, optional, literal, tuple of those).

    A list becomes a tuple of the annotated length, or of any with ``tuple[float, ...]``.
    """
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        fits = isinstance(value, str) and value in arguments
    elif get_origin(hint) is tuple:
        if isinstance(value, list) and arguments[-1] is Ellipsis:
            return tuple(typed(v, arguments[0], where) for v in value)
        if isinstance(value, list) and len(value) == len(arguments):
            return tuple(typed(v, h, where) for v, h in zip(value, arguments, strict=True))
        fits = False
    elif arguments:  # int | None
        return None if value is None else typed(value, arguments[0], where)
    elif hint is float:
        if type(value) in (int, float) and abs(value) < 1e30:
            return float(value)
        fits = False
    else:
        fits = type(value) is hint and abs(value) < 1 << 62
    if not fits:
        raise bad_model(where, f"{str(value)[:100]!r} does not fit {hint}")
    return value
