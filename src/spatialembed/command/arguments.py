"""From the words of a command to its settings: a dataclass, filled by flags and YAML.

A field is a flag (``--stage1.epochs 100``) and a key of YAML, its docstring is its help. ``-`` and
``_`` are one in flags, and a flag of type bool needs no value. What is mistyped is refused with the
nearest name there is.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, set_parsing_settings

from spatialembed.errors import USAGE, SpatialEmbedError, nearest
from spatialembed.inference.bundled import choices

T = TypeVar("T")


def parse(
    kind: type[T], words: Sequence[str], *, verb: str, help: str, positional: str | None = None
) -> T:
    """The settings ``kind``, a dataclass, from the words after the verb.

    positional: a field of type list[str] that takes the words that are no flags, or of type str
    that takes one; several fields are parted by spaces. Without it a word alone is the ``data``.

    Raises SpatialEmbedError ``unknown_setting``, ``bad_config``, ``bad_setting`` (all exit 2), and
    SystemExit after ``--help`` and ``--print_config``.
    """
    types = dict(_settings(kind))
    parser = _parser(kind, types, verb, help, (positional or "").split())
    given = _plain_flags(words, types, positional)
    try:
        values = parser.instantiate(parser.parse_args(given))
    except (ArgumentError, argparse.ArgumentError) as error:
        message = _in_words(" ".join(str(error).split()), types, (positional or "").split())
        remedy = f"see spatialembed {verb} --help"
        if message == "not given: --model":
            print(choices(), file=sys.stderr)  # several lines, which an error has not
        raise SpatialEmbedError("bad_setting", message, remedy, USAGE) from error
    return kind(**{f.name: getattr(values, f.name) for f in fields(kind)})  # type: ignore[arg-type]


def _in_words(message: str, types: Mapping[str, Any], positional: Sequence[str]) -> str:
    """The parser's objection to the words, without its own terms where possible."""
    wrong = re.search(r'Parser key "([^"]+)": .*(?:Got value|Given value): (.*)', message)
    if wrong and wrong[1] in types:
        kind = types[wrong[1]]
        if get_origin(kind) is Literal:
            return f"{wrong[1]}: {wrong[2]} is not one of {', '.join(map(str, get_args(kind)))}"
        name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
        return f"{wrong[1]}: {wrong[2]} is not of type {name}"
    missing = re.search(r"arguments are required: (.*)", message)
    if missing:
        names = [
            name.upper() if name in positional else f"--{name}" for name in missing[1].split(", ")
        ]
        return f"not given: {', '.join(names)}"
    return message


def _settings(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its type, nested ones as ``stage1.epochs``, groups too."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        yield prefix + field.name, hints[field.name]
        if is_dataclass(hints[field.name]):
            yield from _settings(hints[field.name], f"{prefix}{field.name}.")


def _parser(
    kind: type, types: Mapping[str, Any], verb: str, help: str, positional: Sequence[str]
) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    shown = [f"{name.upper()}..." if _is_list(types[name]) else name.upper() for name in positional]
    parser = ArgumentParser(
        prog=f"spatialembed {verb}",
        usage=" ".join([f"spatialembed {verb}", *shown, "[--SETTING VALUE ...]"]),
        description=help,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="YAML file of settings, or the name of one in the package: "
        f"{', '.join(bundled_configs())}.",
    )
    documented = {p.arg_name: p.description for p in parse_from_object(kind).params}
    for name in positional:
        nargs = "+" if _is_list(types[name]) else None
        parser.add_argument(name, nargs=nargs, type=str, help=documented[name])
    parser.add_class_arguments(kind, skip=set(positional))
    return parser


def _is_list(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is list


def _plain_flags(
    words: Sequence[str], types: Mapping[str, Any], positional: str | None
) -> list[str]:
    """The words with flags as the parser knows them, each checked."""
    result: list[str] = []
    lone: list[str] = []
    todo = list(words)
    while todo:
        word = todo.pop(0)
        if word == "--":
            return [*result, *_as_data(lone, result), word, *todo]
        if not word.startswith("--"):
            if not positional and "data" in types and not word.startswith("-"):
                lone.append(word)
            else:
                result.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        flag = flag.replace("-", "_")
        if flag in ("help", "print_config"):
            result.append(f"--{flag}{equals}{value}")
            continue
        _check_known(flag, types, f"--{flag}")
        if not equals and types.get(flag) is bool and (not todo or not _is_bool(todo[0])):
            value = "true"
        elif not equals and todo:
            value = todo.pop(0)
        elif not equals:
            raise SpatialEmbedError(
                "bad_setting", f"--{flag} has no value", f"give --{flag} VALUE", USAGE
            )
        result.append(f"--{flag}={_config(value, types) if flag == 'config' else value}")
    return result + _as_data(lone, result)


def _as_data(lone: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The flag that a word alone stands for: a folder is what people name first."""
    named = [f.partition("=")[2] for f in flags if f.startswith("--data=")] if lone else []
    if len([*lone, *named]) > 1:
        what = f"{' and '.join([*lone, *named])}: one data set is taken"
        remedy = "give one; every other setting is --NAME VALUE"
        raise SpatialEmbedError("bad_setting", what, remedy, USAGE)
    return [f"--data={word}" for word in lone]


def _is_bool(word: str) -> bool:
    return word.lower() in ("true", "false")


def _check_known(name: str, types: Mapping[str, Any], where: str) -> None:
    known = [*types, "config"]
    if name not in known:
        best = nearest(name, known)
        remedy = f"the nearest is {best}" if best else "--help lists all"
        raise SpatialEmbedError("unknown_setting", f"{where}: no such setting", remedy, USAGE)


# ---------------------------------------------------------------- YAML


def bundled_configs() -> list[str]:
    """Names of the settings in the package, sorted."""
    folder = resources.files("spatialembed") / "configs"
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def _config(name: str, types: Mapping[str, Any]) -> str:
    """Path of a YAML file, or of a bundled one by its name; every key in it is checked."""
    path = Path(name)
    if not path.is_file() and name in bundled_configs():
        path = Path(str(resources.files("spatialembed") / "configs" / f"{name}.yaml"))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        remedy = f"give a YAML file, or one of {', '.join(bundled_configs())}"
        raise SpatialEmbedError("bad_config", f"{name}: {reason}", remedy, USAGE) from error
    if not isinstance(content, dict):
        raise SpatialEmbedError(
            "bad_config", f"{name}: no settings in it", "write key: value", USAGE
        )
    for key in _keys(content):
        _check_known(key, types, f"{name}: {key}")
    return str(path)


def _keys(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
