"""From the words of a command to its settings: a dataclass, filled by flags and YAML.

A field is a flag (``--stage1.epochs 100``) and a key of YAML, its docstring is its help.
jsonargparse does the work. Here flags may have ``-`` for ``_``, a flag of type bool needs no value,
a word alone is the data, and an unknown setting is refused with the nearest that there is.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from inspect import get_annotations
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, set_parsing_settings

from spatialembed.command.models import choices
from spatialembed.errors import USAGE, SpatialEmbedError, nearest

T = TypeVar("T")

TRUTH = ("true", "false")
WITHOUT_VALUE = ("--help", "--print_config")
BAD_CONFIG = ('Parser key "config"', "Problems parsing config", "Unexpected config")
"""How the parser begins its messages about the file of --config."""


def parse(kind: type[T], words: Sequence[str], *, verb: str, help: str, positional: str = "") -> T:
    """The settings ``kind``, a dataclass, from the words after the verb.

    positional: a field of type list[str] that takes the words that are no flags, or of type str
    that takes one; several fields are parted by spaces. Without it a word alone is the ``data``.

    Raises SpatialEmbedError ``unknown_setting``, ``bad_config``, ``bad_setting`` (all exit 2), and
    SystemExit after ``--help`` and ``--print_config``.
    """
    settings, alone = dict(_settings(kind)), positional.split()
    parser = _parser(kind, settings, verb, help, alone)
    plain = _plain(words, settings, alone)
    try:
        values = parser.instantiate(parser.parse_args(plain))
    except (ArgumentError, argparse.ArgumentError) as error:
        message = " ".join(str(error).split())
        before, required, missing = message.partition("arguments are required: ")
        if missing == "model":
            print(choices(), file=sys.stderr)  # several lines, which an error has not
        names = [n if n in alone else f"--{n}" for n in missing.split(", ") if n]
        message = before + required + ", ".join(names)
        raise _fault(message, list(settings), verb) from error
    return kind(**{f.name: values[f.name] for f in fields(kind)})  # type: ignore[arg-type]


def _settings(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its type, nested ones as ``stage1.epochs``, groups too."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        yield prefix + field.name, hints[field.name]
        if is_dataclass(hints[field.name]):
            yield from _settings(hints[field.name], f"{prefix}{field.name}.")


class _Parser(ArgumentParser):
    def format_help(self, formatter: Any = None) -> str:
        """With flags spelt as everywhere in the guide."""
        text = super().format_help(formatter)
        return re.sub(r"--[\w.]+", lambda flag: flag[0].replace("_", "-"), text)


def _parser(
    kind: Any, settings: Mapping[str, Any], verb: str, help: str, alone: Sequence[str]
) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    lists = [name for name in alone if get_origin(settings[name]) is list]
    shown = [name.upper() + "..." * (name in lists) for name in alone]
    parser = _Parser(
        prog=f"spatialembed {verb}",
        usage=" ".join([f"spatialembed {verb}", *shown, "[--SETTING VALUE ...]"]),
        description=help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    bundled = ", ".join(bundled_configs())
    about = f"YAML file of settings, or the name of one in the package: {bundled}."
    parser.add_argument("--config", action=ActionConfigFile, help=about)
    documented = {p.arg_name: p.description for p in parse_from_object(kind).params}
    for name in alone:
        nargs = "+" if name in lists else None
        parser.add_argument(name, nargs=nargs, type=str, help=documented[name])
    done = set(alone)
    for part in kind.__mro__[:-1]:  # the verb's own settings before those that it shares
        own = set(get_annotations(part)) - done
        parser.add_class_arguments(part, skip={f.name for f in fields(part)} - own)
        done |= own
    return parser


def _plain(words: Sequence[str], settings: Mapping[str, Any], alone: Sequence[str]) -> list[str]:
    """The words as the parser takes them; those after -- stay as they are."""
    data_alone = not alone and "data" in settings
    end = words.index("--") if "--" in words else len(words)
    plain, todo = [], list(words[:end])
    while todo:
        flag, equals, value = todo.pop(0).partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
            following = todo[0].lower() if todo else ""
            if not equals and settings.get(flag[2:]) is bool and following not in TRUTH:
                equals, value = "=", "true"
            elif not equals and todo and flag not in WITHOUT_VALUE and following[:2] != "--":
                equals, value = "=", todo.pop(0)
            value = _config(value) if flag == "--config" else value
            if get_origin(settings.get(flag[2:])) is list and value[:1] != "[":
                equals = "+="  # given several times, a flag has several values
        elif data_alone and not flag.startswith("-"):
            flag, equals, value = "--data", "=", flag + equals + value
        if [flag[2:]] == alone and equals:  # a word alone may have its name too: --data DIR
            flag, equals = "", ""
        plain.append(flag + equals + value)
    data = [word.partition("=")[2] for word in plain if word.startswith("--data=")]
    if len(data) > 1:
        what = f"{' and '.join(data)}: one data set is taken"
        remedy = "give one; every other setting is --NAME VALUE"
        raise SpatialEmbedError("bad_setting", what, remedy, USAGE)
    return [*plain, *words[end:]]


def _fault(message: str, known: Sequence[str], verb: str) -> SpatialEmbedError:
    """A message of the parser as one of ours."""
    remedy = f"see spatialembed {verb} --help"
    if flag := re.search(r"unrecognized arguments: --([\w.]+)", message):
        best = nearest(flag[1], known)
        remedy = f"the nearest is --{best.replace('_', '-')}" if best else remedy
        what = f"--{flag[1].replace('_', '-')}: no such setting"
        return SpatialEmbedError("unknown_setting", what, remedy, USAGE)
    if key := re.search(r"(?:Group '(\S+)' does not accept o|O)ption '(\S+)'", message):
        name = ".".join(filter(None, key.groups()))
        best = nearest(name, known)
        remedy = f"the nearest is {best}" if best else remedy
        return SpatialEmbedError("unknown_setting", f"{name}: no such setting", remedy, USAGE)
    message = re.sub(r"<class '(\w+)'>|typing\.", r"\1", message)
    if message.startswith(BAD_CONFIG):
        remedy = f"give a YAML file of settings, or one of {', '.join(bundled_configs())}"
        return SpatialEmbedError("bad_config", message, remedy, USAGE)
    return SpatialEmbedError("bad_setting", message, remedy, USAGE)


def bundled_configs() -> list[str]:
    """Names of the settings in the package, sorted."""
    folder = resources.files("spatialembed") / "configs"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _config(name: str) -> str:
    """Path of a YAML file, or of a bundled one by its name."""
    bundled = resources.files("spatialembed") / "configs" / f"{name}.yaml"
    return str(bundled) if bundled.is_file() and not Path(name).is_file() else name
