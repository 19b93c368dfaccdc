"""Recommended settings as YAML to train with, the reason of each beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Setting:
    """One line of the recommended settings."""

    key: str  # as a flag: stage1.crop
    value: Any
    reason: str


@dataclass(frozen=True)
class Advice:
    """What a training is recommended to be."""

    scale: float
    crop: int
    min_pixels: int
    steps: int
    settings: tuple[Setting, ...]

    def yaml(self, head: str) -> str:
        """The settings as YAML that ``spatialembed train --config`` takes, reasons as comments."""
        lines, section = [f"# {_line(line)}".rstrip() for line in head.splitlines()], ""
        rows = []
        for setting in self.settings:
            group, _, name = setting.key.rpartition(".")
            if group != section:
                rows.append((f"{group}:", ""))
                section = group
            rows.append((f"{'  ' * bool(group)}{name}: {_plain(setting.value)}", setting.reason))
        width = max(len(left) for left, _ in rows)
        lines += [f"{left:<{width}}  # {_line(why)}" if why else left for left, why in rows]
        return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    """Text that stays within a comment, whatever a class is called."""
    return "".join(c if c.isprintable() else " " for c in text)


def _plain(value: Any) -> str:
    """A value as YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(yaml.safe_dump(value)).splitlines()[0]
    if isinstance(value, str):
        plain = value.isidentifier() and yaml.safe_load(value) == value  # neither yes nor null
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)
